"""Every tunable and its default, each in exactly one place.

A file in `configs/` returns a `Config` from `get_config()`; a command line changes single fields:
`python train.py --config configs/ssd300.py --config.train.batch_size=8`.

Such a file is code, which its user trusts. What a trained network comes with, the `config.json` of
a run or the metadata of an exported file, may be somebody else's: it is data, checked field by
field, and `LOCAL` fields in it are not heeded.
"""

import dataclasses
import json
import math
import os
import reprlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_jax import augment as augment_lib
from ssd_jax import cache, errors, files
from ssd_jax.models import ssd

VERSION = 1  # of what a workdir holds, config and checkpoints; a newer one is refused
MOST_BYTES = 16 * 2**20  # of a config with its class names, as JSON

_MOST_CLASSES = 32_767  # which evaluations count in 16 bits
_MOST_CHARACTERS = 4_096  # of a text, and of a class's name
_MOST_VALUES = 10_000  # in a field that has several
_MOST_PIXELS = 2**28  # of the inputs of a batch that is evaluated, and of its canvases


@dataclasses.dataclass
class ModelConfig:
    """The network."""

    # vgg16, vgg19, resnet18, 34, 50, 101; SSDLite's: mobilenet_v2, mobilenet_v3_large
    backbone: str = "vgg16"
    image_size: int = 300  # side of the network's input in pixels; from 512 on, SSD512's layout
    image_width: int = 0  # of an input that is not square: image_size is its height; 0: it is
    # of a MobileNet at stride 2: torch (1, 1), tensorflow (0, 1) on even sides; empty: pretrained's
    padding: str = ""
    width: float = 1.0  # multiplier of the channel counts
    dtype: str = "float32"  # of the computation: float32 or bfloat16; parameters are float32
    remat: bool = False  # compute the backbone's activations twice rather than keep them
    atrous: bool = True  # of a VGG; False: the whole network, with conv5_3 as a source map too
    # for each scale of default boxes the number of its map, from 0; empty: a scale for each map
    source_maps: tuple[int, ...] = ()
    # for each scale, or once for all: ratios beside 1, say ((2.0,),); empty: the paper's
    aspect_ratios: tuple[tuple[float, ...], ...] = ()
    prior_sizes: str = "voc"  # published sizes of the default boxes: voc or coco
    # for each scale its box's side over the input's shorter side, rising; empty: prior_sizes
    prior_scales: tuple[float, ...] = ()
    clip_priors: bool = False  # clamp default boxes to the picture (amdegroot, lufficc)
    clip_prior_sizes: bool = False  # clamp their width and height only (torchvision)
    gaps: tuple[int, ...] = ()  # logits of no class (ids that COCO does not use): background
    pretrained: str = ""  # weights to start from: a file, or a name such as vgg16-imagenet
    shared_classes: bool = True  # of a pretrained detector: keep what it knows of ours, by name
    mean: tuple[float, ...] = ()  # RGB to subtract; empty: that of pretrained, or 123, 117, 104


def _cache_dir() -> str:
    """As `cache.default` says, for load_detector and scripts that take no config."""
    return cache.default()


def _mirror() -> str:
    """The variable `SSD_JAX_MIRROR`, likewise."""
    return os.environ.get("SSD_JAX_MIRROR", "")


@dataclasses.dataclass
class DataConfig:
    """What is trained and evaluated on."""

    # voc, coco, synthetic (built in) or yours: folder (in VOC's form), coco (JSON), yolo (text)
    dataset: str = "voc"
    # where your dataset is: its folder, or one JSON of COCO, or YOLO's data.yaml; empty: built in
    path: str = ""
    archives: str = ""  # folder that holds VOC's or COCO's archives; empty: download them
    # of downloads, prepared datasets and compiled programs; a run's config does not say it
    cache_dir: str = dataclasses.field(default_factory=_cache_dir)
    # address or folder that has the weights of names such as ssd300-coco; empty: torchvision's
    mirror: str = dataclasses.field(default_factory=_mirror)
    # of voc YEAR/NAME; joined by +, cut as in train[:80%]
    train_split: str = "2007/trainval+2012/trainval"
    eval_split: str = "2007/test"  # likewise; what no training sees
    max_bad_share: float = 0.01  # of the training pictures may be unreadable; they are left out
    difficult: bool = True  # train on objects marked difficult, as the authors do
    augment: str = "ssd"  # ssd (all of the paper's), crop (no expansion) or flip (neither)
    channel_shuffle: bool = False  # with ssd: shuffle colour channels (amdegroot, lufficc)
    interpolations: tuple[str, ...] = augment_lib.INTERPOLATIONS  # with ssd: one is drawn a picture
    canvas: int = 500  # larger pictures are shrunk to this on the host; one as wide saves a copy
    threads: int = 4  # that read and decode, a batch each
    workers: int = 0  # processes that share the decoding, each with so many threads; 0: none
    max_megapixels: float = 179.0  # larger images are refused unread, for the memory that they take
    memory_gib: float = 2.0  # a split whose files are no larger stays in memory once read; 0: none


