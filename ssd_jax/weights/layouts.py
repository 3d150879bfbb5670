"""How third-party checkpoints of backbones and SSDs name and store their arrays: one table each.

This module contains only facts about files. `recognition.py` finds the table of a file and
`loading.py` applies it.
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ssd_jax.conventions import Conventions
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
    """Describes the arrays of one kind of checkpoint.

    Attributes:
      title: Name of the kind for messages.
      mark: Name of an entry that identifies the family; all names together identify the kind.
      entries: Path of our parameter by the name of the entry. BatchNorm's running mean and variance
        are `mean` and `variance` beside `scale` and `bias`, and are folded into these.
      backbone: Name in `BACKBONES` of the network or of its backbone; empty: any.
      unused: Names of entries that have no counterpart here.
      epsilon: Epsilon of BatchNorm.
      channels_first: Whether kernels are (out, in, rows, columns), or (out, in), as in torch and
        Caffe, rather than (rows, columns, in, out), or (in, out).
      bgr: Whether the first convolution takes blue, green, red.
      std: RGB that the difference of an image and the mean is divided by.
      conventions: What the network was trained with.
      detection: Fields of `config.EvalConfig` that a detector was published with.
    """

    title: str
    mark: str
    entries: Mapping[str, str]
    backbone: str = "vgg16"
    unused: Collection[str] = ()
    epsilon: float = 1e-5
    channels_first: bool = True
    bgr: bool = False
    std: Mean = _UNSCALED
    conventions: Conventions = Conventions(CAFFE_MEAN)
    detection: Mapping[str, Any] = MappingProxyType({})


class BackboneLayers(NamedTuple):
    """The layers of a backbone in our parameters.

    Attributes:
      title: Name of the backbone for messages.
      layers: Paths of the layers that every checkpoint contains; the first takes the image.
      affine: Paths of the layers that have a scale.
    """

    title: str
    layers: tuple[str, ...]
    affine: tuple[str, ...]


BACKBONES = {
    name: BackboneLayers(
        backbone.title,
        tuple(f"{name}/{layer}" for layer in backbone.layers),
        tuple(f"{name}/{layer}" for layer in backbone.affine),
    )
    for name, backbone in ssd.BACKBONES.items()
}
BODY = ssd.BACKBONES["vgg16"].layers
"""The 13 convolutions that every VGG-16 has."""

_NORM = "vgg16/conv4_3_norm/scale"
_EXTRAS = tuple(f"conv{level}_{index}" for level in range(6, 11) for index in (1, 2))
_SOURCES = ("conv4_3_norm", "fc7", *_EXTRAS[1::2])
_FC = ("fc6", "fc7")
# Index of each convolution in torch's sequence of convolutions, ReLUs and pools.
_TORCH_BACKBONE = {
    conv.removeprefix("features."): layer
    for layer, (conv, _) in ssd.BACKBONES["vgg16"].torchvision.items()
}
_REDUCED_BACKBONE = {**_TORCH_BACKBONE, "31": "fc6", "33": "fc7"}
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
COUNTER = "num_batches_tracked"  # BatchNorm's counter of training batches


def _table(
    layers: Mapping[str, str],
    kernel: str = "{}.weight",
    bias: str = "{}.bias",
    *,
    backbone: str = "vgg16",
) -> dict[str, str]:
    """Returns the entries of a checkpoint by the names of its layers and of their arrays."""
    inner = (*ssd.BACKBONES[backbone].layers, *_FC)
    ours = {
        theirs: f"{backbone}/{name}" if name in inner else name for theirs, name in layers.items()
    }
    kernels = {kernel.format(theirs): f"{path}/kernel" for theirs, path in ours.items()}
    return kernels | {bias.format(theirs): f"{path}/bias" for theirs, path in ours.items()}


def _convolution(path: str, conv: str, norm: str) -> dict[str, str]:
    """Returns the entries of a convolution with a bias or, if `norm` is given, with a BatchNorm."""
    kernel = {f"{conv}.weight": f"{path}/kernel"}
    if not norm:
        return {**kernel, f"{conv}.bias": f"{path}/bias"}
    return kernel | {f"{norm}.{theirs}": f"{path}/{ours}" for theirs, ours in _BATCH_NORM.items()}


def _torchvision(name: str) -> Layout:
    """Returns the layout of torchvision's ImageNet classifier with a backbone."""
    backbone = ssd.BACKBONES[name]
    entries: dict[str, str] = {}
    for layer, (conv, norm) in backbone.torchvision.items():
        entries |= _convolution(f"{name}/{layer}", conv, norm)
    return Layout(
        title=f"torchvision's {backbone.title}",
        mark=next(iter(entries)),
        entries=entries,
        backbone=name,
        epsilon=backbone.epsilon,
        std=_IMAGENET_STD,
        conventions=Conventions(
            _IMAGENET_MEAN, padding="torch" if backbone.style == "ssdlite" else ""
        ),
    )


