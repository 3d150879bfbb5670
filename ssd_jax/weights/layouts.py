"""How others name and store the weights of a backbone or an SSD: one table for each.

Everything here is facts about files. `loading.py` acts on them.
"""

import collections
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ssd_jax import errors
from ssd_jax.models import mobilenet_v3, ssd

Mean = tuple[float, ...]  # of red, green, blue

CAFFE_MEAN: Mean = (123.0, 117.0, 104.0)  # RGB in 0..255, as all means here; SSD's own
_KERAS_MEAN: Mean = (123.68, 116.779, 103.939)
_IMAGENET_MEAN: Mean = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_STD: Mean = (0.229 * 255, 0.224 * 255, 0.225 * 255)
_UNSCALED: Mean = (1.0, 1.0, 1.0)
_HALF: Mean = (127.5, 127.5, 127.5)
_TORCHVISION_SSD_MEAN: Mean = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)


class Layout(NamedTuple):
    """What has to be known of a file to use its weights.

    Attributes:
      title: Whose it is, in words.
      mark: Name of an entry that tells the family; which of it a file is, all its names tell.
      entries: Path of our parameter by the name of theirs. BatchNorm's running mean and variance
        are `mean` and `variance` beside `scale` and `bias`, and are folded into these.
      body: What it is, or is built on: one of `BODIES`; empty: any.
      unused: Names of what belongs to it and has no place here.
      epsilon: Of BatchNorm.
      channels_first: Kernels are (out, in, rows, columns), or (out, in), as torch and Caffe have
        them; else (rows, columns, in, out), or (in, out).
      bgr: The first convolution takes blue, green, red.
      mean: RGB in 0..255 that is subtracted from pictures.
      std: That the difference is divided by.
      padding: See `config.ModelConfig`; empty: it makes no difference.
      prior_sizes: Of a detector, `"voc"` or `"coco"`; empty: those of its number of classes.
      clip_priors: See `config.ModelConfig`, like the next.
      clip_prior_sizes: Likewise.
      detection: Fields of `config.EvalConfig` that a detector was published with.
    """

    title: str
    mark: str
    entries: Mapping[str, str]
    body: str = "vgg16"
    unused: Collection[str] = ()
    epsilon: float = 1e-5
    channels_first: bool = True
    bgr: bool = False
    mean: Mean = CAFFE_MEAN
    std: Mean = _UNSCALED
    padding: str = ""
    prior_sizes: str = ""
    clip_priors: bool = False
    clip_prior_sizes: bool = False
    detection: Mapping[str, Any] = MappingProxyType({})


class Body(NamedTuple):
    """A backbone, as our parameters have it.

    Attributes:
      title: Its name, in words.
      layers: Paths of the layers that every file of it has; the first takes the picture.
      affine: Those of them that have a scale.
    """

    title: str
    layers: tuple[str, ...]
    affine: tuple[str, ...]


BODIES = {
    name: Body(
        body.title,
        tuple(f"{name}/{layer}" for layer in body.layers),
        tuple(f"{name}/{layer}" for layer in body.affine),
    )
    for name, body in ssd.BACKBONES.items()
}
BODY = ssd.BACKBONES["vgg16"].layers
"""The 13 convolutions that every VGG-16 has."""

_NORM = "vgg16/conv4_3_norm/scale"
_EXTRAS = tuple(f"conv{level}_{index}" for level in range(6, 11) for index in (1, 2))
_SOURCES = ("conv4_3_norm", "fc7", *_EXTRAS[1::2])
_FC = ("fc6", "fc7")
# Of torch's sequence of convolutions, ReLUs and pools: where the convolutions stand.
_TORCH_BODY = {
    conv.removeprefix("features."): layer
    for layer, (conv, _) in ssd.BACKBONES["vgg16"].torchvision.items()
}
_REDUCED_BODY = {**_TORCH_BODY, "31": "fc6", "33": "fc7"}
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
_COUNTER = "num_batches_tracked"  # of BatchNorm in training


