"""Resamples an image once for its expansion, crop, resizing and flip, which are one affine map.

The map is along the axes: one matrix of filter weights resamples the rows and one the columns.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
INTERPOLATIONS = ("linear", "area", "nearest", "cubic", "lanczos")

LARGEST_EXPANSION = 4.0  # sides of the expanded image over those of the image
_MOST_TAPS = 8  # of the widest kernel, Lanczos-4


class _Window(NamedTuple):
    """The part of the canvas that the result shows along one axis, in pixels of the canvas.

    The result reaches from `low` to `high`. The image covers `[0, valid_size)`; the mean surrounds
    it, up to the whole pixels `[first, last]`.
    """

    low: jax.Array
    high: jax.Array
    valid_size: jax.Array
    first: jax.Array
    last: jax.Array


def warp(
    image: Array,
    valid_size: Array,
    *,
    canvas: Array,
    crop: Array,
    size: int | tuple[int, int],
    flip: Array | bool = False,
    interpolation: Array | str = "linear",
    precision: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Expands, crops, resizes and flips an image: one resampling, separable in rows and columns.

    The filters are OpenCV's, without antialiasing (except `"area"`, the mean of what a pixel
    covers), with pixel centers at halves. The crop's border repeats. Two filters differ from
    OpenCV's: `"nearest"` takes the pixel under the center of the new one, not under its first edge;
    `"area"` is the mean also where a side grows, where OpenCV's is a kind of linear filter.

    Args:
      image: `[H, W, 3]` uint8 canvas with the image in its upper left corner.
      valid_size: `[2]` (height, width) of the image, in whole pixels.
      canvas: `[4]` corners of the expanded image, in whole pixels of the image.
      crop: `[4]` corners in [0, 1] of the expanded image.
      size: Side, or (height, width), of the result in pixels.
      flip: Whether to mirror the result left to right.
      interpolation: One of `INTERPOLATIONS`, or an index into them.
      precision: Precision of the matrix products, as in `jax.numpy.einsum`; the default precision
        of a device may change a pixel by half a level.

    Returns:
      `[height, width, 3]` float32 in 0..255 of the image's pixels, and `[height, width]` in [0, 1]:
      which share of each pixel is the image; the rest is its surround.
    """
    canvas, crop, valid_size = (
        jnp.asarray(canvas),
        jnp.asarray(crop),
        jnp.asarray(valid_size, jnp.float32),
    )
    chex.assert_shape(image, (None, None, 3))
    chex.assert_shape([canvas, crop, valid_size], [(4,), (4,), (2,)])
    by_name = isinstance(interpolation, str)
    method = jnp.asarray(INTERPOLATIONS.index(interpolation) if by_name else interpolation)
    shape = (size, size) if isinstance(size, int) else size
    rows, columns = (
        _weights(window, method, count=count, canvas=side)
        for window, count, side in zip(
            _windows(canvas, crop, valid_size),
            shape,
            image.shape[:2],
            strict=True,
        )
    )
    columns = jnp.where(flip, columns[::-1], columns)
    (rows, row_share), (columns, column_share) = _only_the_image(rows), _only_the_image(columns)
    pixels = jnp.asarray(image, jnp.float32)
    pixels = jnp.einsum("yh,hwc->ywc", rows, pixels, precision=precision)
    pixels = jnp.einsum("xw,ywc->yxc", columns, pixels, precision=precision)
    return jnp.clip(pixels, 0, 255), row_share[:, None] * column_share


def _windows(canvas: jax.Array, crop: jax.Array, valid_size: jax.Array) -> tuple[_Window, _Window]:
    """Locates a crop of the expanded image along the rows and the columns."""
    corners = crop * jnp.tile(canvas[2:] - canvas[:2], 2) + jnp.tile(canvas[:2], 2)
    columns, rows = (
        _Window(
            low=corners[axis],
            high=corners[axis + 2],
            valid_size=valid_size[1 - axis],
            # The crop shows none of the pixels beyond it, and its border repeats, as if cut out.
            first=jnp.floor(corners[axis]),
            last=jnp.maximum(jnp.ceil(corners[axis + 2]) - 1, jnp.floor(corners[axis])),
        )
        for axis in (0, 1)
    )
    return rows, columns


def _only_the_image(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normalizes the rows of weights to sum to 1, and returns their sums before."""
    share = jnp.clip(jnp.sum(weights, axis=1), 0, 1)
    return weights / jnp.where(share > 0, share, 1)[:, None], share


def _weights(window: _Window, method: jax.Array, *, count: int, canvas: int) -> jax.Array:
    """`[count, canvas]`: how much of each pixel of the canvas is in each pixel of the result.

    A row sums to 1 less the weight of the mean that surrounds the image.
    """
    step = (window.high - window.low) / count  # canvas pixels in one of the result
    start = window.low + jnp.arange(count) * step
    taps = max(_MOST_TAPS, int(np.ceil(LARGEST_EXPANSION * canvas / count)) + 1)
    center = start + step / 2
    is_area = method == INTERPOLATIONS.index("area")
    first = jnp.where(is_area, jnp.floor(start), jnp.floor(center - 0.5) - (_MOST_TAPS // 2 - 1))
    pixel = first[:, None] + jnp.arange(taps)  # [count, taps], cover [pixel, pixel + 1)
    distance = center[:, None] - 0.5 - pixel
    weights = jnp.select(
        [method == index for index in range(len(INTERPOLATIONS))],
        [
            jnp.maximum(1 - jnp.abs(distance), 0),
            _overlap(start[:, None], step, pixel),
            (pixel == jnp.floor(center)[:, None]).astype(jnp.float32),
            _cubic(distance),
            _lanczos(distance),
        ],
    )
    weights /= jnp.sum(weights, axis=1, keepdims=True)
    pixel = jnp.clip(pixel, window.first, window.last)  # the border repeats
    shown = (pixel >= 0) & (pixel < window.valid_size)
    index = jnp.where(shown, pixel, canvas).astype(jnp.int32)  # beyond the end: dropped
    return (
        jnp.zeros((count, canvas)).at[jnp.arange(count)[:, None], index].add(weights, mode="drop")
    )


def _overlap(start: jax.Array, step: jax.Array, pixel: jax.Array) -> jax.Array:
    """Length that `[start, start + step)` has in common with `[pixel, pixel + 1)`."""
    return jnp.maximum(jnp.minimum(start + step, pixel + 1) - jnp.maximum(start, pixel), 0)


def _cubic(distance: jax.Array) -> jax.Array:
    """Keys' kernel with a = -0.75, OpenCV's."""
    x, a = jnp.abs(distance), -0.75
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _lanczos(distance: jax.Array) -> jax.Array:
    """Lanczos' kernel of eight taps."""
    inside = jnp.abs(distance) < _MOST_TAPS / 2
    return jnp.where(inside, jnp.sinc(distance) * jnp.sinc(distance / (_MOST_TAPS / 2)), 0)
