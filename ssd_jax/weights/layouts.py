"""How others name and store the weights of a VGG-16 or an SSD: one table for each.

Everything here is facts about files. `loading.py` acts on them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

Mean = tuple[float, ...]  # of red, green, blue

CAFFE_MEAN: Mean = (123.0, 117.0, 104.0)  # RGB in 0..255, as all means here; SSD's own
_KERAS_MEAN: Mean = (123.68, 116.779, 103.939)
_IMAGENET_MEAN: Mean = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_STD: Mean = (0.229 * 255, 0.224 * 255, 0.225 * 255)
_TORCHVISION_SSD_MEAN: Mean = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)


class Layout(NamedTuple):
    """What has to be known of a file to use its weights.

    Attributes:
      title: Whose it is, in words.
      mark: Name of an entry that tells it from the others that stand before it in `LAYOUTS`.
      entries: Path of our parameter by the name of theirs.
      channels_first: Kernels are (out, in, rows, columns), or (out, in), as torch and Caffe have
        them; else (rows, columns, in, out), or (in, out).
      bgr: conv1_1 takes blue, green, red.
      mean: RGB in 0..255 that is subtracted from pictures.
      std: That the difference is divided by.
      prior_sizes: Of a detector, `"voc"` or `"coco"`; empty: those of its number of classes.
      clip_priors: See `config.ModelConfig`, like the next.
      clip_prior_sizes: Likewise.
      clip_before_nms: See `config.EvalConfig`.
    """

    title: str
    mark: str
    entries: Mapping[str, str]
    channels_first: bool = True
    bgr: bool = False
    mean: Mean = CAFFE_MEAN
    std: Mean = (1.0, 1.0, 1.0)
    prior_sizes: str = ""
    clip_priors: bool = False
    clip_prior_sizes: bool = False
    clip_before_nms: bool = False


BODY = tuple(
    f"conv{block}_{index}"
    for block, layers in enumerate((2, 2, 3, 3, 3), start=1)
    for index in range(1, layers + 1)
)
"""The 13 convolutions that every VGG-16 has."""

_NORM = "vgg16/conv4_3_norm/scale"
_EXTRAS = tuple(f"conv{level}_{index}" for level in range(6, 11) for index in (1, 2))
_SOURCES = ("conv4_3_norm", "fc7", *_EXTRAS[1::2])
# Of torch's sequence of convolutions, ReLUs and pools: where the convolutions stand.
_TORCH_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_TORCH_BODY = dict(zip(map(str, _TORCH_INDICES), BODY, strict=True))
_REDUCED_BODY = {**_TORCH_BODY, "31": "fc6", "33": "fc7"}
_KERAS_BODY = {name.replace("conv", "block").replace("_", "_conv"): name for name in BODY}


def _table(
    layers: Mapping[str, str], kernel: str = "{}.weight", bias: str = "{}.bias"
) -> dict[str, str]:
    """Entries of a file by the names of its layers, and how it names their arrays."""
    ours = {theirs: f"vgg16/{name}" if _in_body(name) else name for theirs, name in layers.items()}
    kernels = {kernel.format(theirs): f"{path}/kernel" for theirs, path in ours.items()}
    return kernels | {bias.format(theirs): f"{path}/bias" for theirs, path in ours.items()}


def _in_body(name: str) -> bool:
    return name in BODY or name in ("fc6", "fc7")


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
    clip_before_nms=True,
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
_TORCHVISION_VGG = Layout(
    title="torchvision's VGG-16",
    mark="features.0.weight",
    entries=_table(
        {**_under("features.", _TORCH_BODY), "classifier.0": "fc6", "classifier.3": "fc7"}
    ),
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
)
# torchvision publishes the Caffe network's convolutions in the form of its own VGG-16, with
# NaN for what it lacks.
_TORCHVISION_FEATURES = Layout(
    title="torchvision's VGG-16, features only",
    mark="features.0.weight",
    entries=_table(_under("features.", _TORCH_BODY)),
    mean=_TORCHVISION_SSD_MEAN,
)
_REDUCED_VGG = Layout(
    title="VGG-16 with reduced fc6 and fc7 in torch's form",
    mark="31.weight",
    entries=_table(_REDUCED_BODY),
)
_KERAS_VGG = Layout(
    title="Keras' VGG-16",
    mark="block1_conv1/kernel",
    entries=_table({**_KERAS_BODY, "fc1": "fc6", "fc2": "fc7"}, "{}/kernel", "{}/bias"),
    channels_first=False,
    bgr=True,
    mean=_KERAS_MEAN,
)
_CAFFE = Layout(
    title="Caffe's VGG-16 or SSD",
    mark="conv1_1/0",
    entries={
        **_table(
            {
                **{name: name for name in (*BODY, "fc6", "fc7", *_EXTRAS)},
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
_OURS = Layout(
    title="arrays by our layers' names",
    mark="",
    entries={},  # every name is its own path
    channels_first=False,
)
LAYOUTS = (
    _TORCHVISION_SSD, _LUFFICC_SSD, _AMDEGROOT_SSD, _TORCHVISION_VGG, _REDUCED_VGG, _KERAS_VGG,
    _CAFFE,
)  # fmt: skip

# Containers around a state dict, and what DataParallel adds to its names.
_WRAPPERS = re.compile(r"((model|state_dict|model_state_dict|module)\.)*")
_KERAS_LAYER = re.compile(r"(?:^|/)(block\d_conv\d|fc[12]|predictions)/")


def recognise(arrays: Mapping[str, np.ndarray]) -> tuple[Layout, dict[str, str]]:
    """Whose names these are.

    Args:
      arrays: Of a file, by name.

    Returns:
      The layout, and the file's name of each entry by the name that the layout has for it.
    """
    plain = {_plain(name, array): name for name, array in arrays.items()}
    for layout in LAYOUTS:
        for name in plain:
            prefix = name.removesuffix(layout.mark)
            if name.endswith(layout.mark) and _WRAPPERS.fullmatch(prefix):
                named = {n.removeprefix(prefix): own for n, own in plain.items()}
                return _without_classifier(layout, named, arrays), named
    return _OURS, {name: name for name in arrays}


def _plain(name: str, array: np.ndarray) -> str:
    """Keras' `fc1/fc1/kernel:0`, `fc1/fc1_W_1:0` and `layers/fc1/vars/0` are one name."""
    layer = _KERAS_LAYER.search(name)
    return f"{layer[1]}/{'bias' if array.ndim == 1 else 'kernel'}" if layer else name


def _without_classifier(
    layout: Layout, named: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> Layout:
    """The two VGG-16s of torchvision differ in the classifier only: one has none, or only NaN."""
    if layout is not _TORCHVISION_VGG:
        return layout
    name = named.get("classifier.0.bias")
    there = name is not None and np.isfinite(arrays[name]).all()
    return _TORCHVISION_VGG if there else _TORCHVISION_FEATURES
