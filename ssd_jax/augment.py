"""SSD's augmentation of one image and its boxes, on the device; resizing and normalization.

An image lies in the upper left corner of a fixed uint8 canvas; `valid_size` is its (height, width).
The expansion, crop, resizing and flip are one axis-aligned affine map of that canvas, so the image
is resampled once, by `resampling.warp`. The photometric operations are applied to the result where
it shows the image; the mean fills the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import boxes as box_ops
from ssd_jax import resampling

Array = jax.Array | np.ndarray

POLICIES = ("ssd", "crop", "flip")
# RGB, 0..255: what the authors' network subtracts, and what surrounds an expanded image.
MEAN = (123.0, 117.0, 104.0)
_LEAST_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # of the samplers that draw; 0: unconstrained
_CROP_SCALE = (0.3, 1.0)  # square root of the crop's share of the area
_CROP_RATIO = (0.5, 2.0)  # normalized width over normalized height
_BRIGHTNESS = 32.0  # levels
_FACTOR = (0.5, 1.5)  # of contrast and of saturation
_HUE = 36.0  # degrees, 18 of OpenCV's 8-bit units
_KEYS = ("flip", "expand", "crop", "warp", "color")  # of an example, by what they decide


class Augmented(NamedTuple):
    """An augmented image.

    Attributes:
      image: `[height, width, 3]` float32 in 0..255.
      boxes: `[G, 4]` corners in [0, 1] of `image`, in the rows of the input; 0 where dropped.
      labels: `[G]` int32; 0 is padding or an object that the crop dropped.
    """

    image: jax.Array
    boxes: jax.Array
    labels: jax.Array


class Proposals(NamedTuple):
    """Crops, one of each sampler: the whole, IoU 0.1, 0.3, 0.5, 0.7, 0.9, unconstrained.

    Attributes:
      crops: `[7, 4]` corners in [0, 1] of the image.
      found: `[7]` bool: whether the sampler found a crop within its trials.
    """

    crops: jax.Array
    found: jax.Array


def augment(
    key: jax.Array,
    image: Array,
    valid_size: Array,
    boxes: Array,
    labels: Array,
    *,
    size: int | tuple[int, int],
    policy: str = "ssd",
    channel_shuffle: bool = False,
    interpolations: Sequence[str] = resampling.INTERPOLATIONS,
    mean: Sequence[float] = MEAN,
) -> Augmented:
    """Makes a training example of one image.

    `"ssd"` distorts colors, expands (half of the images), crops, resizes to `size` and flips
    (half). `"crop"` does the same without expansion, as the paper does before its section 3.6.
    `"flip"` only resizes, bilinearly, and flips.

    Args:
      key: Random key of this example.
      image: `[H, W, 3]` uint8 canvas.
      valid_size: `[2]` (height, width) of the image on the canvas, in whole pixels.
      boxes: `[G, 4]` corners in [0, 1] of the image.
      labels: `[G]` int classes from 1; 0 is padding.
      size: Side, or (height, width), of the result in pixels.
      policy: One of `POLICIES`.
      channel_shuffle: Half of the images get their color channels in a random order, as in
        amdegroot's and lufficc's SSD, unlike the authors'.
      interpolations: Names from `INTERPOLATIONS`, of which one is drawn for each image.
      mean: `[3]` RGB in 0..255 around an expanded image.

    Returns:
      The example. An object stays if its center lies in the crop, and is clipped to it.

    Raises:
      ValueError: If `policy` or an interpolation is unknown.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}; choose one of {', '.join(POLICIES)}")
    boxes, labels = jnp.asarray(boxes, jnp.float32), jnp.asarray(labels, jnp.int32)
    valid_size = jnp.asarray(valid_size, jnp.float32)
    chex.assert_shape([image, valid_size], [(None, None, 3), (2,)])
    _check_objects(boxes, labels)
    keys = dict(zip(_KEYS, jax.random.split(key, len(_KEYS)), strict=True))
    flip = jax.random.bernoulli(keys["flip"])
    if policy == "flip":
        image = resize(image, valid_size, size=size)
        image = jnp.where(flip, image[:, ::-1], image)
        return Augmented(image, *_flip_boxes(flip, boxes, labels))
    whole = jnp.concatenate([jnp.zeros(2), valid_size[::-1]])
    canvas = whole if policy == "crop" else _expansion(keys["expand"], valid_size)
    boxes = _to_frame(boxes, canvas / jnp.tile(valid_size[::-1], 2))
    crop = sample_crop(keys["crop"], boxes, labels)
    boxes, labels = crop_boxes(crop, boxes, labels)
    boxes, labels = _flip_boxes(flip, boxes, labels)
    method = _draw_interpolation(keys["warp"], interpolations)
    image, coverage = resampling.warp(
        image, valid_size, canvas=canvas, crop=crop, flip=flip, interpolation=method, size=size
    )
    image = photometric(keys["color"], image, channel_shuffle=channel_shuffle)
    # In this form the result is exactly the mean where there is no image, whatever the rounding:
    # the network's input is 0 there, not noise about 0.
    surround = jnp.asarray(mean, jnp.float32)
    image = surround + coverage[..., None] * (image - surround)
    return Augmented(image, boxes, labels)


