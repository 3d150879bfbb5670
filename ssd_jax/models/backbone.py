"""Description of a backbone."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn


class Backbone(NamedTuple):
    """A backbone, as its file describes it; `ssd.BACKBONES` has all by name.

    Attributes:
      title: Its name, in words.
      build: Makes the module, which maps `[B, H, W, 3]` normalized images to a list of one or two
        feature maps, the larger first. Options: `width`, `dtype`, `remat`, `name`, and `padding`
        if `style` is `"ssdlite"`.
      style: Style of its extra layers and heads, `"ssd"` or `"ssdlite"`, see `ssd.SSD`.
      least_side: Pixels of the smallest input that gives all maps.
      torchvision: By the path of our layer, what torchvision calls the convolution and the
        BatchNorm behind it, which is empty where there is none. The first layer takes the image.
      epsilon: Epsilon of torchvision's BatchNorm.
    """

    title: str
    build: Callable[..., nn.Module]
    style: str
    least_side: int
    torchvision: Mapping[str, tuple[str, str]]
    epsilon: float = 1e-5

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers that every checkpoint contains; the first takes the image."""
        return tuple(self.torchvision)

    @property
    def affine(self) -> tuple[str, ...]:
        """Paths of the layers that have a scale: BatchNorm with frozen statistics."""
        return tuple(layer for layer, (_, norm) in self.torchvision.items() if norm)
