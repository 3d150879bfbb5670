"""Augmentation of one picture and its boxes, on the device.

A picture comes on a fixed uint8 canvas whose upper left corner it fills; `extent` says how far. The
geometry (here a resize and a flip) is one axis-aligned affine map of the canvas, resampled once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray

POLICIES = ("flip", "none")


class Augmented(NamedTuple):
    """An augmented picture.

    Attributes:
      image: `[height, width, 3]` float32 in 0..255.
      boxes: `[G, 4]` corners in [0, 1] of `image`.
      labels: `[G]` int32; 0 is padding.
    """

    image: jax.Array
    boxes: jax.Array
    labels: jax.Array


def augment(
    key: jax.Array,
    image: jax.Array,
    extent: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    *,
    size: int | tuple[int, int],
    policy: str = "flip",
) -> Augmented:
    """Makes a training example of one picture.

    Args:
      key: Random key of this example.
      image: `[H, W, 3]` uint8 canvas.
      extent: `[2]` (height, width) of the picture on the canvas, in pixels.
      boxes: `[G, 4]` corners in [0, 1] of the picture.
      labels: `[G]` int classes from 1; 0 is padding.
      size: Side, or (height, width), of the result in pixels.
      policy: One of `POLICIES`: `"flip"` mirrors half of the pictures left to right.

    Returns:
      The example, resized to `size` without keeping the aspect ratio.

    Raises:
      ValueError: If `policy` is unknown.

    Source: Liu et al. 2016, section 2.2, "Data augmentation": resize and horizontal flip.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}; choose one of {', '.join(POLICIES)}")
    flip = jax.random.bernoulli(key) & (policy == "flip")
    mirrored = jnp.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=-1)
    boxes = jnp.where(flip & (labels > 0)[:, None], mirrored, boxes)
    return Augmented(_resample(image, extent, flip, size=size), boxes, labels.astype(jnp.int32))


def resize(image: Array, extent: Array, *, size: int | tuple[int, int]) -> jax.Array:
    """Resizes the picture on a canvas bilinearly, without antialiasing, as OpenCV and torch do.

    Args:
      image: `[H, W, 3]` uint8 canvas.
      extent: `[2]` (height, width) of the picture on the canvas, in pixels.
      size: Side, or (height, width), of the result in pixels.

    Returns:
      `[height, width, 3]` float32 in 0..255.
    """
    return _resample(image, extent, jnp.asarray(False), size=size)


def _resample(
    image: Array, extent: Array, flip: jax.Array, *, size: int | tuple[int, int]
) -> jax.Array:
    height, width = (size, size) if isinstance(size, int) else size
    rows = _linear_weights(height, image.shape[0], extent[0])
    columns = _linear_weights(width, image.shape[1], extent[1])
    columns = jnp.where(flip, columns[::-1], columns)
    pixels = jnp.einsum("yh,hwc->ywc", rows, jnp.asarray(image, jnp.float32), precision="highest")
    return jnp.einsum("xw,ywc->yxc", columns, pixels, precision="highest")


def _linear_weights(count: int, canvas: int, extent: Array) -> jax.Array:
    """`[count, canvas]`: how much of each of the canvas's pixels is in each pixel of the result.

    Pixel centres lie at halves; beyond the picture its border repeats.
    """
    centre = (jnp.arange(count) + 0.5) * (extent / count) - 0.5
    centre = jnp.clip(centre, 0, extent - 1)
    return jnp.maximum(1 - jnp.abs(centre[:, None] - jnp.arange(canvas)), 0)
