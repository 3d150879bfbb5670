"""The SSD network: a backbone, extra feature layers, and a pair of heads on each source map."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import priors
from ssd_jax.models import layers, vgg

BACKBONES = {"vgg16": vgg.VGG16}

_PUBLISHED = {
    ("300", "voc"): priors.SSD300_VOC,
    ("300", "coco"): priors.SSD300_COCO,
    ("512", "voc"): priors.SSD512_VOC,
    ("512", "coco"): priors.SSD512_COCO,
}


class Extra(NamedTuple):
    """An extra feature layer: a 1x1 convolution to `squeeze`, then one to `features` channels."""

    squeeze: int
    features: int
    kernel: int
    stride: int
    padding: int


# Liu et al. 2016, section 3.1 and figure 2 (300); the authors' release (512).
_EXTRAS = {
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


class Predictions(NamedTuple):
    """Outputs of the network.

    Attributes:
      loc: `[B, P, 4]` float32 offsets to the priors.
      conf: `[B, P, C]` float32 class logits, class 0 is background.
    """

    loc: jax.Array
    conf: jax.Array


class SSD(nn.Module):
    """Single Shot MultiBox Detector: `[B, H, W, 3]` normalised pictures -> `Predictions`.

    The layout of the extra layers follows the input's shorter side: SSD300's six maps below 512,
    SSD512's seven from there on.

    Attributes:
      num_classes: C, background included.
      backbone: A name in `BACKBONES`.
      width: Multiplier of all channel counts but the heads'.
      prior_sizes: `"voc"` or `"coco"`, the published sizes of the default boxes.
      dtype: Type of the computation; parameters and outputs are float32.
      remat: Of the backbone: less memory in training for more computation.
      gaps: Logits of the heads that stand for no class, see `merge_gaps`; they come on top of
        `num_classes`.

    Source: Liu et al. 2016, section 2.1 and figure 2.
    """

    num_classes: int
    backbone: str = "vgg16"
    width: float = 1.0
    prior_sizes: str = "voc"
    dtype: Any = jnp.float32
    remat: bool = False
    gaps: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, images: jax.Array) -> Predictions:
        """Predicts offsets and class logits for every prior."""
        layout = layout_for((images.shape[1], images.shape[2]))
        body = BACKBONES[self.backbone](
            width=self.width, dtype=self.dtype, remat=self.remat, name=self.backbone
        )
        maps = body(images)
        for number, extra in enumerate(_EXTRAS[layout], start=6):
            maps.append(self._extra(maps[-1], f"conv{number}", extra))
        per_cell = _PUBLISHED[layout, self.prior_sizes].boxes_per_cell
        loc, conf = [], []
        for level, (source, boxes) in enumerate(zip(maps, per_cell, strict=True)):
            loc.append(self._head(source, f"loc{level}", boxes, 4))
            logits = self._head(source, f"conf{level}", boxes, self.num_classes + len(self.gaps))
            conf.append(merge_gaps(logits, self.gaps))
        return Predictions(jnp.concatenate(loc, axis=1), jnp.concatenate(conf, axis=1))

    def _extra(self, x: jax.Array, name: str, extra: Extra) -> jax.Array:
        squeeze = vgg.scaled(extra.squeeze, self.width)
        x = nn.relu(layers.conv(squeeze, 1, dtype=self.dtype, name=f"{name}_1")(x))
        features = vgg.scaled(extra.features, self.width)
        second = layers.conv(
            features,
            extra.kernel,
            stride=extra.stride,
            padding=extra.padding,
            dtype=self.dtype,
            name=f"{name}_2",
        )
        return nn.relu(second(x))

    def _head(self, x: jax.Array, name: str, boxes: int, values: int) -> jax.Array:
        """`[B, rows * columns * boxes, values]`: the channel is box * values + value."""
        x = layers.conv(boxes * values, 3, padding=1, dtype=self.dtype, name=name)(x)
        return x.reshape(x.shape[0], -1, values).astype(jnp.float32)


def merge_gaps(logits: jax.Array, gaps: tuple[int, ...]) -> jax.Array:
    """Adds the probability of logits that stand for no class to the background's.

    Heads that count by COCO's ids have logits for ids that COCO does not use. The classes that
    remain are numbered anew and have the probabilities that they had.

    Args:
      logits: `[..., C + len(gaps)]`, the background first.
      gaps: Which of them are no class, ascending, from 1.

    Returns:
      `[..., C]`; `logits` itself without gaps.
    """
    if not gaps:
        return logits
    none = (0, *gaps)
    ends = (*gaps, logits.shape[-1])
    # Slices, not indices: onnx_graph.py knows no gather.
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


def apply(model: SSD, params: Any, images: jax.Array) -> Predictions:
    """The network's outputs for `[B, H, W, 3]` normalised pictures; `model.apply` with its type."""
    return model.apply({"params": params}, images)  # type: ignore[return-value]


def layout_for(image_size: tuple[int, int]) -> str:
    """`"300"` or `"512"`: whose extra layers a network of this (height, width) has."""
    return "300" if min(image_size) < 512 else "512"


@functools.cache
def prior_spec(model: SSD, image_size: tuple[int, int]) -> priors.PriorSpec:
    """The default boxes' spec of a network at an input size, from its feature maps' shapes.

    Args:
      model: The network.
      image_size: (height, width) in pixels.

    Returns:
      The published spec where the size is a published one, else the same adapted to the size.

    Raises:
      ValueError: If the input is too small for the number of maps.
    """
    published = _PUBLISHED[layout_for(image_size), model.prior_sizes]
    return priors.adapt(published, image_size, feature_map_shapes(model, image_size))


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
    model: SSD, image_size: tuple[int, int], *, clip: bool = False, clip_sizes: bool = False
) -> np.ndarray:
    """The `[P, 4]` float32 priors (cxcywh) that belong to a network's outputs."""
    spec = prior_spec(model, image_size)
    return priors.default_boxes(spec, clip=clip, clip_sizes=clip_sizes)