def _table(
    layers: Mapping[str, str],
    kernel: str = "{}.weight",
    bias: str = "{}.bias",
    *,
    body: str = "vgg16",
) -> dict[str, str]:
    """Entries of a file by the names of its layers, and how it names their arrays."""
    inner = (*ssd.BACKBONES[body].layers, *_FC)
    ours = {theirs: f"{body}/{name}" if name in inner else name for theirs, name in layers.items()}
    kernels = {kernel.format(theirs): f"{path}/kernel" for theirs, path in ours.items()}
    return kernels | {bias.format(theirs): f"{path}/bias" for theirs, path in ours.items()}


def _convolution(path: str, conv: str, norm: str) -> dict[str, str]:
    """Entries of a convolution with a bias or, where it has a name, a BatchNorm behind it."""
    kernel = {f"{conv}.weight": f"{path}/kernel"}
    if not norm:
        return {**kernel, f"{conv}.bias": f"{path}/bias"}
    return kernel | {f"{norm}.{theirs}": f"{path}/{ours}" for theirs, ours in _BATCH_NORM.items()}


def _torchvision(name: str) -> Layout:
    """What torchvision calls the weights of a backbone in a network that classifies ImageNet."""
    body = ssd.BACKBONES[name]
    entries: dict[str, str] = {}
    for layer, (conv, norm) in body.torchvision.items():
        entries |= _convolution(f"{name}/{layer}", conv, norm)
    return Layout(
        title=f"torchvision's {body.title}",
        mark=next(iter(entries)),
        entries=entries,
        body=name,
        epsilon=body.epsilon,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        padding="torch" if body.style == "ssdlite" else "",
    )


def _with_classifier(layout: Layout) -> Layout:
    """A VGG with what becomes fc6 and fc7."""
    layers = {"classifier.0": "fc6", "classifier.3": "fc7"}
    return layout._replace(entries={**layout.entries, **_table(layers, body=layout.body)})


def _under(prefix: str, layers: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}{theirs}": ours for theirs, ours in layers.items()}


def _numbered(prefix: str, names: Iterable[str]) -> dict[str, str]:
    return {f"{prefix}{index}": name for index, name in enumerate(names)}


def _heads(kind: str) -> list[str]:
    return [f"{kind}{level}" for level in range(len(_SOURCES))]


