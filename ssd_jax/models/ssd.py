"""The SSD network: a backbone, extra feature layers, and a pair of heads on each source map."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import priors
from ssd_jax.models import backbone, layers, lite, mobilenet, mobilenet_v3, resnet, vgg

BACKBONES: dict[str, backbone.Backbone] = {
    **vgg.BACKBONES,
    **resnet.BACKBONES,
    **mobilenet.BACKBONES,
    **mobilenet_v3.BACKBONES,
}

_PUBLISHED = {
    ("lite", "voc"): priors.SSDLITE320,
    ("lite", "coco"): priors.SSDLITE320,
    ("300", "voc"): priors.SSD300_VOC,
    ("300", "coco"): priors.SSD300_COCO,
    ("512", "voc"): priors.SSD512_VOC,
    ("512", "coco"): priors.SSD512_COCO,
}


# Pixels by which an input grows to find the strides of its maps: a multiple of them.
_GROWTH = 1024


class Extra(NamedTuple):
    """An extra feature layer: a 1x1 convolution to `squeeze`, then one to `features` channels.

    In SSDLite the second is a depthwise one, and a 1x1 one to `features` channels.
    """

    squeeze: int
    features: int
    kernel: int
    stride: int
    padding: int


# Liu et al. 2016, section 3.1 and figure 2 (300); the authors' release (512); torchvision's
# ssdlite320 (lite).
_EXTRAS = {
    "lite": (
        Extra(256, 512, kernel=3, stride=2, padding=1),
        Extra(128, 256, kernel=3, stride=2, padding=1),
        Extra(128, 256, kernel=3, stride=2, padding=1),
        Extra(64, 128, kernel=3, stride=2, padding=1),
    ),
    "300": (
        Extra(256, 512, kernel=3, stride=2, padding=1),
        Extra(128, 256, kernel=3, stride=2, padding=1),
        Extra(128, 256, kernel=3, stride=1, padding=0),
        Extra(128, 256, kernel=3, stride=1, padding=0),
    ),
    "512": (
        Extra(256, 512, kernel=3, stride=2, padding=1),
        Extra(128, 256, kernel=3, stride=2, padding=1),
        Extra(128, 256, kernel=3, stride=2, padding=1),
        Extra(128, 256, kernel=3, stride=2, padding=1),
        Extra(128, 256, kernel=4, stride=1, padding=1),
    ),
}


_HALVING = Extra(256, 512, kernel=3, stride=2, padding=1)
"""Replaces the second source map, as in NVIDIA's and MLPerf's SSD."""


def _extras(variant: str, backbone_maps: int) -> tuple[Extra, ...]:
    """Extra layers: one more on a backbone of one map; on three, all but the last but one.

    The source maps have the shapes of the variant in any case.
    """
    extras = _EXTRAS[variant]
    surplus = backbone_maps + len(extras) - len(_PUBLISHED[variant, "voc"].feature_maps)
    return (_HALVING, *extras) if surplus < 0 else (*extras[: -1 - surplus], extras[-1])


class Predictions(NamedTuple):
    """Outputs of the network.

    Attributes:
      loc: `[B, P, 4]` float32 offsets to the priors.
      conf: `[B, P, C]` float32 class logits, class 0 is background.
    """

    loc: jax.Array
    conf: jax.Array


class SSD(nn.Module):
    """Single Shot MultiBox Detector: `[B, H, W, 3]` normalized images -> `Predictions`.

    A backbone of style `"ssd"`, a VGG or ResNet, has the paper's extra layers and heads, 3x3
    convolutions. Their variant follows the input's shorter side: SSD300's six maps below 512,
    SSD512's seven from there on; a ResNet, which has one source map where VGG has two, gets one
    more layer. One of style `"ssdlite"`, a MobileNet, has SSDLite's: six maps, whose 3x3
    convolutions are depthwise.

    Attributes:
      num_classes: C, background included.
      backbone: A name in `BACKBONES`.
      width: Multiplier of all channel counts but the heads'.
      atrous: Whether a VGG has the atrous fc6, see `vgg.VGG`; without, the last extra layer but one
        is left out, so that the source maps have the shapes that they have with it.
      source_maps: See `priors.tiled`; there is a pair of heads for each scale, and no extra layer
        behind the last map that is named.
      aspect_ratios: See `priors.tiled`.
      prior_scales: See `priors.tiled`.
      padding: Padding of the convolutions of stride 2 in a MobileNet, see `mobilenet.MobileNetV2`.
      prior_sizes: `"voc"` or `"coco"`, the published sizes of the default boxes; SSDLite's are the
        same for both.
      dtype: Type of the computation; parameters and outputs are float32.
      remat: Whether to recompute the backbone in the backward pass, which saves memory.
      variant: Variant of the extra layers, see `variant_for`; empty: by the input's size.
      unused_logits: Logits of the heads without a class, see `merge_unused_logits`; they
        come on top of `num_classes`.

    Source: Liu et al. 2016, section 2.1 and figure 2; SSDLite: Sandler et al. 2018, section 6.2.
    """

    num_classes: int
    backbone: str = "vgg16"
    width: float = 1.0
    atrous: bool = True
    source_maps: tuple[int, ...] = ()
    aspect_ratios: tuple[tuple[float, ...], ...] = ()
    prior_scales: tuple[float, ...] = ()
    padding: str = "torch"
    prior_sizes: str = "voc"
    dtype: Any = jnp.float32
    remat: bool = False
    variant: str = ""
    unused_logits: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, images: jax.Array) -> Predictions:
        """Predicts offsets and class logits for every prior."""
        variant = _variant(self, (images.shape[1], images.shape[2]))
        spec = _tiled(self, variant)
        maps = self._backbone()(images)
        wanted = self.source_maps or tuple(range(len(spec.feature_maps)))
        extras = _extras(variant, len(maps))
        make = self._lite_extra if variant == "lite" else self._extra
        for number, extra in enumerate(extras[: max(0, max(wanted) + 1 - len(maps))]):
            maps.append(make(maps[-1], number, extra))
        loc, conf = [], []
        for level, (place, boxes) in enumerate(zip(wanted, spec.boxes_per_cell, strict=True)):
            source = maps[place]
            loc.append(self._head(source, f"loc{level}", boxes, 4))
            logits = self._head(
                source, f"conf{level}", boxes, self.num_classes + len(self.unused_logits)
            )
            conf.append(merge_unused_logits(logits, self.unused_logits))
        return Predictions(jnp.concatenate(loc, axis=1), jnp.concatenate(conf, axis=1))

    def _backbone(self) -> nn.Module:
        options: dict[str, Any] = {"width": self.width, "dtype": self.dtype, "remat": self.remat}
        if self._lite:
            options["padding"] = self.padding
        if not self.atrous:
            options["atrous"] = False
        return BACKBONES[self.backbone].build(**options, name=self.backbone)

    @property
    def _lite(self) -> bool:
        return BACKBONES[self.backbone].style == "ssdlite"

    def _extra(self, x: jax.Array, number: int, extra: Extra) -> jax.Array:
        name = f"conv{number + 6}"
        squeeze = layers.scaled(extra.squeeze, self.width)
        x = nn.relu(layers.conv(squeeze, 1, dtype=self.dtype, name=f"{name}_1")(x))
        features = layers.scaled(extra.features, self.width)
        second = layers.conv(
            features,
            extra.kernel,
            stride=extra.stride,
            padding=extra.padding,
            dtype=self.dtype,
            name=f"{name}_2",
        )
        return nn.relu(second(x))

    def _lite_extra(self, x: jax.Array, number: int, extra: Extra) -> jax.Array:
        return lite.Extra(
            squeeze=layers.scaled(extra.squeeze, self.width),
            features=layers.scaled(extra.features, self.width),
            stride=extra.stride,
            dtype=self.dtype,
            name=f"extra{number}",
        )(x)

    def _head(self, x: jax.Array, name: str, boxes: int, values: int) -> jax.Array:
        """`[B, rows * columns * boxes, values]`: the channel is box * values + value."""
        features = boxes * values
        if self._lite:
            x = lite.Head(features, dtype=self.dtype, name=name)(x)
        else:
            x = layers.conv(features, 3, padding=1, dtype=self.dtype, name=name)(x)
        return x.reshape(x.shape[0], -1, values).astype(jnp.float32)


def merge_unused_logits(logits: jax.Array, unused_logits: tuple[int, ...]) -> jax.Array:
    """Adds the probability of logits without a class to the background's.

    Heads that count by COCO's ids have logits for ids that COCO does not use. The classes that
    remain are renumbered and keep their probabilities.

    Args:
      logits: `[..., C + len(unused_logits)]`, the background first.
      unused_logits: Indices of logits without a class, ascending, from 1.

    Returns:
      `[..., C]`; `logits` itself without unused_logits.
    """
    if not unused_logits:
        return logits
    none = (0, *unused_logits)
    ends = (*unused_logits, logits.shape[-1])
    # Slices, not indices: onnx_operations.py knows no gather.
    unused = jnp.concatenate(
        [jax.lax.slice_in_dim(logits, k, k + 1, axis=-1) for k in none], axis=-1
    )
    classes = [
        jax.lax.slice_in_dim(logits, k + 1, end, axis=-1)
        for k, end in zip(none, ends, strict=True)
        if k + 1 < end
    ]
    peak = jax.lax.stop_gradient(jnp.max(unused, axis=-1, keepdims=True))
    background = peak + jnp.log(jnp.sum(jnp.exp(unused - peak), axis=-1, keepdims=True))
    return jnp.concatenate([background, *classes], axis=-1)


def init(key: jax.Array, model: SSD, image_size: tuple[int, int]) -> Any:
    """Initializes the parameters of a network; compiled, with the values of `model.init`.

    Args:
      key: Random key.
      model: The network.
      image_size: (height, width) of its input in pixels.

    Returns:
      Tree of float32 arrays.
    """
    if isinstance(key, jax.core.Tracer):  # a function that takes options cannot be part of another
        return _initializer(model, image_size)(key)
    return _compiled_init(model, image_size)(key)


@functools.cache
def _compiled_init(model: SSD, image_size: tuple[int, int]) -> Callable[[jax.Array], Any]:
    # On the CPU, LLVM spends two thirds of this compilation on random numbers that are drawn once.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(_initializer(model, image_size), compiler_options=options)


def _initializer(model: SSD, image_size: tuple[int, int]) -> Callable[[jax.Array], Any]:
    """`model.init` as a function of the key alone."""

    def initialize(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, *image_size, 3), jnp.float32))["params"]

    return initialize


def abstract_params(model: SSD, image_size: tuple[int, int]) -> Any:
    """Shapes and types of a network's parameters, by name; `image_size` as for `init`."""
    return jax.eval_shape(_compiled_init(model, image_size), jax.random.key(0))