def resize(image: Array, valid_size: Array, *, size: int | tuple[int, int]) -> jax.Array:
    """Resizes the image on a canvas bilinearly, without antialiasing, as OpenCV and torch do.

    Args:
      image: `[H, W, 3]` uint8 canvas.
      valid_size: `[2]` (height, width) of the image on the canvas, in pixels.
      size: Side, or (height, width), of the result in pixels.

    Returns:
      `[height, width, 3]` float32 in 0..255.
    """
    valid_size = jnp.asarray(valid_size, jnp.float32)
    chex.assert_shape([image, valid_size], [(None, None, 3), (2,)])
    return resampling.warp(
        image,
        valid_size,
        canvas=jnp.concatenate([jnp.zeros(2), valid_size[::-1]]),
        crop=jnp.array([0.0, 0.0, 1.0, 1.0]),
        size=size,
        precision="highest",
    )[0]


def normalize(images: Array, *, mean: Sequence[float] = MEAN) -> jax.Array:
    """Subtracts the mean: `[..., 3]` RGB in 0..255 -> the network's input, which is not scaled."""
    chex.assert_shape(images, (..., 3))
    return jnp.asarray(images, jnp.float32) - jnp.asarray(mean, jnp.float32)


# --- The crop ---


def sample_crop(key: jax.Array, boxes: Array, labels: Array, *, trials: int = 50) -> jax.Array:
    """Draws the crop of an image: one of the crops that the samplers found, with equal probability.

    Args:
      key: Random key.
      boxes: `[G, 4]` corners in [0, 1] of the image.
      labels: `[G]` int classes from 1; 0 is padding.
      trials: Crops that a sampler tries.

    Returns:
      `[4]` corners in [0, 1] of the image; (0, 0, 1, 1) is the whole.

    Source: Liu et al. 2016, section 2.2, "Data augmentation".
    """
    propose_key, pick_key = jax.random.split(key)
    proposals = propose_crops(propose_key, boxes, labels, trials=trials)
    scores = jnp.where(proposals.found, jax.random.uniform(pick_key, (7,)), -1)
    return proposals.crops[jnp.argmax(scores)]


def propose_crops(key: jax.Array, boxes: Array, labels: Array, *, trials: int = 50) -> Proposals:
    """Returns the first valid crop of each sampler; all trials are drawn and tested at once.

    A sampler is satisfied by a crop whose IoU with at least one object reaches its minimum. Without
    objects only the whole image and the unconstrained crop are found.

    Args:
      key: Random key.
      boxes: `[G, 4]` corners in [0, 1] of the image.
      labels: `[G]` int classes from 1; 0 is padding.
      trials: Crops that a sampler tries.

    Returns:
      A crop of each sampler, and which are real.
    """
    boxes, labels = jnp.asarray(boxes, jnp.float32), jnp.asarray(labels)
    _check_objects(boxes, labels)
    least = jnp.asarray(_LEAST_OVERLAPS)
    crops = _draw_crops(key, (len(_LEAST_OVERLAPS), trials))
    iou = box_ops.pairwise_iou(crops.reshape(-1, 4), boxes).reshape(*crops.shape[:2], -1)
    best = jnp.max(iou, axis=-1, where=labels > 0, initial=0)  # [6, trials]
    satisfied = best >= least[:, None]
    first = jnp.argmax(satisfied, axis=1)
    drawn = jnp.take_along_axis(crops, first[:, None, None], axis=1)[:, 0]
    whole = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    return Proposals(
        crops=jnp.concatenate([whole, drawn]),
        found=jnp.concatenate([jnp.array([True]), jnp.any(satisfied, axis=1)]),
    )