@dataclasses.dataclass
class TrainConfig:
    """The objective, the optimiser and the loop."""

    steps: int = 120_000  # updates of the parameters, a batch each
    batch_size: int = 32  # global, over all devices of all processes
    accumulate: int = 1  # parts that a device's share of the batch is computed in, to save memory
    optimizer: str = "sgd"  # sgd (the paper's), adam or muon
    learning_rate: float = 1e-3  # the highest, from which schedule lowers it
    scale_rate_from: int = 0  # batch size that learning_rate is for; the rate follows; 0: any
    momentum: float = 0.9  # of sgd
    weight_decay: float = 5e-4  # of all but biases; adam and muon: decoupled
    bias_rate: float = 2.0  # multiplier of the rate for biases, which do not decay
    clip_norm: float = 0.0  # largest norm of all gradients together; 0: any
    ema_decay: float = 0.0  # of the weights' moving average, say 0.999; 0: none is kept
    freeze: tuple[str, ...] = ()  # patterns of parameters that do not learn: vgg16/conv[123]_*
    rates: tuple[str, ...] = ()  # multipliers of the rate by pattern: conf*=10
    schedule: str = "steps"  # steps or cosine
    drops: tuple[int, ...] = (80_000, 100_000)  # where schedule = steps divides the rate
    drop_factor: float = 0.1  # what the rate is multiplied by at each of drops
    warmup_steps: int = 0  # linear, from 0
    fresh_warmup_steps: int = 500  # at least so many without model.pretrained, where 1e-3 diverges
    iou_threshold: float = 0.5  # from which a prior matches
    neg_pos_ratio: float = 3.0  # mined negatives for each positive of a picture
    loc_weight: float = 1.0  # of the smooth L1 loss beside the softmax: the paper's alpha
    boundary_boxes: bool = True  # train default boxes that reach over the picture's edge
    cpu_devices: int = 0  # without accelerator: split the CPU into so many devices; 0: one
    parallel: str = "shard_map"  # shard_map or pmap: how the step is mapped over the devices
    log_every: int = 10  # steps between the rows of metrics.csv
    eval_every: int = 5_000  # steps between evaluations; the last step has one too
    checkpoint_every: int = 1_000  # steps between checkpoints; evaluations have one too
    keep_checkpoints: int = 2  # the latest so many; the best stays beside them
    max_skipped: int = 10  # steps in a row whose loss is not finite, then the run ends; 0: any
    watchdog_minutes: float = 30.0  # a process without a step for so long ends; 0: it waits
    wandb: str = ""  # project of Weights & Biases that is shown the figures too; empty: none


@dataclasses.dataclass
class EvalConfig:
    """From outputs to detections, and their evaluation."""

    batch_size: int = 32  # pictures at once
    score_threshold: float = 0.01  # what scores no more is dropped before the suppression
    iou_threshold: float = 0.45  # of the non-maximum suppression
    clip_before_nms: bool = False  # clip boxes to the picture before it (torchvision), not after
    top_k: int = 400  # boxes of a class that the suppression looks at, the best
    max_detections: int = 200  # of a picture, all classes together
    flip: bool = False  # also look at the mirrored picture
    sizes: tuple[int, ...] = ()  # shorter sides of the inputs to look at; empty: the training's
    max_images: int = 0  # evaluate only the first so many pictures; 0: all
    ema: bool = True  # the weights' moving average, where the run keeps one


@dataclasses.dataclass
class Config:
    """All of a run."""

    seed: int = 0  # of the fresh parameters, the order of the pictures and their augmentation
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)


LOCAL: dict[str, tuple[str, ...]] = {
    "data": ("cache_dir", "mirror", "max_megapixels"),
    "train": ("wandb",),
}
"""Fields that say where this machine writes, what it runs, whom it contacts and what it may take.

XLA's compiled programs in `cache_dir` are native code. These fields come from the command line, a
config file that it names, the environment or the defaults, never from what is read as data.
"""

