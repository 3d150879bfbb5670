"""SSDLite's extra layers and heads: the paper's, with convolutions of each channel on its own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax.kernels import convolutions
from ssd_jax.models import layers

# Logits and offsets of a quarter of the map's size: new heads then hardly disturb a trained
# backbone.
_quarter = nn.initializers.variance_scaling(1 / 4**2, "fan_in", "truncated_normal")


class Extra(nn.Module):
    """An extra feature layer: squeeze by 1x1, a depthwise 3x3 of some stride, 1x1 to `features`.

    Source: torchvision's ssdlite.py, after Sandler et al. 2018, section 6.2.
    """

    squeeze: int
    features: int
    stride: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, ceil(H / stride), ceil(W / stride), features]`."""
        x = layers.ConvAffine(self.squeeze, 1, dtype=self.dtype, name="squeeze")(x)
        x = _depthwise(self.stride, self.dtype)(x)
        return layers.ConvAffine(self.features, 1, dtype=self.dtype, name="project")(x)


class Head(nn.Module):
    """A depthwise 3x3 convolution with affine and ReLU6, then a 1x1 one with bias.

    Attributes:
      features: Values of all boxes of a cell.
      dtype: Type of the computation; parameters are float32.

    Source: Sandler et al. 2018, section 6.2.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` -> `[B, H, W, features]`."""
        x = _depthwise(1, self.dtype)(x)
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", _quarter, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return convolutions.pointwise(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


def _depthwise(stride: int, dtype: Any) -> layers.ConvAffine:
    return layers.ConvAffine(
        0, 3, stride=stride, kernel_init=layers.he_central, dtype=dtype, name="depthwise"
    )