def _draw_crops(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`[*shape, 4]` crops: scale, then aspect ratio, then place, all uniform."""
    uniform = jax.random.uniform(key, (4, *shape))
    scale = _CROP_SCALE[0] + (_CROP_SCALE[1] - _CROP_SCALE[0]) * uniform[0]
    low = jnp.maximum(_CROP_RATIO[0], scale**2)
    high = jnp.minimum(_CROP_RATIO[1], 1 / scale**2)
    side = jnp.sqrt(low + (high - low) * uniform[1])
    size = jnp.stack([jnp.minimum(scale * side, 1), jnp.minimum(scale / side, 1)], axis=-1)
    corner = jnp.stack([uniform[2], uniform[3]], axis=-1) * (1 - size)
    return jnp.concatenate([corner, jnp.minimum(corner + size, 1)], axis=-1)


def crop_boxes(crop: Array, boxes: Array, labels: Array) -> tuple[jax.Array, jax.Array]:
    """Crops boxes: objects with their center in the crop are kept and clipped to it.

    Args:
      crop: `[4]` corners, in the frame of `boxes`.
      boxes: `[G, 4]` corners.
      labels: `[G]` int classes from 1; 0 is padding.

    Returns:
      `[G, 4]` corners in [0, 1] of the crop and `[G]` int32 labels, both 0 where dropped.
    """
    crop, boxes, labels = jnp.asarray(crop), jnp.asarray(boxes), jnp.asarray(labels, jnp.int32)
    chex.assert_shape(crop, (4,))
    _check_objects(boxes, labels)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = jnp.all((center >= crop[:2]) & (center <= crop[2:]), axis=1)
    return _with_area(box_ops.clip(_to_frame(boxes, crop)), jnp.where(inside, labels, 0))


def _check_objects(boxes: jax.Array, labels: jax.Array) -> None:
    chex.assert_shape(boxes, (None, 4))
    chex.assert_shape(labels, boxes.shape[:1])


def _with_area(boxes: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Drops boxes that float32 rounds to no area: the log of their size would be infinite."""
    kept = jnp.all(boxes[:, 2:] > boxes[:, :2], axis=1) & (labels > 0)
    return jnp.where(kept[:, None], boxes, 0), jnp.where(kept, labels, 0)


def _to_frame(boxes: jax.Array, frame: jax.Array) -> jax.Array:
    """`[G, 4]` corners relative to a frame, whose corners `[4]` become 0 and 1."""
    return (boxes - jnp.tile(frame[:2], 2)) / jnp.tile(frame[2:] - frame[:2], 2)


def _flip_boxes(
    flip: jax.Array, boxes: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mirrors boxes left to right where `flip` is True."""
    mirrored = jnp.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=-1)
    return _with_area(jnp.where(flip, mirrored, boxes), labels)


# --- The geometry ---


def _expansion(key: jax.Array, valid_size: jax.Array) -> jax.Array:
    """`[4]` corners of the expanded image, in whole pixels of the image; the first are at most 0.

    Half of the images are not expanded: (0, 0, width, height).
    """
    apply, ratio, place = jax.random.split(key, 3)
    ratio = jax.random.uniform(ratio, minval=1.0, maxval=resampling.LARGEST_EXPANSION)
    size = jnp.floor(valid_size[::-1] * ratio)  # (width, height)
    offset = jnp.floor(jax.random.uniform(place, (2,)) * (size - valid_size[::-1]))
    expanded = jnp.concatenate([-offset, size - offset])
    whole = jnp.concatenate([jnp.zeros(2), valid_size[::-1]])
    return jnp.where(jax.random.bernoulli(apply), expanded, whole)


def _draw_interpolation(key: jax.Array, names: Sequence[str]) -> jax.Array:
    """Index into `INTERPOLATIONS` of one of the names."""
    unknown = sorted(set(names) - set(resampling.INTERPOLATIONS))
    if unknown or not names:
        raise ValueError(
            f"interpolations: {', '.join(unknown) or 'none'}; "
            f"choose among {', '.join(resampling.INTERPOLATIONS)}"
        )
    return jax.random.choice(
        key, jnp.asarray([resampling.INTERPOLATIONS.index(name) for name in names])
    )


# --- The colors ---


def photometric(key: jax.Array, image: Array, *, channel_shuffle: bool = False) -> jax.Array:
    """Distorts colors: brightness; contrast before or after saturation and hue; each or none.

    Each operation and each order has a probability of one half; the result is clipped to 0..255.

    Args:
      key: Random key.
      image: `[H, W, 3]` RGB in 0..255.
      channel_shuffle: Half of the images get their channels in a random order at the end.

    Returns:
      `[H, W, 3]` float32 in 0..255.

    Source: Liu et al. 2016, section 2.2, after Howard 2013; ranges of the authors' release.
    """
    keys = jax.random.split(key, 6)
    image = jnp.asarray(image, jnp.float32)
    chex.assert_shape(image, (None, None, 3))
    image = adjust_brightness(image, _draw(keys[0], -_BRIGHTNESS, _BRIGHTNESS, neutral=0.0))
    contrast = _draw(keys[1], *_FACTOR, neutral=1.0)
    contrast_first = jax.random.bernoulli(keys[2])
    image = adjust_contrast(image, jnp.where(contrast_first, contrast, 1))
    image = adjust_saturation(image, _draw(keys[3], *_FACTOR, neutral=1.0))
    image = adjust_hue(image, _draw(keys[4], -_HUE, _HUE, neutral=0.0))
    image = adjust_contrast(image, jnp.where(contrast_first, 1, contrast))
    return _shuffled(keys[5], image) if channel_shuffle else image


def _draw(key: jax.Array, low: float, high: float, *, neutral: float) -> jax.Array:
    """Draws a uniform number, or with probability one half the neutral one."""
    apply, value = jax.random.split(key)
    drawn = jax.random.uniform(value, minval=low, maxval=high)
    return jnp.where(jax.random.bernoulli(apply), drawn, neutral)


def adjust_brightness(image: Array, delta: Array) -> jax.Array:
    """Adds `delta` levels to `[..., 3]` in 0..255."""
    chex.assert_shape(image, (..., 3))
    return jnp.clip(image + delta, 0, 255)


def adjust_contrast(image: Array, factor: Array) -> jax.Array:
    """Multiplies `[..., 3]` in 0..255 by `factor`, at least 0."""
    chex.assert_shape(image, (..., 3))
    return jnp.clip(image * factor, 0, 255)


def adjust_saturation(image: Array, factor: Array) -> jax.Array:
    """Multiplies HSV's saturation of `[..., 3]` RGB in 0..255 by `factor`, at least 0.

    Saturation is (V - min) / V and ends at 1: the channels move along their distance from V.
    """
    image = jnp.asarray(image, jnp.float32)
    chex.assert_shape(image, (..., 3))
    value, low = jnp.max(image, axis=-1, keepdims=True), jnp.min(image, axis=-1, keepdims=True)
    chroma = value - low
    most = jnp.where(chroma > 0, value / jnp.where(chroma > 0, chroma, 1), 1)
    return value - (value - image) * jnp.minimum(factor, most)


def adjust_hue(image: Array, degrees: Array) -> jax.Array:
    """Turns HSV's hue of `[..., 3]` RGB in 0..255 by `degrees`, within -360..360."""
    image = jnp.asarray(image, jnp.float32)
    chex.assert_shape(image, (..., 3))
    value, low = jnp.max(image, axis=-1), jnp.min(image, axis=-1)
    chroma = value - low
    safe = jnp.where(chroma > 0, chroma, 1)
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sector + degrees / 60 + 12  # in sixths of the circle, positive
    ramp = turned[..., None] + jnp.asarray([5.0, 3.0, 1.0])
    ramp -= 6 * jnp.floor(ramp / 6)
    share = jnp.clip(jnp.minimum(ramp, 4 - ramp), 0, 1)
    rotated = value[..., None] - chroma[..., None] * share
    return jnp.where(degrees == 0, image, rotated)


def _shuffled(key: jax.Array, image: jax.Array) -> jax.Array:
    """The channels of half of the images in a random order."""
    apply, order = jax.random.split(key)
    order = jax.random.permutation(order, 3)
    return jnp.where(jax.random.bernoulli(apply), jnp.take(image, order, axis=-1), image)