def _with_classifier(layout: Layout) -> Layout:
    """Adds the classifier layers that become fc6 and fc7 to a VGG."""
    layers = {"classifier.0": "fc6", "classifier.3": "fc7"}
    return layout._replace(entries={**layout.entries, **_table(layers, backbone=layout.backbone)})


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
                **_under("backbone.features.", dict(list(_TORCH_BACKBONE.items())[:10])),
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
    conventions=Conventions(_TORCHVISION_SSD_MEAN, prior_sizes="coco", clip_prior_sizes=True),
    detection={"clip_before_nms": True},
)
_LUFFICC_SSD = Layout(
    title="lufficc's SSD",
    mark="backbone.vgg.0.weight",
    entries={
        **_table(
            {
                **_under("backbone.vgg.", _REDUCED_BACKBONE),
                **_numbered("backbone.extras.", _EXTRAS),
                **_numbered("box_head.predictor.reg_headers.", _heads("loc")),
                **_numbered("box_head.predictor.cls_headers.", _heads("conf")),
            }
        ),
        "backbone.l2_norm.weight": _NORM,
    },
    conventions=Conventions(CAFFE_MEAN, clip_priors=True),
)
_AMDEGROOT_SSD = Layout(
    title="amdegroot's SSD",
    mark="vgg.0.weight",
    entries={
        **_table(
            {
                **_under("vgg.", _REDUCED_BACKBONE),
                **_numbered("extras.", _EXTRAS),
                **_numbered("loc.", _heads("loc")),
                **_numbered("conf.", _heads("conf")),
            }
        ),
        "L2Norm.weight": _NORM,
    },
    conventions=Conventions(CAFFE_MEAN, clip_priors=True),
)
TORCHVISION = {name: _torchvision(name) for name in ssd.BACKBONES}
TORCHVISION |= {name: _with_classifier(TORCHVISION[name]) for name in ("vgg16", "vgg19")}
# torchvision also publishes the convolutions of the Caffe network as a VGG-16 whose classifier is
# NaN.
TORCHVISION_FEATURES = _torchvision("vgg16")._replace(
    title="torchvision's VGG-16, features only",
    std=_UNSCALED,
    conventions=Conventions(_TORCHVISION_SSD_MEAN),
)
MOBILENET_V3 = TORCHVISION["mobilenet_v3_large"]
_WIDER = tuple(
    name
    for name, ours in MOBILENET_V3.entries.items()
    if ours.partition("/")[2].startswith(mobilenet_v3.TAIL)
)
LAST_NORM = _WIDER[-1]
MOBILENET_V3_WIDE = MOBILENET_V3._replace(
    title="torchvision's MobileNetV3-Large, with wider last blocks",
    entries={name: ours for name, ours in MOBILENET_V3.entries.items() if name not in _WIDER},
    unused=_WIDER,
)


def _in_two_parts(name: str) -> str:
    """Returns SSDLite's name of an entry of the classifier: its maps end two sequences."""
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
    """Returns the entries of SSDLite's extra layers and heads."""
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


_TORCHVISION_SSDLITE = MOBILENET_V3._replace(
    title="torchvision's SSDLite",
    mark=_in_two_parts(MOBILENET_V3.mark),
    entries={_in_two_parts(name): ours for name, ours in MOBILENET_V3.entries.items()}
    | _lite_layers(),
    std=_HALF,
    conventions=Conventions(_HALF, padding="torch", prior_sizes="coco", clip_prior_sizes=True),
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
    entries=_table(_REDUCED_BACKBONE),
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
            backbone=name,
        ),
        backbone=name,
        channels_first=False,
        bgr=True,
        conventions=Conventions(_KERAS_MEAN),
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
        backbone="vgg19",
    ),
    backbone="vgg19",
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
    backbone="mobilenet_v2",
    channels_first=False,
    std=_HALF,
    conventions=Conventions(_HALF, padding="tensorflow"),
)
OURS = Layout(
    title="arrays named as our parameters",
    mark="",
    entries={},  # every name is its own path
    backbone="",
    channels_first=False,
)
LAYOUTS = (
    _TORCHVISION_SSD, _TORCHVISION_SSDLITE, _LUFFICC_SSD, _AMDEGROOT_SSD, *TORCHVISION.values(),
    _REDUCED_VGG, *_KERAS, _CAFFE, _CAFFE_VGG19, _MOBILENET_V2_FOLDED,
)  # fmt: skip