def apply(model: SSD, params: Any, images: jax.Array) -> Predictions:
    """The network's outputs for `[B, H, W, 3]` normalized images; `model.apply` with its type."""
    return model.apply({"params": params}, images)  # type: ignore[return-value]


def predict(model: SSD, params: Any, images: jax.Array) -> Predictions:
    """Like `apply`, for detection without gradients: on a CPU one image after the other.

    On a CPU, the maps of one image nearly fit into the cache.

    Args:
      model: The network.
      params: Its parameters, by name.
      images: `[B, H, W, 3]` normalized images.

    Returns:
      The outputs of `apply`, up to rounding.
    """

    def of_one(image: jax.Array) -> Predictions:
        return jax.tree.map(lambda x: x[0], apply(model, params, image[None]))

    return jax.lax.platform_dependent(
        images,
        cpu=functools.partial(jax.lax.map, of_one),
        default=functools.partial(apply, model, params),
    )


def variant_for(backbone: str, image_size: tuple[int, int]) -> str:
    """The variant of the extra layers for a (height, width): `"300"`, `"512"` or `"lite"`."""
    if BACKBONES[backbone].style == "ssdlite":
        return "lite"
    return "300" if min(image_size) < 512 else "512"


def _variant(model: SSD, image_size: tuple[int, int]) -> str:
    return model.variant or variant_for(model.backbone, image_size)


