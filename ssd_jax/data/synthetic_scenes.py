"""Cluttered scenes of the built-in dataset, each with its annotated objects.

A scene is painted from back to front: a cluttered ground, then the things on it. Some things are
objects of a class; others are look-alikes without annotation. Size and place are drawn alike for
all of them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ssd_jax.data import synthetic_shapes

IMAGE_SIDES = (240, 420)  # pixels
EMPTY_SHARE = 0.05  # of the images hold no object
MAX_OBJECTS = 8
LOOK_ALIKES_MEAN, MAX_LOOK_ALIKES = 0.6, 3  # Poisson
# Log-normal: longer side of a thing / shorter side of the image.
SIZE_MEDIAN, SIZE_SIGMA = 0.3, 0.55
SIZE_RANGE = (0.05, 0.9)
CUT_SHARE = 0.15  # of the objects may reach over the edge of the image
OVERLAP_SHARE = 0.35  # of the things may hide much of others; the rest hide little (LEAST_HIDDEN)
# Hidden share of an object's own pixels.
OCCLUDED_FROM, LEAST_HIDDEN, DIFFICULT_FROM, GONE_FROM = 0.05, 0.1, 0.5, 0.85
PLACE_TRIALS = 12


class SceneObject(NamedTuple):
    """One annotated object.

    Attributes:
      name: One of `CLASS_NAMES`.
      box: xmin, ymin, xmax, ymax in pixels, counted from 1, both ends included, as VOC has it;
        tight around the part of the shape inside the image, whether or not others cover it.
      difficult: More than half of the shape is hidden, by others or by the edge of the image.
      truncated: The edge of the image cuts the shape.
      occluded: Others cover more than a twentieth of the shape.
    """

    name: str
    box: tuple[int, int, int, int]
    difficult: bool
    truncated: bool
    occluded: bool


class Scene(NamedTuple):
    """An image, uint8 `(H, W, 3)` RGB, and its objects from back to front."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]


# --- The ground ---


def _blot(rng: np.random.Generator, height: int, width: int) -> list[float]:
    """Draws the outline of a wavy blob or of a jagged polygon, as x, y, x, y ... in pixels."""
    count = int(rng.choice((3, 4, 5, 40)))
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False) + rng.uniform(0, 6)
    waves = rng.uniform(-0.3, 0.3, 3) * np.sin(np.outer(angles, (2, 3, 4)) + rng.uniform(0, 6, 3))
    radii = 1 + waves.sum(axis=1) if count == 40 else rng.uniform(0.3, 1.5, count)
    radii = radii * min(height, width) * rng.uniform(0.03, 0.25)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (rng.random(2) * (width, height) + radii[:, None] * directions).ravel().tolist()


def _cluttered(
    rng: np.random.Generator, image: Image.Image, tones: Sequence[np.ndarray]
) -> Image.Image:
    """Draws translucent blots and lines on a copy of `image`, some in the colors of objects."""
    image, (width, height) = image.copy(), image.size
    draw = ImageDraw.Draw(image, "RGBA")

    def ink() -> tuple[int, ...]:
        vivid = rng.random() < 0.25
        color = (
            synthetic_shapes.color(rng, 1.0, 0.3) if vivid else tones[int(rng.integers(len(tones)))]
        )
        return (*(int(255 * c) for c in color), int(rng.integers(40, 150)))

    for _ in range(rng.integers(3, 16)):
        draw.polygon(_blot(rng, height, width), fill=ink())
    for _ in range(rng.integers(2, 14)):
        ends = (rng.random((2, 2)) * (width, height)).ravel().tolist()
        draw.line(ends, fill=ink(), width=int(rng.integers(2, 14)))
    return image


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws a cluttered ground, float32 `(height, width, 3)` 0..1, with no shape of a class."""
    tones = [synthetic_shapes.color(rng, 0.35, 0.25) for _ in range(3)]
    corners = np.stack([tones[i] for i in rng.integers(0, 3, 4)]).reshape(2, 2, 3)
    image = Image.fromarray((corners * 255).astype(np.uint8))
    image = image.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    image = _cluttered(rng, image, tones)
    light = np.ones((height, width), np.float32)
    for cells, strength in ((5, 0.3), (24, 0.15), (80, 0.1)):
        clouds = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        smooth = synthetic_shapes.unit(clouds.resize((width, height), Image.Resampling.BICUBIC))
        light *= 1 + np.float32(rng.uniform(0, strength)) * (2 * smooth - 1)
    return np.clip(synthetic_shapes.unit(image.reduce(2)) * light[..., None], 0, 1)


# --- The scene ---


class _Thing(NamedTuple):
    name: str
    box: tuple[int, int, int, int]
    pixels: int  # of the whole shape
    inside: int  # of the part in the image


def _plan(rng: np.random.Generator) -> list[tuple[str, float]]:
    """Draws the names and relative sizes of the things, the larger ones mostly further back."""
    objects = 0 if rng.random() < EMPTY_SHARE else min(1 + rng.poisson(2.2), MAX_OBJECTS)
    names = [*rng.choice(synthetic_shapes.CLASS_NAMES, objects)]
    names += [
        *rng.choice(
            list(synthetic_shapes.LOOK_ALIKES), min(rng.poisson(LOOK_ALIKES_MEAN), MAX_LOOK_ALIKES)
        )
    ]
    sizes = np.clip(SIZE_MEDIAN * np.exp(rng.normal(0, SIZE_SIGMA, len(names))), *SIZE_RANGE)
    order = np.argsort(-sizes * np.exp(rng.normal(0, 0.5, len(names))))
    return [(str(names[i]), float(sizes[i])) for i in order]


def _offset(rng: np.random.Generator, side: int, room: int, over: float) -> int:
    """Draws where a thing of `side` pixels starts in `room`, up to `over` of it beyond the edge."""
    slack = int(over * side)
    return int(rng.integers(-slack, room - side + slack, endpoint=True))


def _common(
    image: np.ndarray, patch: np.ndarray, offset: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the views of both where a patch at offset (y, x) lies on the image."""
    (y, x), (h, w) = offset, image.shape[:2]
    top, left = max(y, 0), max(x, 0)
    inner = patch[top - y : max(h - y, 0), left - x : max(w - x, 0)]
    return image[top : top + inner.shape[0], left : left + inner.shape[1]], inner


