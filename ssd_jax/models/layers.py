"""Layers that backbones and heads share."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax.kernels import convolutions

Initializer = Callable[..., jax.Array]

# Caffe's "xavier" fills uniformly within +-sqrt(3 / fan_in): SPEC of the authors' new layers.
xavier: Initializer = nn.initializers.lecun_uniform()
# For a backbone trained from scratch: He et al. 2015, which keeps the signal through many ReLUs.
# The first layer reads pixels of about +-128: its outputs have unit size.
he_normal_pixels: Initializer = nn.initializers.variance_scaling(
    2.0 / 64**2, "fan_in", "truncated_normal"
)
# A quarter of that size: the heads on a new fc7 then start with outputs as small as those on
# conv4_3, whose L2Norm sees to it. With larger features the paper's rate of 1e-3 diverges from the
# first step.
he_normal_quarter: Initializer = nn.initializers.variance_scaling(
    2.0 / 4**2, "fan_in", "truncated_normal"
)


# Behind a layer without ReLU, and where the values stay as large as they are.
lecun_normal: Initializer = nn.initializers.lecun_normal()
he_normal: Initializer = nn.initializers.he_normal()


def scaled(features: int, width: float) -> int:
    """Channel count under the width multiplier: a multiple of 8, at least 8."""
    return features if width == 1 else max(8, round(features * width / 8) * 8)


def he_central(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """He's initialization with most weight in the middle of a kernel, `[k, k, in, out]`.

    Evenly spread kernels blur a map a little with each layer, until a deep one no longer knows
    where things are. The middle's standard deviation here is four times that of the rest.

    Source: after the delta kernels of Xiao et al. 2018, "Dynamical isometry", section 2.3.
    """
    height, width, inputs, _ = shape
    spread = jnp.full((height, width, 1, 1), 0.25).at[height // 2, width // 2].set(1.0)
    fan_in = inputs * jnp.sum(spread**2)
    return (jax.random.normal(key, shape) * spread * jnp.sqrt(2 / fan_in)).astype(dtype)


def conv(
    features: int,
    kernel: int,
    *,
    name: str,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    kernel_init: Initializer = xavier,
    dtype: Any = jnp.float32,
) -> nn.Conv:
    """A square convolution with bias and explicit padding.

    `SAME` pads (0, 1) at stride 2 on an even side where Caffe and torch pad (1, 1).
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        kernel_dilation=dilation,
        kernel_init=kernel_init,
        dtype=dtype,
        conv_general_dilated=_convolve,
        name=name,
    )


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    **_: Any,
) -> jax.Array:
    """The convolution called by `nn.Conv`, with the options that `conv` uses."""
    return convolutions.convolution(
        x, kernel, stride=strides[0], padding=tuple(padding), dilation=rhs_dilation[0]
    )


def explicit_padding(side: int, kernel: int, stride: int, style: str) -> tuple[int, int]:
    """(before, after) of an axis, for ceil(side / stride) outputs.

    Args:
      side: Side of the map in pixels.
      kernel: Side of the kernel, odd.
      stride: Stride of the convolution.
      style: `"torch"` pads the same on both ends; `"tensorflow"` as little as needed, an odd pixel
        after.
    """
    if style == "torch":
        return kernel // 2, kernel // 2
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


@jax.jit
def max_pool_2x2(x: jax.Array) -> jax.Array:
    """2x2 max pooling with stride 2 in ceil mode, `[B, H, W, C]` -> `[B, ceil(H/2), ceil(W/2), C]`.

    Written as maxima of strided slices: its backward pass takes a quarter of the time of
    select-and-scatter on a CPU. Of exact ties, each gets an equal share of the gradient. By the
    name that `jit` gives it, an export finds it and writes a pooling.
    """
    odd_rows, odd_columns = x.shape[1] % 2, x.shape[2] % 2
    x = jnp.pad(x, ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):  # slices, also where the batch is symbolic, of which indexing makes gathers
        even, odd = (jax.lax.slice_in_dim(x, at, None, stride=2, axis=axis) for at in (0, 1))
        x = jnp.maximum(even, odd)
    return x


@jax.jit
def spatial_mean(x: jax.Array) -> jax.Array:
    """The mean of each channel, `[B, H, W, C]` -> `[B, 1, 1, C]`.

    By the name that `jit` gives it, an export finds it and writes a pooling.
    """
    return jnp.mean(x, axis=(1, 2), keepdims=True)


class ConvAffine(nn.Module):
    """A square convolution without bias, then BatchNorm with frozen statistics, then a ReLU.

    y = activation(conv(x, kernel) * scale + bias) with a scale and a bias for each channel.
    Computed as conv(x, kernel * scale) + bias, which is the same and has no product as large as the
    map to keep for the backward pass.

    Attributes:
      features: Channels of the output; 0: those of the input, each convolved on its own.
      kernel: Its side, odd.
      stride: Stride of the convolution.
      padding: `"torch"`: (kernel - 1) / 2 on each side; `"tensorflow"`: its SAME, which at stride
        2 is (0, 1) on an even side.
      activation: Activation, ReLU6 as in MobileNetV2; None: none.
      kernel_init: Initializer of the kernel `[kernel, kernel, in, features]`; in is 1 if each
        channel is on its own.
      dtype: Type of the computation; parameters are float32.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: str = "torch"
    activation: Callable[[jax.Array], jax.Array] | None = jax.nn.relu6
    kernel_init: Initializer = he_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves `[B, H, W, C]`."""
        features = self.features or x.shape[-1]
        shape = (self.kernel, self.kernel, x.shape[-1] if self.features else 1, features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        x, kernel = x.astype(self.dtype), (kernel * scale).astype(self.dtype)
        pads = tuple(
            explicit_padding(side, self.kernel, self.stride, self.padding) for side in x.shape[1:3]
        )
        if not self.features:
            x = convolutions.depthwise(x, kernel, stride=self.stride, padding=pads)
        elif self.kernel == self.stride == 1:
            x = convolutions.pointwise(x, kernel)
        else:
            x = convolutions.convolution(x, kernel, stride=self.stride, padding=pads)
        x = x + bias.astype(self.dtype)
        return self.activation(x) if self.activation else x


class L2Norm(nn.Module):
    """Scales each position of a map to a learned length per channel.

    y = scale * x / sqrt(sum of x^2 over channels + 1e-10). The epsilon is inside the root, so
    that the gradient at an all-zero position is finite. Computed in float32.

    Attributes:
      initial_scale: Initial scale of every channel.

    Source: Liu et al. 2016, section 3.1, after ParseNet (Liu et al. 2015).
    """

    initial_scale: float = 20.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `[..., C]`."""
        init = nn.initializers.constant(self.initial_scale)
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + 1e-10)
        return (wide / length * scale).astype(x.dtype)