def _tiled(model: SSD, variant: str) -> priors.PriorSpec:
    return priors.tiled(
        _PUBLISHED[variant, model.prior_sizes],
        source_maps=model.source_maps,
        aspect_ratios=model.aspect_ratios,
        prior_scales=model.prior_scales,
    )


@functools.cache
def prior_spec(model: SSD, image_size: tuple[int, int]) -> priors.PriorSpec:
    """The default boxes' spec of a network at an input size, from its feature maps' shapes.

    Args:
      model: The network.
      image_size: (height, width) in pixels.

    Returns:
      The published spec where the size is a published one, else the same adapted to the size.

    Raises:
      ValueError: If the input is too small for the number of maps, or `priors.tiled` raises it.
    """
    spec = _tiled(model, _variant(model, image_size))
    return priors.adapt(spec, image_size, feature_map_shapes(model, image_size))


@functools.cache
def strides(model: SSD, image_size: tuple[int, int]) -> tuple[float, ...]:
    """Pixels of the input from a cell of each source map to the next, by the layers' strides."""
    grown = feature_map_shapes(model, (image_size[0] + _GROWTH, image_size[1] + _GROWTH))
    maps = feature_map_shapes(model, image_size)
    return tuple(_GROWTH / (large[0] - small[0]) for large, small in zip(grown, maps, strict=True))


def feature_map_shapes(model: SSD, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) of each source map at an input of (height, width) pixels."""
    shapes: list[tuple[int, int]] = []

    def record(next_call, args, kwargs, context):
        if (context.module.name or "").startswith("loc"):
            shapes.append(args[0].shape[1:3])
        return next_call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), image)
    if any(0 in shape for shape in shapes):
        raise ValueError(f"an input of {image_size} is too small: its source maps are {shapes}")
    return shapes


def default_boxes(
    model: SSD,
    image_size: tuple[int, int],
    *,
    clip: bool = False,
    clip_sizes: bool = False,
    at: tuple[int, int] | None = None,
) -> np.ndarray:
    """The `[P, 4]` float32 priors (cxcywh) that belong to a network's outputs.

    Args:
      model: The network.
      image_size: (height, width) in pixels of the input that it is trained at.
      clip: See `priors.default_boxes`.
      clip_sizes: See `priors.default_boxes`.
      at: (height, width) of another input that it is to run on, with `model.variant` given.

    Raises:
      ValueError: If an input is too small for the number of maps.
    """
    spec = prior_spec(model, image_size)
    if at not in (None, image_size):
        maps = feature_map_shapes(model, at)
        spec = priors.at_size(spec, at, maps, strides(model, image_size))
    return priors.default_boxes(spec, clip=clip, clip_sizes=clip_sizes)
