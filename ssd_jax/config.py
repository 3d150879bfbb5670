"""Every tunable and its default, each in exactly one place.

A file in `configs/` returns a `Config` from `get_config()`; a command line changes single fields:
`python train.py --config configs/ssd300.py --config.train.batch_size=8`. Such a file is code, which
its user trusts; what a trained network comes with is data: `config_files`.
"""

import dataclasses
import os
from typing import Any

from ssd_jax import cache, resampling


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
    clip_priors: bool = False  # clamp default boxes to the image (amdegroot, lufficc)
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
    max_bad_share: float = 0.01  # of the training images may be unreadable; they are left out
    difficult: bool = True  # train on objects marked difficult, as the authors do
    augment: str = "ssd"  # ssd (all of the paper's), crop (no expansion) or flip (neither)
    channel_shuffle: bool = False  # with ssd: shuffle colour channels (amdegroot, lufficc)
    interpolations: tuple[str, ...] = resampling.INTERPOLATIONS  # with ssd: one is drawn an image
    canvas: int = 500  # larger images are shrunk to this on the host; one as wide saves a copy
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
    neg_pos_ratio: float = 3.0  # mined negatives for each positive of an image
    loc_weight: float = 1.0  # of the smooth L1 loss beside the softmax: the paper's alpha
    boundary_boxes: bool = True  # train default boxes that reach over the image's edge
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

    batch_size: int = 32  # images at once
    score_threshold: float = 0.01  # what scores no more is dropped before the suppression
    iou_threshold: float = 0.45  # of the non-maximum suppression
    clip_before_nms: bool = False  # clip boxes to the image before it (torchvision), not after
    top_k: int = 400  # boxes of a class that the suppression looks at, the best
    max_detections: int = 200  # of an image, all classes together
    flip: bool = False  # also look at the mirrored image
    sizes: tuple[int, ...] = ()  # shorter sides of the inputs to look at; empty: the training's
    max_images: int = 0  # evaluate only the first so many images; 0: all
    ema: bool = True  # the weights' moving average, where the run keeps one


@dataclasses.dataclass
class Config:
    """All of a run."""

    seed: int = 0  # of the fresh parameters, the order of the images and their augmentation
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
