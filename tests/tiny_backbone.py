"""A backbone of three convolutions at 96 pixels, for tests that are about something else.

Compiled for training it takes a few seconds of a processor, where a VGG takes most of a minute.
Importing this module registers it as `"tiny"`; `SMALL` are the fields of `config.model` of a
network on it, with three source maps and 756 priors.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax.models import backbone, layers, ssd

SIDE = 96
SMALL: dict[str, Any] = {
    "backbone": "tiny",
    "image_size": SIDE,
    "source_maps": (0, 1, 2),
    "aspect_ratios": ((2.0,),),
}


def network(num_classes: int, **fields: Any) -> ssd.SSD:
    """An SSD on it, with these fields more."""
    given = {name: value for name, value in SMALL.items() if name != "image_size"}
    return ssd.SSD(num_classes=num_classes, **given, **fields)


class Tiny(nn.Module):
    """Two source maps, of stride 8 and 16; the attributes are those of `vgg.VGG`."""

    width: float = 1.0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Maps `[B, H, W, 3]` normalized images to the list of feature maps."""
        run = nn.remat(Tiny._conv, static_argnums=(2,)) if self.remat else Tiny._conv
        x, maps = images.astype(self.dtype), []
        for number in (1, 2, 3):
            x = run(self, x, number)
            maps.append(x)
        return maps[1:]

    def _conv(self, x: jax.Array, number: int) -> jax.Array:
        convolution = layers.conv(
            layers.scaled(16, self.width),
            3,
            stride=4 if number == 1 else 2,
            padding=1,
            kernel_init=layers.he_normal_pixels if number == 1 else layers.he_normal_quarter,
            dtype=self.dtype,
            name=f"conv{number}",
        )
        return nn.relu(convolution(x))


ssd.BACKBONES["tiny"] = backbone.Backbone(
    title="Three convolutions",
    build=Tiny,
    style="ssd",
    least_side=SIDE,
    torchvision={f"conv{number}": (f"convs.{number}", "") for number in (1, 2, 3)},
)