_TORCHVISION_SSD = Layout(
    title="torchvision's SSD",
    mark="backbone.features.0.weight",
    entries={
        **_table(
            {
                **_under("backbone.features.", dict(list(_TORCH_BODY.items())[:10])),
                "backbone.extra.0.1": "conv5_1",
                "backbone.extra.0.3": "conv5_2",
                "backbone.extra.0.5": "conv5_3",
                "backbone.extra.0.7.1": "fc6",
                "backbone.extra.0.7.3": "fc7",
                **{f"backbone.extra.{n}.0": f"conv{n + 5}_1" for n in range(1, 6)},
                **{f"backbone.extra.{n}.2": f"conv{n + 5}_2" for n in range(1, 6)},
                **_numbered("head.regression_head.module_list.", _heads("loc")),
                **_numbered("head.classification_head.module_list.", _heads("conf")),
            }
        ),
        "backbone.scale_weight": _NORM,
    },
    mean=_TORCHVISION_SSD_MEAN,
    prior_sizes="coco",
    clip_prior_sizes=True,
    detection={"clip_before_nms": True},
)
_LUFFICC_SSD = Layout(
    title="lufficc's SSD",
    mark="backbone.vgg.0.weight",
    entries={
        **_table(
            {
                **_under("backbone.vgg.", _REDUCED_BODY),
                **_numbered("backbone.extras.", _EXTRAS),
                **_numbered("box_head.predictor.reg_headers.", _heads("loc")),
                **_numbered("box_head.predictor.cls_headers.", _heads("conf")),
            }
        ),
        "backbone.l2_norm.weight": _NORM,
    },
    clip_priors=True,
)
_AMDEGROOT_SSD = Layout(
    title="amdegroot's SSD",
    mark="vgg.0.weight",
    entries={
        **_table(
            {
                **_under("vgg.", _REDUCED_BODY),
                **_numbered("extras.", _EXTRAS),
                **_numbered("loc.", _heads("loc")),
                **_numbered("conf.", _heads("conf")),
            }
        ),
        "L2Norm.weight": _NORM,
    },
    clip_priors=True,
)
_TORCHVISION = {name: _torchvision(name) for name in ssd.BACKBONES}
_TORCHVISION |= {name: _with_classifier(_TORCHVISION[name]) for name in ("vgg16", "vgg19")}
# torchvision publishes the Caffe network's convolutions in the form of its own VGG-16, with
# NaN for what it lacks.
_TORCHVISION_FEATURES = _torchvision("vgg16")._replace(
    title="torchvision's VGG-16, features only", mean=_TORCHVISION_SSD_MEAN, std=_UNSCALED
)
_MOBILENET_V3 = _TORCHVISION["mobilenet_v3_large"]
_WIDER = tuple(
    name
    for name, ours in _MOBILENET_V3.entries.items()
    if ours.partition("/")[2].startswith(mobilenet_v3.TAIL)
)
_LAST_NORM = _WIDER[-1]
_MOBILENET_V3_WIDE = _MOBILENET_V3._replace(
    title="torchvision's MobileNetV3-Large, whose last blocks are wider",
    entries={name: ours for name, ours in _MOBILENET_V3.entries.items() if name not in _WIDER},
    unused=_WIDER,
)


def _in_two_parts(name: str) -> str:
    """What SSDLite calls an entry of the classifier: its maps are the ends of two sequences."""
    _, number, rest = name.split(".", 2)
    first, block = mobilenet_v3.SOURCE + 1, int(number)
    inner = rest.removeprefix("block.")
    if block == first and inner.startswith("0."):  # the expansion
        return f"backbone.features.0.{block}.{inner.removeprefix('0.')}"
    if block == first:
        return f"backbone.features.1.0.{inner}"
    part, place = (0, block) if block < first else (1, block - first)
    return f"backbone.features.{part}.{place}.{rest}"


def _lite_layers() -> dict[str, str]:
    """Entries of SSDLite's extra layers and heads."""
    entries: dict[str, str] = {}
    for n in range(4):
        for index, part in enumerate(("squeeze", "depthwise", "project")):
            theirs = f"backbone.extra.{n}.{index}"
            entries |= _convolution(f"extra{n}/{part}", f"{theirs}.0", f"{theirs}.1")
    for kind, name in (("loc", "regression"), ("conf", "classification")):
        for n in range(6):
            theirs = f"head.{name}_head.module_list.{n}"
            entries |= _convolution(f"{kind}{n}/depthwise", f"{theirs}.0.0", f"{theirs}.0.1")
            entries |= _convolution(f"{kind}{n}", f"{theirs}.1", "")
    return entries


