"""MobileNetV3-Large with the reduced tail: the backbone of torchvision's SSDLite."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax.models import backbone, layers


class _Shape(NamedTuple):
    """A block: its depthwise kernel, and the channels of its expansion and its output."""

    kernel: int
    expanded: int
    features: int
    excited: bool  # has squeeze-and-excitation
    hard_swish: bool  # else ReLU
    stride: int


# Howard et al. 2019, table 1; the channels of the last blocks are halved, as section 6.3 has it.
_BLOCKS = (
    _Shape(3, 16, 16, False, False, 1),
    _Shape(3, 64, 24, False, False, 2),
    _Shape(3, 72, 24, False, False, 1),
    _Shape(5, 72, 40, True, False, 2),
    _Shape(5, 120, 40, True, False, 1),
    _Shape(5, 120, 40, True, False, 1),
    _Shape(3, 240, 80, False, True, 2),
    _Shape(3, 200, 80, False, True, 1),
    _Shape(3, 184, 80, False, True, 1),
    _Shape(3, 184, 80, False, True, 1),
    _Shape(3, 480, 112, True, True, 1),
    _Shape(3, 672, 112, True, True, 1),
    _Shape(5, 672, 80, True, True, 2),
    _Shape(5, 480, 80, True, True, 1),
    _Shape(5, 480, 80, True, True, 1),
)
SOURCE = 12  # the last block of stride 2, whose expansion is the map of stride 16
LAST = 480  # channels of the map of stride 32
TAIL = (f"block{SOURCE}/project", "block13", "block14", "conv_head")
"""Layers and blocks that are wider in the classifier."""

_RESIDUALS = 10  # blocks 0, 2, 4, 5, 7, 8, 9, 11, 13, 14
_HARD_SWISH_GAIN = 1.5  # it halves small values: the initial kernels have more than He's variance
_EXCITED_GAIN = 4.0  # initial channel weights are 1/2; this compensates for their square


class MobileNetV3Large(nn.Module):
    """MobileNetV3-Large to its last convolution: two source maps, of stride 16 and 32.

    The first is the expansion in block12, 672 channels; the last has 480. BatchNorm is affine, with
    frozen statistics.

    Attributes:
      width: Multiplier of all channel counts.
      padding: `"torch"` or `"tensorflow"`, see `layers.ConvAffine`.
      dtype: Type of the computation; parameters are float32.
      remat: Keep only each block's input for the backward pass, and compute the rest again.

    Source: Howard et al. 2019, "Searching for MobileNetV3", sections 5 and 6.3.
    """

    width: float = 1.0
    padding: str = "torch"
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Maps `[B, H, W, 3]` normalized images to the list of feature maps."""
        stem = layers.he_normal_pixels
        x = self._conv(16, 3, stride=2, kernel_init=stem, name="conv_stem")(images)
        run = nn.remat(_Block) if self.remat else _Block
        for number, shape in enumerate(_BLOCKS):
            block = run(
                shape=shape,
                widens=number > 0,
                width=self.width,
                padding=self.padding,
                dtype=self.dtype,
                name=f"block{number}",
            )
            x, expanded = block(x)
            if number == SOURCE:
                source = expanded
        head = _scaled(layers.he_normal, _HARD_SWISH_GAIN)
        return [source, self._conv(LAST, 1, kernel_init=head, name="conv_head")(x)]

    def _conv(self, features: int, kernel: int, **options: Any) -> layers.ConvAffine:
        return layers.ConvAffine(
            layers.scaled(features, self.width),
            kernel,
            padding=self.padding,
            activation=jax.nn.hard_swish,
            dtype=self.dtype,
            **options,
        )


class _Block(nn.Module):
    """Expand, convolve each channel on its own, weigh the channels, project.

    Added to the input where they are alike. The first block does not expand.

    Source: Howard et al. 2019, section 5 and figure 4.
    """

    shape: _Shape
    widens: bool
    width: float
    padding: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The block's output for `[B, H, W, C]`, and the expansion."""
        shape = self.shape
        features = layers.scaled(shape.features, self.width)
        residual = shape.stride == 1 and x.shape[-1] == features
        activation = jax.nn.hard_swish if shape.hard_swish else jax.nn.relu
        gain = _HARD_SWISH_GAIN if shape.hard_swish else 1.0
        expanded = x
        if self.widens:
            channels = layers.scaled(shape.expanded, self.width)
            init = _scaled(layers.he_normal, gain)
            expanded = self._conv(channels, 1, activation, kernel_init=init, name="expand")(x)
        wide = self._conv(
            0,
            shape.kernel,
            activation,
            stride=shape.stride,
            kernel_init=_scaled(layers.he_central, gain),
            name="depthwise",
        )(expanded)
        if shape.excited:
            wide = wide * self._weights(wide)
        # The residuals of a new network add up to the size of the path that they are added to.
        share = (1 / _RESIDUALS if residual else 1.0) * (_EXCITED_GAIN if shape.excited else 1.0)
        init = _scaled(layers.lecun_normal, share)
        projected = self._conv(features, 1, None, kernel_init=init, name="project")(wide)
        return (x + projected if residual else projected), expanded

    def _weights(self, x: jax.Array) -> jax.Array:
        """`[B, 1, 1, C]` in [0, 1]: squeeze-and-excitation, from the means of all channels."""
        channels = x.shape[-1]
        means = layers.spatial_mean(x)
        small = layers.conv(_squeezed(channels), 1, dtype=self.dtype, name="squeeze")(means)
        return jax.nn.hard_sigmoid(
            layers.conv(channels, 1, dtype=self.dtype, name="excite")(jax.nn.relu(small))
        )

    def _conv(
        self, features: int, kernel: int, activation: Callable | None, **options: Any
    ) -> layers.ConvAffine:
        return layers.ConvAffine(
            features,
            kernel,
            padding=self.padding,
            activation=activation,
            dtype=self.dtype,
            **options,
        )


def _scaled(init: layers.Initializer, gain: float) -> layers.Initializer:
    """An initializer with another variance, `gain` times as large."""
    return lambda *args: init(*args) * math.sqrt(gain)


def _squeezed(channels: int) -> int:
    """A quarter, to the nearest multiple of 8, but not less than nine tenths of it."""
    quarter = channels // 4
    nearest = max(8, (quarter + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * quarter else nearest + 8


def _torchvision() -> dict[str, tuple[str, str]]:
    names = {"conv_stem": ("features.0.0", "features.0.1")}
    for number, shape in enumerate(_BLOCKS):
        path = f"features.{number + 1}.block"
        parts = ["expand", "depthwise", "project"][number == 0 :]
        if shape.excited:
            parts.insert(-1, "excitation")
        for index, part in enumerate(parts):
            if part == "excitation":
                names[f"block{number}/squeeze"] = (f"{path}.{index}.fc1", "")
                names[f"block{number}/excite"] = (f"{path}.{index}.fc2", "")
            else:
                names[f"block{number}/{part}"] = (f"{path}.{index}.0", f"{path}.{index}.1")
    return names | {"conv_head": ("features.16.0", "features.16.1")}


BACKBONES = {
    "mobilenet_v3_large": backbone.Backbone(
        title="MobileNetV3-Large",
        build=MobileNetV3Large,
        style="ssdlite",
        least_side=96,  # as of MobileNetV2; maps of 6, 3, 2, 1, 1, 1 cells
        torchvision=_torchvision(),
        epsilon=1e-3,
    )
}
