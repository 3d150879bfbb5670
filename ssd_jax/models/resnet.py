"""ResNet-18, 34, 50 and 101 to their third stage, which has stride 1: NVIDIA's and MLPerf's SSD."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax.models import backbone, layers


class _Depth(NamedTuple):
    """Blocks of the stages conv2 to conv4, and whether they are bottlenecks."""

    blocks: tuple[int, int, int]
    bottleneck: bool


# He et al. 2016, table 1, without conv5.
_DEPTHS = {
    18: _Depth((2, 2, 2), bottleneck=False),
    34: _Depth((3, 4, 6), bottleneck=False),
    50: _Depth((3, 4, 6), bottleneck=True),
    101: _Depth((3, 4, 23), bottleneck=True),
}
_FEATURES = (64, 128, 256)
_STRIDES = (1, 2, 1)  # the last is 2 in a ResNet that classifies
_EXPANSION = 4  # of a bottleneck's output


class ResNet(nn.Module):
    """ResNet to conv4, with stride 1 in that stage: one source map, of stride 8.

    BatchNorm is affine, with frozen statistics: a scale and a bias for each channel.

    Attributes:
      depth: 18, 34, 50 or 101.
      width: Multiplier of all channel counts.
      dtype: Type of the computation; parameters are float32.
      remat: Keep only each block's input for the backward pass, and compute the rest again.

    Source: He et al. 2016, table 1; the strides are those of NVIDIA's and of MLPerf's SSD.
    """

    depth: int = 50
    width: float = 1.0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Maps `[B, H, W, 3]` normalized images to the list of the one feature map."""
        x = layers.ConvAffine(
            layers.scaled(64, self.width),
            7,
            stride=2,
            activation=jax.nn.relu,
            kernel_init=layers.he_normal_pixels,
            dtype=self.dtype,
            name="conv1",
        )(images)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        blocks, bottleneck = _DEPTHS[self.depth]
        run = nn.remat(_Block) if self.remat else _Block
        for name, stage, stride in _blocks(self.depth):
            x = run(
                features=layers.scaled(_FEATURES[stage], self.width),
                stride=stride,
                bottleneck=bottleneck,
                share=1 / sum(blocks),
                dtype=self.dtype,
                name=name,
            )(x)
        return [x]


def _blocks(depth: int) -> Iterator[tuple[str, int, int]]:
    """Name, stage from 0, and stride of each block."""
    for stage, count in enumerate(_DEPTHS[depth].blocks):
        for index in range(count):
            yield f"conv{stage + 2}_{index}", stage, _STRIDES[stage] if index == 0 else 1


class _Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1, added to the input or its projection.

    As in torchvision, the 3x3 convolution of a bottleneck has the stride.

    Source: He et al. 2016, figure 5.
    """

    features: int
    stride: int
    bottleneck: bool
    share: float  # of the sum of all blocks that a new block adds
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, ceil(H / stride), ceil(W / stride), D]`.

        D is `features`, or 4 times that from a bottleneck.
        """
        out = self.features * (_EXPANSION if self.bottleneck else 1)
        kernels = (1, 3, 1) if self.bottleneck else (3, 3)
        strided = kernels.index(3)
        y = x
        for index, kernel in enumerate(kernels):
            last = index == len(kernels) - 1
            y = layers.ConvAffine(
                out if last else self.features,
                kernel,
                stride=self.stride if index == strided else 1,
                activation=None if last else jax.nn.relu,
                kernel_init=self._residual_init if last else layers.he_normal,
                dtype=self.dtype,
                name=f"conv{index + 1}",
            )(y)
        if self.stride > 1 or x.shape[-1] != out:
            x = layers.ConvAffine(
                out,
                1,
                stride=self.stride,
                activation=None,
                kernel_init=layers.lecun_normal,
                dtype=self.dtype,
                name="project",
            )(x)
        return jax.nn.relu(x + y)

    @property
    def _residual_init(self) -> layers.Initializer:
        return nn.initializers.variance_scaling(self.share, "fan_in", "truncated_normal")


def _torchvision(depth: int) -> dict[str, tuple[str, str]]:
    names = {"conv1": ("conv1", "bn1")}
    channels = 64
    for name, stage, stride in _blocks(depth):
        block = f"layer{stage + 1}.{name.partition('_')[2]}"
        bottleneck = _DEPTHS[depth].bottleneck
        for number in range(1, 4 if bottleneck else 3):
            names[f"{name}/conv{number}"] = (f"{block}.conv{number}", f"{block}.bn{number}")
        out = _FEATURES[stage] * (_EXPANSION if bottleneck else 1)
        if stride > 1 or channels != out:
            names[f"{name}/project"] = (f"{block}.downsample.0", f"{block}.downsample.1")
        channels = out
    return names


BACKBONES = {
    f"resnet{depth}": backbone.Backbone(
        title=f"ResNet-{depth}",
        build=functools.partial(ResNet, depth),
        style="ssd",
        least_side=257,  # the last map of SSD300 has one cell
        torchvision=_torchvision(depth),
    )
    for depth in _DEPTHS
}