_TORCHVISION_SSDLITE = _MOBILENET_V3._replace(
    title="torchvision's SSDLite",
    mark=_in_two_parts(_MOBILENET_V3.mark),
    entries={_in_two_parts(name): ours for name, ours in _MOBILENET_V3.entries.items()}
    | _lite_layers(),
    mean=_HALF,
    std=_HALF,
    prior_sizes="coco",
    clip_prior_sizes=True,
    detection={
        "clip_before_nms": True,
        "score_threshold": 0.001,
        "iou_threshold": 0.55,
        "top_k": 300,
        "max_detections": 300,
    },
)
_REDUCED_VGG = Layout(
    title="VGG-16 with reduced fc6 and fc7 in torch's form",
    mark="31.weight",
    entries=_table(_REDUCED_BODY),
)
_KERAS = tuple(
    Layout(
        title=f"Keras' {ssd.BACKBONES[name].title}",
        mark="block1_conv1/kernel",
        entries=_table(
            {
                **{n.replace("conv", "block").replace("_", "_conv"): n for n in layers},
                "fc1": "fc6",
                "fc2": "fc7",
            },
            "{}/kernel",
            "{}/bias",
            body=name,
        ),
        body=name,
        channels_first=False,
        bgr=True,
        mean=_KERAS_MEAN,
    )
    for name, layers in ((name, ssd.BACKBONES[name].layers) for name in ("vgg16", "vgg19"))
)
_CAFFE = Layout(
    title="Caffe's VGG-16 or SSD",
    mark="conv1_1/0",
    entries={
        **_table(
            {
                **{name: name for name in (*BODY, *_FC, *_EXTRAS)},
                **{f"{source}_mbox_loc": f"loc{n}" for n, source in enumerate(_SOURCES)},
                **{f"{source}_mbox_conf": f"conf{n}" for n, source in enumerate(_SOURCES)},
            },
            "{}/0",
            "{}/1",
        ),
        "conv4_3_norm/0": _NORM,
    },
    bgr=True,
)
_CAFFE_VGG19 = Layout(
    title="Caffe's VGG-19",
    mark="conv1_1/0",
    entries=_table(
        {name: name for name in (*ssd.BACKBONES["vgg19"].layers, *_FC)},
        "{}/0",
        "{}/1",
        body="vgg19",
    ),
    body="vgg19",
    bgr=True,
)
_MOBILENET_V2_FOLDED = Layout(
    title="MobileNetV2 with folded BatchNorm",
    mark="conv_stem/kernel",
    entries={
        f"{name}/{kind}": f"mobilenet_v2/{name}/{kind}"
        for name in ssd.BACKBONES["mobilenet_v2"].layers
        for kind in ("kernel", "bias")
    },
    body="mobilenet_v2",
    channels_first=False,
    mean=_HALF,
    std=_HALF,
    padding="tensorflow",
)
OURS = Layout(
    title="arrays by our layers' names",
    mark="",
    entries={},  # every name is its own path
    body="",
    channels_first=False,
)
LAYOUTS = (
    _TORCHVISION_SSD, _TORCHVISION_SSDLITE, _LUFFICC_SSD, _AMDEGROOT_SSD, *_TORCHVISION.values(),
    _REDUCED_VGG, *_KERAS, _CAFFE, _CAFFE_VGG19, _MOBILENET_V2_FOLDED,
)  # fmt: skip

# What torch puts into names where a part of a network is compiled, sharded or computed again.
_INSERTED = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Prefixes of an average of the weights, which is what its makers evaluate, and of moments.
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|averaged?)([^a-z]|$)")
_MOMENTS = re.compile(r"(^|[^a-z])(optim\w*|exp_avg\w*|moment\w*|grads?|gradients?)([^a-z]|$)")
_WRAPPERS = re.compile(r"((model|net|network|state_dict|model_state_dict|module|detector)\.)*")
_OF_AVERAGE, _OF_WEIGHTS, _OF_OTHERS = range(3)  # what a prefix tells
_MOST_PREFIXES, _MOST_COMPLETE = 200, 8  # of one layout, that are looked at
_DEEPEST = 12  # parts of an entry's name
_STAGE = re.compile(r"[a-z]*\d*")
_KERAS_OPTIMISER = re.compile(r"optimizer(_weights)?/")  # holds moments by the layers' names
_KERAS_LAYER = re.compile(r"(?:^|/)(block\d_conv\d|fc[12]|predictions)/")