CHANGEABLE = ("model.dtype", "model.pretrained", "model.shared_classes")
"""Fields of `model` that a run can change when it goes on; the others make the network."""

_CHOICES = {
    ("model", "backbone"): ssd.BACKBONES,
    ("model", "padding"): ("", "torch", "tensorflow"),
    ("model", "dtype"): ("float32", "bfloat16"),
    ("model", "prior_sizes"): ("voc", "coco"),
    ("data", "dataset"): ("voc", "folder", "coco", "yolo", "synthetic"),
    ("data", "augment"): augment_lib.POLICIES,
    ("train", "optimizer"): ("sgd", "adam", "muon"),
    ("train", "schedule"): ("steps", "cosine"),
    ("train", "parallel"): ("shard_map", "pmap"),
}
_POSITIVE = {
    "model": ("image_size", "width"),
    "data": ("canvas", "threads", "max_megapixels"),
    "train": (
        "batch_size",
        "accumulate",
        "learning_rate",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
    ),
    "eval": ("batch_size", "top_k", "max_detections"),
}
_NOT_NEGATIVE = {
    "data": ("workers", "memory_gib"),
    "train": (
        "steps",
        "warmup_steps",
        "fresh_warmup_steps",
        "weight_decay",
        "cpu_devices",
        "scale_rate_from",
        "clip_norm",
        "max_skipped",
        "watchdog_minutes",
    ),
    "eval": ("max_images",),
}
_SHARES = {"data": ("max_bad_share",), "train": ("ema_decay",)}
_AT_MOST = {
    "model": {"image_size": 4_096, "image_width": 4_096, "width": 16},
    "data": {"canvas": 8_192, "threads": 1_024, "workers": 1_024},
    "train": {"cpu_devices": 1_024},
    "eval": {"top_k": 100_000, "max_detections": 100_000},
}
_LENGTHS = {"source_maps": 32, "aspect_ratios": 32, "prior_scales": 32, "sizes": 32}
# What a run may go on with when it is another than before: it does not change what is learnt.
_FREE: dict[str, tuple[str, ...]] = {
    "model": ("remat",),
    "data": (
        "archives",
        "cache_dir",
        "mirror",
        "threads",
        "workers",
        "memory_gib",
        "max_bad_share",
        "max_megapixels",
    ),
    "train": (
        "steps",
        "accumulate",
        "cpu_devices",
        "parallel",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "max_skipped",
        "watchdog_minutes",
        "wandb",
    ),
}


def validate(config: Config) -> None:
    """Checks the type and the value of every field.

    Raises:
      UserError: Naming the first field that is wrong, and what it may be.
    """
    _check_types(config)
    for (part, field), choices in _CHOICES.items():
        value = getattr(getattr(config, part), field)
        if value not in tuple(choices):
            raise errors.UserError(
                f"config.{part}.{field} is {shown(value)}; choose one of {', '.join(choices)}"
            )
    least = ssd.BACKBONES[config.model.backbone].least_side
    for field in ("image_size", "image_width"):
        side = getattr(config.model, field)
        if side < least and (field, side) != ("image_width", 0):
            raise errors.UserError(
                f"config.model.{field} is {side}; the maps of {config.model.backbone} need at "
                f"least {least} pixels"
            )
    if len(config.model.mean) not in (0, 3):
        raise errors.UserError(
            f"config.model.mean is {shown(config.model.mean)}; give three numbers, RGB in 0..255, "
            f"or none"
        )
    drawn = config.data.interpolations
    if not drawn or set(drawn) - set(augment_lib.INTERPOLATIONS):
        raise errors.UserError(
            f"config.data.interpolations is {shown(drawn)}; give some of "
            f"{augment_lib.INTERPOLATIONS}"
        )
    _check_boxes(config.model)
    _check_sizes(config.eval.sizes, least)
    rate_multipliers(config.train.rates)
    for fields, low, high, meaning in (
        (_POSITIVE, 1e-12, math.inf, "above 0"),
        (_NOT_NEGATIVE, 0, math.inf, "at least 0"),
        (_SHARES, 0, 1, "from 0 to 1"),
    ):
        for part, names in fields.items():
            for field in names:
                value = getattr(getattr(config, part), field)
                if not low <= value <= high:
                    raise errors.UserError(
                        f"config.{part}.{field} is {value}; it must be {meaning}"
                    )
    _check_amounts(config)


