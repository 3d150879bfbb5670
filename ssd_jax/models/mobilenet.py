"""MobileNetV2: the backbone of SSDLite."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax.models import backbone, layers


class Stage(NamedTuple):
    """Blocks of the same width; the first has the stride, the others are residual."""

    expansion: int
    features: int
    blocks: int
    stride: int


# Sandler et al. 2018, table 2.
_STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
_SOURCE = 13  # the last block of stride 2, whose expansion is the map of stride 16
_RESIDUALS = sum(stage.blocks - 1 for stage in _STAGES)
# The residuals of a new network add up to the size of the path that they are added to.
_residual_init = nn.initializers.variance_scaling(1 / _RESIDUALS, "fan_in", "truncated_normal")


class MobileNetV2(nn.Module):
    """MobileNetV2 to its last convolution: two source maps, of stride 16 and 32.

    The first is the expansion in block13, 576 channels; the last has 1280.

    Attributes:
      width: Multiplier of all channel counts.
      padding: `"torch"` or `"tensorflow"`, see `layers.ConvAffine`.
      dtype: Type of the computation; parameters are float32.
      remat: Keep only each block's input for the backward pass, and compute the rest again.

    Source: Sandler et al. 2018, sections 3 and 6.2.
    """

    width: float = 1.0
    padding: str = "torch"
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Maps `[B, H, W, 3]` normalized images to the list of feature maps."""
        stem = layers.he_normal_pixels
        x = self._conv(32, 3, stride=2, kernel_init=stem, name="conv_stem")(images)
        run = nn.remat(_Block) if self.remat else _Block
        for number, (stage, stride) in enumerate(_blocks()):
            block = run(
                expansion=stage.expansion,
                features=layers.scaled(stage.features, self.width),
                stride=stride,
                padding=self.padding,
                dtype=self.dtype,
                name=f"block{number}",
            )
            x, expanded = block(x)
            if number == _SOURCE:
                source = expanded
        return [source, self._conv(1280, 1, name="conv_head")(x)]

    def _conv(self, features: int, kernel: int, **options: Any) -> layers.ConvAffine:
        features = layers.scaled(features, self.width)
        return layers.ConvAffine(
            features, kernel, padding=self.padding, dtype=self.dtype, **options
        )


def _blocks() -> list[tuple[Stage, int]]:
    """Each block's stage and stride."""
    return [
        (stage, stage.stride if index == 0 else 1)
        for stage in _STAGES
        for index in range(stage.blocks)
    ]


class _Block(nn.Module):
    """Expansion, depthwise convolution and projection; residual if input and output have one shape.

    Source: Sandler et al. 2018, section 3.3, "Inverted residuals".
    """

    expansion: int
    features: int
    stride: int
    padding: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The block's output for `[B, H, W, C]`, and the expansion."""
        residual = self.stride == 1 and x.shape[-1] == self.features
        expanded = x
        if self.expansion > 1:
            channels = x.shape[-1] * self.expansion
            expanded = layers.ConvAffine(channels, 1, dtype=self.dtype, name="expand")(x)
        wide = layers.ConvAffine(
            0,
            3,
            stride=self.stride,
            padding=self.padding,
            kernel_init=layers.he_central,
            dtype=self.dtype,
            name="depthwise",
        )(expanded)
        projected = layers.ConvAffine(
            self.features,
            1,
            activation=None,
            kernel_init=_residual_init if residual else layers.lecun_normal,
            dtype=self.dtype,
            name="project",
        )(wide)
        return (x + projected if residual else projected), expanded


def _torchvision() -> dict[str, tuple[str, str]]:
    names = {"conv_stem": ("features.0.0", "features.0.1")}
    for number, (stage, _) in enumerate(_blocks()):
        path, parts = f"features.{number + 1}.conv", ["depthwise"]
        if stage.expansion > 1:
            parts.insert(0, "expand")
        for index, part in enumerate(parts):
            names[f"block{number}/{part}"] = (f"{path}.{index}.0", f"{path}.{index}.1")
        last = len(parts)
        names[f"block{number}/project"] = (f"{path}.{last}", f"{path}.{last + 1}")
    return names | {"conv_head": ("features.18.0", "features.18.1")}


BACKBONES = {
    "mobilenet_v2": backbone.Backbone(
        title="MobileNetV2",
        build=MobileNetV2,
        style="ssdlite",
        least_side=96,  # the least that Sandler et al. 2018 train; maps of 6, 3, 2, 1, 1, 1 cells
        torchvision=_torchvision(),
    )
}
