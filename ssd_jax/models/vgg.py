"""VGG-16 and VGG-19 with fc6 and fc7 as convolutions ("reduced fc"): the paper's backbone."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax.models import backbone, layers

_FEATURES = (64, 128, 256, 512, 512)
_DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions of each block


class VGG(nn.Module):
    """VGG to fc7: two source maps, of stride 8 (the fourth block, L2-normalized) and 16 (fc7).

    Without atrous convolution it is the whole VGG-16, with a third, conv5_3 of stride 16, before
    fc7, whose stride is then 32.

    Attributes:
      depth: 16 or 19.
      width: Multiplier of all channel counts.
      atrous: pool5 keeps the size of its map, and fc6 has 3 x 3 positions 6 apart, and
        1024 channels; else pool5 halves the map, fc6 has all of its 7 x 7, and both have 4096.
      dtype: Type of the computation; parameters are float32.
      remat: Keep only each block's input for the backward pass, and compute the rest again.

    Source: Simonyan and Zisserman 2015, table 1, columns D and E; Liu et al. 2016, section 3 and,
    of the whole network, section 3.1, "Atrous is faster".
    """

    depth: int = 16
    width: float = 1.0
    atrous: bool = True
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Maps `[B, H, W, 3]` normalized images to the list of feature maps."""
        x = images.astype(self.dtype)
        run = nn.remat(VGG._block, static_argnums=(2,)) if self.remat else VGG._block
        sources = []
        for block, count in enumerate(_DEPTHS[self.depth], start=1):
            x = run(self, x, block)
            if block == 4:
                scale = 20.0 * math.sqrt(x.shape[-1] / 512)  # channels as large as at full width
                norm = layers.L2Norm(initial_scale=scale, name=f"conv4_{count}_norm")
                sources.append(norm(x))
            if block < 5:
                x = layers.max_pool_2x2(x)
        features = 1024 if self.atrous else 4096
        if self.atrous:
            x = nn.max_pool(x, window_shape=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
            x = nn.relu(self._conv(features, 3, padding=6, dilation=6, name="fc6")(x))
        else:
            sources.append(x)
            x = layers.max_pool_2x2(x)
            x = nn.relu(self._conv(features, 7, padding=3, name="fc6")(x))
        fc7 = self._conv(features, 1, kernel_init=layers.he_normal_quarter, name="fc7")
        return [*sources, nn.relu(fc7(x))]

    def _block(self, x: jax.Array, block: int) -> jax.Array:
        """The convolutions of one block, counted from 1."""
        for index in range(1, _DEPTHS[self.depth][block - 1] + 1):
            first = (block, index) == (1, 1)
            layer = self._conv(
                _FEATURES[block - 1],
                3,
                padding=1,
                kernel_init=layers.he_normal_pixels if first else layers.he_central,
                name=f"conv{block}_{index}",
            )
            x = nn.relu(layer(x))
        return x

    def _conv(self, features: int, kernel: int, **options: Any) -> nn.Conv:
        options = {"kernel_init": layers.he_central, "dtype": self.dtype, **options}
        return layers.conv(layers.scaled(features, self.width), kernel, **options)


def _torchvision(depth: int) -> dict[str, tuple[str, str]]:
    """One sequence of convolutions, ReLUs and, after each block, a pool."""
    names: dict[str, tuple[str, str]] = {}
    index = 0
    for block, count in enumerate(_DEPTHS[depth], start=1):
        for number in range(1, count + 1):
            names[f"conv{block}_{number}"] = (f"features.{index}", "")
            index += 2
        index += 1
    return names


BACKBONES = {
    f"vgg{depth}": backbone.Backbone(
        title=f"VGG-{depth}",
        build=functools.partial(VGG, depth),
        style="ssd",
        least_side=257,  # the last map of SSD300 has one cell
        torchvision=_torchvision(depth),
    )
    for depth in _DEPTHS
}