def _visible(owner: np.ndarray, things: Sequence[_Thing]) -> np.ndarray:
    """Counts the pixels `(len(things),)` that each thing owns; `owner` is 0 on the ground."""
    return np.bincount(owner.ravel(), minlength=len(things) + 1)[1:]


def _put(
    owner: np.ndarray,
    things: Sequence[_Thing],
    name: str,
    solid: np.ndarray,
    offset: tuple[int, int],
    most_hidden: float,
) -> tuple[np.ndarray, list[_Thing]] | None:
    """Puts a thing in front of the others; None if that hides an object by more than that share.

    Returns:
      The new `owner`, `(H, W)` number from 1 of the frontmost thing at each pixel, and `things`.
    """
    owner, number = owner.copy(), len(things) + 1
    region, patch = _common(owner, solid, offset)
    region[patch] = number
    ys, xs = np.nonzero(owner == number)
    if not len(ys):
        return None
    box = (int(xs.min()) + 1, int(ys.min()) + 1, int(xs.max()) + 1, int(ys.max()) + 1)
    things = [*things, _Thing(name, box, int(solid.sum()), len(ys))]
    for thing, left in zip(things, _visible(owner, things), strict=True):
        if thing.name in synthetic_shapes.SHAPES and left <= (1 - most_hidden) * thing.pixels:
            return None
    return owner, things


def _annotated(thing: _Thing, visible: int) -> SceneObject:
    return SceneObject(
        thing.name,
        thing.box,
        difficult=visible < (1 - DIFFICULT_FROM) * thing.pixels,
        truncated=thing.inside < thing.pixels,
        occluded=thing.inside - visible > OCCLUDED_FROM * thing.pixels,
    )


def _pasted(
    rng: np.random.Generator,
    image: np.ndarray,
    name: str,
    shape: synthetic_shapes.Silhouette,
    offset: tuple[int, int],
    side: float,
) -> np.ndarray:
    """Paints a shape, whose patch may reach over the edges, on a copy of `image`; returns it."""
    image = image.copy()
    rows, columns = (
        np.clip(start + np.arange(length), 0, limit - 1)
        for start, length, limit in zip(offset, shape.coverage.shape, image.shape[:2], strict=True)
    )
    painted = synthetic_shapes.paint(rng, name, shape, image[np.ix_(rows, columns)], side)
    region, patch = _common(image, painted, offset)
    region[:] = patch
    return image


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Adds a little noise and blur: float32 `(H, W, 3)` 0..1 -> uint8."""
    grain = rng.standard_normal(image.shape[:2], np.float32) * np.float32(rng.uniform(0, 0.04))
    noisy = (255 * np.clip(image + grain[..., None], 0, 1)).astype(np.uint8)
    return np.asarray(Image.fromarray(noisy).filter(ImageFilter.BoxBlur(rng.uniform(0, 0.6))))


def scene(rng: np.random.Generator) -> Scene:
    """Draws a scene: 0 to 8 objects and some look-alikes on a cluttered ground."""
    height, width = (int(side) for side in rng.integers(*IMAGE_SIDES, 2, endpoint=True))
    image, owner = _ground(rng, height, width), np.zeros((height, width), np.int16)
    things: list[_Thing] = []
    side = rng.choice((-1.0, 1.0))
    for name, size in _plan(rng):
        shape = synthetic_shapes.silhouette(rng, name, size * min(height, width))
        solid = shape.coverage >= 0.5
        low, extent = np.argwhere(solid).min(axis=0), np.ptp(np.argwhere(solid), axis=0) + 1
        most_hidden = GONE_FROM if rng.random() < OVERLAP_SHARE else LEAST_HIDDEN
        over = 0.6 if name in synthetic_shapes.SHAPES and rng.random() < CUT_SHARE else 0.0
        for _ in range(PLACE_TRIALS):
            y = _offset(rng, int(extent[0]), height, over) - int(low[0])
            x = _offset(rng, int(extent[1]), width, over) - int(low[1])
            put = _put(owner, things, name, solid, (y, x), most_hidden)
            if put:
                owner, things = put
                image = _pasted(rng, image, name, shape, (y, x), side)
                break
    seen = zip(things, _visible(owner, things), strict=True)
    objects = tuple(
        _annotated(thing, int(left))
        for thing, left in seen
        if thing.name in synthetic_shapes.SHAPES
    )
    return Scene(_photograph(rng, image), objects)