def _check_types(config: Config) -> None:
    if not _fits(int, config.seed):
        raise _mistyped("config.seed", config.seed, int)
    for part, kinds in _FIELDS.items():
        for field, kind in kinds.items():
            value = getattr(getattr(config, part), field)
            if not _fits(kind, value):
                raise _mistyped(f"config.{part}.{field}", value, kind)


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is of a field's type, finite, and no longer than may be."""
    if isinstance(kind, types.GenericAlias):
        element = typing.get_args(kind)[0]
        fits = isinstance(value, tuple) and len(value) <= _MOST_VALUES
        return fits and all(_fits(element, each) for each in value)
    if kind is str:
        return isinstance(value, str) and _is_text(value)
    if kind is bool or isinstance(value, bool):
        return kind is type(value)
    if kind is int:
        return isinstance(value, int) and abs(value) < 2**63
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _is_text(value: str) -> bool:
    """Whether it can be a path: bytes that are no UTF-8 may be in it, as Python has them."""
    try:
        return b"\0" not in os.fsencode(value) and len(value) <= _MOST_CHARACTERS
    except UnicodeEncodeError:
        return False


def _mistyped(field: str, value: Any, kind: Any) -> errors.UserError:
    example = f", such as {_EXAMPLES[kind]}" if kind in _EXAMPLES else ""
    return errors.UserError(f"{field} is {shown(value)}; it must be {_named(kind)}{example}")


def _named(kind: Any, *, several: bool = False) -> str:
    """A field's type in words."""
    if isinstance(kind, types.GenericAlias):
        word = "tuples" if several else "a tuple"
        return f"{word} of {_named(typing.get_args(kind)[0], several=True)}"
    one, more = {
        int: ("a whole number", "whole numbers"),
        float: ("a finite number", "finite numbers"),
        bool: ("true or false", ""),
        str: (f"a text of at most {_MOST_CHARACTERS} characters", "texts"),
    }[kind]
    return more if several else one


def shown(value: Any) -> str:
    """The beginning of what somebody gave, for a message: in little time, however large it is."""
    return _SHORT.repr(value)


def _check_amounts(config: Config) -> None:
    """Bounds what a config makes this program allocate."""
    for part, limits in _AT_MOST.items():
        for field, most in limits.items():
            if (value := getattr(getattr(config, part), field)) > most:
                raise errors.UserError(f"config.{part}.{field} is {value}; it may be {most:,}")
    for part in ("model", "eval"):
        for field in _LENGTHS.keys() & _FIELDS[part].keys():
            if len(value := getattr(getattr(config, part), field)) > _LENGTHS[field]:
                raise errors.UserError(
                    f"config.{part}.{field} has {len(value)} entries; it may have {_LENGTHS[field]}"
                )
    _check_pixels(config)


def _check_pixels(config: Config) -> None:
    """Bounds the batches of an evaluation."""
    options = config.eval
    height, width = config.model.image_size, config.model.image_width or config.model.image_size
    sides = options.sizes or (min(height, width),)
    scales = [side / min(height, width) for side in sides]
    most = _AT_MOST["model"]["image_size"]
    if max(scales) * max(height, width) > most:
        raise errors.UserError(
            f"config.eval.sizes has {max(sides)}, which makes an input of more than {most:,} "
            f"pixels on a side; give smaller ones"
        )
    looks = sum(scale**2 for scale in scales) * height * width * (1 + options.flip)
    for pixels, what in (
        (looks, "inputs of config.model.image_size and config.eval.sizes"),
        (config.data.canvas**2, "canvases of config.data.canvas"),
    ):
        if options.batch_size * pixels > _MOST_PIXELS:
            raise errors.UserError(
                f"config.eval.batch_size is {options.batch_size}: the {what} have "
                f"{options.batch_size * pixels:.0f} pixels together; make it at most "
                f"{max(1, int(_MOST_PIXELS / pixels))}"
            )