class _Candidate(NamedTuple):
    """A layout that some names of a file may follow.

    Attributes:
      layout: The layout.
      prefix: Stands before all its entries in the file.
      named: The file's name of each name under the prefix, without it.
      faults: Entries of its backbone that are not there, and others that are in their place.
    """

    layout: Layout
    prefix: str
    named: dict[str, str]
    faults: int

    def rank(self) -> tuple[int, int, int]:
        """The less, the better: whole, then rather a detector, then the prefix."""
        entries = sum(name in self.named for name in self.layout.entries)
        return self.faults, -entries, self.kind()

    def kind(self) -> int:
        """What the prefix says: an average of the weights, the weights as usual, nothing."""
        if _AVERAGE.search(self.prefix.lower()):
            return _OF_AVERAGE
        return _OF_WEIGHTS if _WRAPPERS.fullmatch(self.prefix) else _OF_OTHERS


def recognise(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[Layout, dict[str, str]]:
    """Whose names these are.

    All entries of a layout may have a common prefix, of containers and wrappers, whatever it is.
    Where several are whole, the average of a model's weights is taken, then what has a usual name
    such as `model.`; the layout's title says so. Moments of an optimizer never are.

    Args:
      path: The file, for messages.
      arrays: Its arrays, by name.

    Returns:
      The layout, and the file's name of each entry by the name that the layout has for it.

    Raises:
      UserError: If two arrays are one entry of the layout, or two networks as good as each other.
    """
    plain = by_entry(
        path,
        (
            (_plain(name, array), name)
            for name, array in arrays.items()
            if not _KERAS_OPTIMISER.match(name)
        ),
    )
    found = [candidate for layout in LAYOUTS for candidate in _candidates(layout, plain)]
    if not found:
        return OURS, {name: name for name in arrays}
    best = min(found, key=_Candidate.rank)
    layout = _as_far_as_it_fits(best.layout, best.named, arrays)
    others = [
        other
        for other in found
        if other.layout is best.layout and other is not best and best.faults == other.faults == 0
    ]
    for other in others:
        if best.kind() == other.kind() == _OF_OTHERS and not _same(best, other, arrays):
            by_entry(path, (*best.named.items(), *other.named.items()))
    if others:
        rest = ", ".join(repr(other.prefix[:80]) for other in others)
        title = f"{layout.title} under {best.prefix[:80]!r} ({rest} is whole too)"
        layout = layout._replace(title=title)
    return layout, best.named


def _same(one: _Candidate, other: _Candidate, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether two candidates have the same numbers: the same network twice."""
    return all(
        name in other.named and np.array_equal(arrays[own], arrays[other.named[name]])
        for name, own in one.named.items()
        if name in one.layout.entries
    )


def _candidates(layout: Layout, plain: Mapping[str, str]) -> Iterator[_Candidate]:
    """The prefixes with which most of a layout's backbone is among the names of a file."""
    # `layer1.0.conv1.weight` is no `conv1.weight` under a prefix.
    mark = layout.mark
    longer = tuple(name for name in layout.entries if name.endswith(mark) and name != mark)
    prefixes = {
        name.removesuffix(mark)
        for name in plain
        if name.endswith(mark) and not name.endswith(longer)
    } - {f"{name}/" for name in ssd.BACKBONES}  # with these they are our own names
    likely = [prefix for prefix in prefixes if not _MOMENTS.search(prefix.lower())]
    likely = sorted(likely, key=lambda prefix: (len(prefix), prefix))[:_MOST_PREFIXES]
    body = [name for name, ours in layout.entries.items() if _in_body(layout, ours)]
    lacks = {prefix: sum(prefix + name not in plain for name in body) for prefix in likely}
    fewest = min(lacks.values(), default=0)
    for prefix in [prefix for prefix in lacks if lacks[prefix] == fewest][:_MOST_COMPLETE]:
        named = {
            name.removeprefix(prefix): own for name, own in plain.items() if name.startswith(prefix)
        }
        yield _Candidate(layout, prefix, named, fewest + len(strange(layout, named)))


def nearest(names: Collection[str]) -> str:
    """In words, the layout that most of a file's names come near to, and what it lacks first.

    Args:
      names: Of all arrays in a file that is nobody's.
    """
    shares: dict[tuple[int, str], float] = collections.defaultdict(float)
    for name in names:
        ends = [0, *(match.end() for match in re.finditer("[./]", name))][-_DEEPEST:]
        for end in ends:
            for number in _layouts_with(name[end:]):
                shares[number, name[:end]] += 1 / len(LAYOUTS[number].entries)
    if not shares:
        return "no layout that is known has any of its names"
    number, prefix = max(shares, key=lambda pair: shares[pair])
    layout, there = LAYOUTS[number], {*names}
    lacking = next((name for name in layout.entries if prefix + name not in there), layout.mark)
    return f"it comes nearest to {layout.title}, of which it has no {prefix[:80]}{lacking}"


@functools.cache
def _by_entry() -> dict[str, list[int]]:
    """Numbers of the layouts that have an entry."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for number, layout in enumerate(LAYOUTS):
        for name in layout.entries:
            found[name].append(number)
    return dict(found)


def _layouts_with(entry: str) -> list[int]:
    return _by_entry().get(entry, [])


def is_number(array: np.ndarray) -> bool:
    """Whether an array is of truth values, integers or floats, bfloat16 among them."""
    return array.dtype.kind in "biuf" or array.dtype == ml_dtypes.bfloat16


def by_entry(path: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The file's name of each entry, from pairs of an entry and a name.

    Raises:
      UserError: If an entry has two names.
    """
    named: dict[str, str] = {}
    for entry, name in pairs:
        if entry in named:
            raise errors.UserError(
                f"{path}: {named[entry]} and {name} are both {entry}; give a file that has one of "
                "them"
            )
        named[entry] = name
    return named


def missing(layout: Layout, names: Collection[str]) -> list[str]:
    """The entries of a layout's body that are not among the names of a file."""
    return [
        name
        for name, ours in layout.entries.items()
        if _in_body(layout, ours) and name not in names
    ]


def strange(layout: Layout, names: Collection[str]) -> list[str]:
    """Names of a file that stand where a layout has its body, and are none of its entries.

    A deeper network of the same family has such: it would be loaded in part.
    """
    stages = {_stage(name) for name, ours in layout.entries.items() if _in_body(layout, ours)}
    known = {*layout.entries, *layout.unused}
    return [
        name
        for name in names
        if _stage(name) in stages and name not in known and not is_counter(name)
    ]


def is_counter(name: str) -> bool:
    """Whether an entry only counts BatchNorm's steps of training."""
    return name.endswith(_COUNTER)


def _in_body(layout: Layout, ours: str) -> bool:
    return ours.rpartition("/")[0] in BODIES[layout.body].layers


def _stage(name: str) -> str:
    """`layer2` of `layer2.0.conv1.weight`, `conv3` of `conv3_1/0`, `features`, `backbone`."""
    return _STAGE.match(name)[0]  # type: ignore[index]


def _plain(name: str, array: np.ndarray) -> str:
    """Keras' `fc1/fc1/kernel:0`, `fc1/fc1_W_1:0` and `layers/fc1/vars/0` end in one name."""
    if layer := _KERAS_LAYER.search(name):
        return f"{name[: layer.start(1)]}{layer[1]}/{'bias' if array.ndim == 1 else 'kernel'}"
    return _INSERTED.sub("", name)


def _as_far_as_it_fits(
    layout: Layout, named: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> Layout:
    """What differs in numbers and shapes only.

    Of torchvision's two VGG-16s one has no classifier, or only NaN. Its MobileNetV3 is wider at
    the end than the one in its SSDLite.
    """
    if layout is _TORCHVISION["vgg16"]:
        name = named.get("classifier.0.bias")
        array = arrays[name] if name is not None else np.array(np.nan)
        there = is_number(array) and np.isfinite(array).all()
        return layout if there else _TORCHVISION_FEATURES
    if layout is _MOBILENET_V3:
        name = named.get(_LAST_NORM)
        wide = name is not None and arrays[name].size > mobilenet_v3.LAST
        return _MOBILENET_V3_WIDE if wide else layout
    return layout
