"""Test-time augmentation: several views of an image, merged before NMS."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import augment, detection
from ssd_jax.models import ssd


class View(NamedTuple):
    """One way of showing an image to a network.

    Attributes:
      image_size: (height, width) in pixels of the input that the image is resized to.
      priors_cxcywh: `[P, 4]` default boxes of the network at that size.
      mirrored: Whether the image is mirrored left to right first.
    """

    image_size: tuple[int, int]
    priors_cxcywh: np.ndarray
    mirrored: bool = False


def predict(
    model: ssd.SSD,
    params: Any,
    images: jax.Array | np.ndarray,
    valid_sizes: jax.Array | np.ndarray,
    view: View,
    *,
    mean: Sequence[float],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs a network on one view of each image.

    Args:
      model: The network.
      params: Its parameters.
      images: `[B, H, W, 3]` uint8 canvases.
      valid_sizes: `[B, 2]` (height, width) of the images on them.
      view: The view.
      mean: RGB in 0..255 that is subtracted.

    Returns:
      `[B, P, 4]` offsets, `[B, P, C]` logits and the `[P, 4]` priors (cxcywh) that they belong to,
      in the frame of the image that is not mirrored.
    """
    resized = jax.vmap(functools.partial(augment.resize, size=view.image_size))(images, valid_sizes)
    shown = resized[:, :, ::-1] if view.mirrored else resized
    loc, conf = ssd.predict(model, params, augment.normalize(shown, mean=mean))
    priors_cxcywh = jnp.asarray(view.priors_cxcywh)
    if view.mirrored:
        loc, priors_cxcywh = detection.unmirror(loc, priors_cxcywh)
    return loc, conf, priors_cxcywh