def _check_boxes(model: ModelConfig) -> None:
    if not model.atrous and not model.backbone.startswith("vgg"):
        raise errors.UserError(
            f"config.model.atrous is False, and {model.backbone} has no such layers; give "
            f"--config.model.atrous=true"
        )
    maps, ratios = model.source_maps, model.aspect_ratios
    if min(maps, default=0) < 0 or list(maps) != sorted(maps):
        raise errors.UserError(
            f"config.model.source_maps is {shown(maps)}; give the number of a map for each scale, "
            f"never falling, such as '(0, 1, 2, 3, 4, 4)'"
        )
    if any(len(of_scale) > 16 or min(of_scale, default=2) <= 1 for of_scale in ratios):
        raise errors.UserError(
            f"config.model.aspect_ratios is {shown(ratios)}; give at most 16 ratios above 1 for "
            f"each scale, or once for all, such as '((2,),)' or '((),)'"
        )
    scales = model.prior_scales
    if not all(0 < scale <= 1 for scale in scales) or list(scales) != sorted(scales):
        raise errors.UserError(
            f"config.model.prior_scales is {shown(scales)}; give a share of the input's shorter "
            f"side for each scale, above 0, at most 1 and never falling, such as "
            f"'(0.1, 0.2, 0.37, 0.54, 0.71, 0.88)'"
        )
    gaps = model.gaps
    if min(gaps, default=1) < 1 or list(gaps) != sorted(set(gaps)):
        raise errors.UserError(
            f"config.model.gaps is {shown(gaps)}; give the numbers of unused logits, rising from 1"
        )


def _check_sizes(sizes: tuple[int, ...], least: int) -> None:
    if len(set(sizes)) < len(sizes) or min(sizes, default=least) < least:
        raise errors.UserError(
            f"config.eval.sizes is {shown(sizes)}; give different whole numbers of pixels, each at "
            f"least {least}, such as '(300, 400)', or '()'"
        )


def rate_multipliers(rates: Sequence[str]) -> dict[str, float]:
    """`PATTERN=NUMBER` of each of `config.train.rates`, as a mapping.

    Raises:
      UserError: If one is not of that form, or the number is not above 0.
    """
    found = {}
    for text in rates:
        pattern, _, number = text.rpartition("=")
        try:
            found[pattern] = float(number)
        except ValueError:
            found[pattern] = math.nan
        if not (pattern and 0 < found[pattern] < math.inf):
            raise errors.UserError(
                f"config.train.rates has {shown(text)}; give PATTERN=NUMBER, such as 'conf*=10'; "
                f"what is not to learn at all goes into config.train.freeze"
            )
    return found


def differences(there: Config, here: Config) -> dict[str, str]:
    """What differs between two configs and changes what is learnt: dotted name to both values."""
    found = {"seed": _both(there.seed, here.seed)} if there.seed != here.seed else {}
    for part in ("model", "data", "train"):
        free = _FREE.get(part, ())
        if part == "train" and here.train.schedule == "cosine":
            free = tuple(name for name in free if name != "steps")  # its rate depends on the end
        theirs = dataclasses.asdict(getattr(there, part))
        for name, ours in dataclasses.asdict(getattr(here, part)).items():
            if name not in free and theirs[name] != ours:
                found[f"{part}.{name}"] = _both(theirs[name], ours)
    return found


def _both(there: Any, here: Any) -> str:
    return f"{there!r} there, {here!r} here"


def to_dict(config: Config) -> dict[str, Any]:
    """A config as JSON knows it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def save(path: str | Path, config: Config, class_names: tuple[str, ...]) -> None:
    """Writes a run's config, and the names of its classes, as JSON."""
    content = {
        "version": VERSION,
        "config": to_dict(config),
        "class_names": list(class_names),
    }
    files.write(path, json.dumps(content, indent=2) + "\n")


def load(path: str | Path) -> tuple[Config, tuple[str, ...]]:
    """Reads what `save` wrote: the config and the class names.

    The file may be somebody else's: it is checked as `from_mapping` does it, and `LOCAL` fields are
    this machine's.

    Raises:
      UserError: If the file is missing, is not such a file, is of a newer version, or has a field
        that is not known or of a wrong type or value.
    """
    path = Path(path)
    try:
        data = files.read(path, at_most=MOST_BYTES)
        content = parse(data, where=f"{path} is not the config of a run")
    except FileNotFoundError:
        raise errors.UserError(
            f"{path} is missing: give the workdir of a training run, which holds it"
        ) from None
    except OSError as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
        raise errors.UserError(f"{path}: {error.strerror}") from None
    try:
        content = {"version": 1, **content}  # the first: none
        check_version(path, content["version"])
        config, names = content["config"], content["class_names"]
    except KeyError as error:
        raise errors.UserError(f"{path} is not the config of a run: it has no {error}") from None
    except TypeError as error:
        raise errors.UserError(f"{path} is not the config of a run: {error}") from None
    return from_mapping(config, where=path), check_class_names(names, where=path)


