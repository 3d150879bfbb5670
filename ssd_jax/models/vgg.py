"""VGG-16 with fc6 and fc7 as convolutions ("reduced fc"): the backbone of the paper."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax import augment
from ssd_jax.models import layers

_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def normalise(images: jax.Array, *, mean: Sequence[float] = augment.MEAN) -> jax.Array:
    """Subtracts the mean: `[..., H, W, 3]` RGB in 0..255 -> the network's input, not scaled."""
    return images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)


class VGG16(nn.Module):
    """VGG-16 to fc7: two source maps, of stride 8 (conv4_3, L2-normalised) and 16 (fc7).

    Attributes:
      width: Multiplier of all channel counts.
      dtype: Type of the computation; parameters are float32.
      remat: Keep only each block's input for the backward pass, and compute the rest again.

    Source: Liu et al. 2016, section 3.1.
    """

    width: float = 1.0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Maps `[B, H, W, 3]` normalised pictures to the list of feature maps."""
        x = images.astype(self.dtype)
        run = nn.remat(VGG16._block, static_argnums=(2,)) if self.remat else VGG16._block
        sources = []
        for block in range(1, len(_BLOCKS) + 1):
            x = run(self, x, block)
            if block == 4:
                scale = 20.0 * math.sqrt(x.shape[-1] / 512)  # channels as large as at full width
                sources.append(layers.L2Norm(initial_scale=scale, name="conv4_3_norm")(x))
            if block < 5:
                x = layers.max_pool_2x2(x)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
        x = nn.relu(self._conv(1024, 3, padding=6, dilation=6, name="fc6")(x))
        x = nn.relu(self._conv(1024, 1, kernel_init=layers.he_normal_quarter, name="fc7")(x))
        return [*sources, x]

    def _block(self, x: jax.Array, block: int) -> jax.Array:
        """The convolutions of one block, from 1."""
        for index, features in enumerate(_BLOCKS[block - 1], start=1):
            first = (block, index) == (1, 1)
            init = layers.he_normal_pixels if first else layers.he_central
            layer = self._conv(
                features, 3, padding=1, kernel_init=init, name=f"conv{block}_{index}"
            )
            x = nn.relu(layer(x))
        return x

    def _conv(self, features: int, kernel: int, **options: Any) -> nn.Conv:
        options = {"kernel_init": layers.he_central, "dtype": self.dtype, **options}
        return layers.conv(scaled(features, self.width), kernel, **options)


def scaled(features: int, width: float) -> int:
    """Channel count under the width multiplier: a multiple of 8, at least 8."""
    return features if width == 1 else max(8, round(features * width / 8) * 8)