def parse(text: str | bytes, *, where: object) -> Any:
    """JSON that may be somebody else's.

    Args:
      text: The JSON, as UTF-8 where it is bytes; at most `MOST_BYTES`.
      where: What it is in, for the message.

    Raises:
      UserError: If it is none, or larger.
    """
    if len(text) > MOST_BYTES:
        raise errors.UserError(f"{where}: its config is larger than {MOST_BYTES} bytes")
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise errors.UserError(f"{where}: no JSON ({reason})") from None


def check_class_names(names: Any, *, where: object) -> tuple[str, ...]:
    """The class names that came with a trained network.

    Args:
      names: As JSON has them.
      where: What they are in, for the message.

    Raises:
      UserError: If they are no list of different texts that are not empty.
    """
    if not isinstance(names, list | tuple) or not 0 < len(names) <= _MOST_CLASSES:
        raise errors.UserError(
            f"{where}: class_names is {shown(names)}; it must be a list of 1 to {_MOST_CLASSES:,} "
            f"names"
        )
    for name in names:
        if not isinstance(name, str) or not (name.strip() and _is_text(name) and _is_unicode(name)):
            raise errors.UserError(
                f"{where}: class_names has {shown(name)}; a name is a text that is not empty, of "
                f"at most {_MOST_CHARACTERS} characters"
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise errors.UserError(f"{where}: class_names has {shown(twice)} twice")
    return tuple(names)


def _is_unicode(text: str) -> bool:
    """Whether it has no half characters, which nobody can draw or write."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check_version(path: str | Path, version: int) -> None:
    """Refuses what a newer ssd_jax wrote into a workdir.

    Args:
      path: Of the config or checkpoint, for the message.
      version: The `VERSION` that it was written with.

    Raises:
      UserError: If it is above this one's.
      TypeError: If it is no whole number.
    """
    if type(version) is not int:
        raise TypeError(f"its version is {shown(version)}")
    if version > VERSION:
        raise errors.UserError(
            f"{path} was written by a newer ssd_jax (format {shown(version)}, this one reads "
            f"{VERSION}): update ssd_jax"
        )


def from_mapping(values: Any, *, where: object) -> Config:
    """A config that came with a trained network, from its fields by name.

    Fields that are absent keep their defaults, `LOCAL` ones do in any case.

    Args:
      values: As JSON has them: parts by name, of fields by name, tuples as lists.
      where: What they are in, for the message.

    Raises:
      UserError: Naming `where` and the first field that is not known, or of a wrong type or value.
    """
    config = Config()
    for name, value in _checked_names(values, Config, f"{where}: config").items():
        if name == "seed":
            config.seed = _as_field(value, int)
            continue
        part = getattr(config, name)
        given = _checked_names(value, type(part), f"{where}: config.{name}")
        for field in given.keys() - set(LOCAL.get(name, ())):
            setattr(part, field, _as_field(given[field], _FIELDS[name][field]))
    try:
        validate(config)
    except errors.UserError as error:
        raise errors.UserError(f"{where}: {error}") from None
    return config


def _checked_names(values: Any, kind: type, where: str) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise errors.UserError(f"{where} is {shown(values)}; it must be an object of fields")
    if unknown := values.keys() - {field.name for field in dataclasses.fields(kind)}:
        raise errors.UserError(
            f"{where} has an unknown field {shown(min(unknown))}: it may be of another version of "
            f"ssd_jax"
        )
    return values


def _as_field(value: Any, kind: Any) -> Any:
    """A value of JSON as its field has it, where it fits: lists as tuples, 8.0 as a whole 8."""
    if isinstance(value, list) and isinstance(kind, types.GenericAlias):
        return tuple(_as_field(each, typing.get_args(kind)[0]) for each in value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _fields_of(part: type) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(part)}


_FIELDS = {
    "model": _fields_of(ModelConfig),
    "data": _fields_of(DataConfig),
    "train": _fields_of(TrainConfig),
    "eval": _fields_of(EvalConfig),
}
_EXAMPLES = {
    tuple[int, ...]: "'(300, 400)'",
    tuple[float, ...]: "'(123, 117, 104)'",
    tuple[str, ...]: "\"('conf*=10',)\"",
    tuple[tuple[float, ...], ...]: "'((2,),)'",
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
