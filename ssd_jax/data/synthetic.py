"""The built-in dataset: generated pictures of cluttered scenes, written as a PASCAL VOC folder.

A scene is painted from back to front: a cluttered ground, then the things on it. Some things are
objects of `CLASS_NAMES`; others are look-alikes that nobody annotates. Colour, texture, size and
place are drawn alike for all of them, so that only the shape tells a class. Every random number of
a picture comes from (seed, split, picture number): a picture stays the same however many pictures
are written and however many processes write them.

Nothing here needs JAX.
"""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ssd_jax import errors

SPLITS = ("train", "test")  # the position of a name is part of its pictures' random key

PICTURE_SIDES = (240, 420)  # pixels
EMPTY_SHARE = 0.05  # of the pictures hold no object
MAX_OBJECTS = 8
LOOK_ALIKES_MEAN, MAX_LOOK_ALIKES = 0.6, 3  # Poisson
PATTERNED_SHARE = 0.2  # of the things have stripes, checks or dots
# Log-normal: longer side of a thing / shorter side of the picture.
SIZE_MEDIAN, SIZE_SIGMA = 0.3, 0.55
TILT = 0.35  # radians, the most that a thing is turned
SIZE_RANGE = (0.05, 0.9)
CUT_SHARE = 0.15  # of the objects may reach over the edge of the picture
OVERLAP_SHARE = 0.35  # of the things may hide much of others; the rest hide little (LEAST_HIDDEN)
# Hidden share of an object's own pixels.
OCCLUDED_FROM, LEAST_HIDDEN, DIFFICULT_FROM, GONE_FROM = 0.05, 0.1, 0.5, 0.85
PLACE_TRIALS = 12
SUPERSAMPLING = 3
JPEG_QUALITY = 90

_MACHINE = 100  # exit status of a process that the machine stopped, less the system's number of it

Facet = tuple[np.ndarray, float]  # polygon (N, 2), y down, any unit; brightness 0..1, 0 cuts a hole


class SceneObject(NamedTuple):
    """One annotated object.

    Attributes:
      name: One of `CLASS_NAMES`.
      box: xmin, ymin, xmax, ymax in pixels, counted from 1, both ends included, as VOC has it;
        tight around the part of the shape inside the picture, whether or not others cover it.
      difficult: More than half of the shape is hidden, by others or by the edge of the picture.
      truncated: The edge of the picture cuts the shape.
      occluded: Others cover more than a twentieth of the shape.
    """

    name: str
    box: tuple[int, int, int, int]
    difficult: bool
    truncated: bool
    occluded: bool


class Scene(NamedTuple):
    """A picture, uint8 `(H, W, 3)` RGB, and its objects from back to front."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]


# --- Shapes ---


def _arc(start: float, stop: float, radius: float = 1.0) -> np.ndarray:
    angles = np.linspace(start, stop, 96)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _spikes(tips: int, inner: float) -> np.ndarray:
    angles = np.arange(2 * tips) * math.pi / tips
    radii = np.where(np.arange(2 * tips) % 2 == 0, 1.0, inner)[:, None]
    return radii * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _regular(sides: int) -> np.ndarray:
    return _spikes(sides, math.cos(math.pi / sides))


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _cross(w: float) -> list[Facet]:
    return [(_box(-1, -w, 1, w), 1.0), (_box(-w, -1, w, 1), 1.0)]


def _tee(w: float) -> list[Facet]:
    return [(_box(-1, -1, 1, 2 * w - 1), 1.0), (_box(-w, -1, w, 1), 1.0)]


def _corner(w: float) -> list[Facet]:
    return [(_box(-1, 1 - 2 * w, 1, 1), 1.0), (_box(-1, -1, 2 * w - 1, 1), 1.0)]


def _cube(rng: np.random.Generator) -> list[Facet]:
    """Returns top, left and right face, seen from above along a random direction."""
    yaw, pitch = rng.uniform(0.5, 1.08), rng.uniform(0.4, 0.8)  # radians
    left = np.array([-math.cos(yaw), -math.sin(yaw) * math.sin(pitch)])
    right = np.array([math.sin(yaw), -math.cos(yaw) * math.sin(pitch)])
    down, near = np.array([0, math.cos(pitch)]), np.zeros(2)
    edges = ((left, right, 1.0), (left, down, rng.uniform(0.65, 0.78)), (right, down, 0.45))
    return [(np.stack([near, a, a + b, b]), shade) for a, b, shade in edges]


def _hollow(outline: np.ndarray, rng: np.random.Generator) -> list[Facet]:
    outline = outline * (1, rng.uniform(0.7, 1))
    return [(outline, 1.0), (outline * rng.uniform(0.45, 0.68), 0.0)]


def _open_ring(rng: np.random.Generator) -> list[Facet]:
    half_gap, inner = rng.uniform(0.4, 0.9), rng.uniform(0.45, 0.68)
    arc = _arc(half_gap, 2 * math.pi - half_gap)
    return [(np.concatenate([arc, inner * arc[::-1]]), 1.0)]


SHAPES: dict[str, Callable[[np.random.Generator], list[Facet]]] = {
    "ball": lambda rng: [(_arc(0, 2 * math.pi), 1.0)],
    "cross": lambda rng: _cross(rng.uniform(0.24, 0.38)),
    "cube": _cube,
    "ring": lambda rng: _hollow(_arc(0, 2 * math.pi), rng),
    "star": lambda rng: [(_spikes(5, rng.uniform(0.36, 0.5)), 1.0)],
}
LOOK_ALIKES: dict[str, Callable[[np.random.Generator], list[Facet]]] = {
    "corner": lambda rng: _corner(rng.uniform(0.15, 0.25)),
    "four tips": lambda rng: [(_spikes(4, rng.uniform(0.3, 0.42)), 1.0)],
    "frame": lambda rng: _hollow(_box(-1, -1, 1, 1), rng),
    "half disc": lambda rng: [(_arc(0, math.pi), 1.0)],
    "hexagon": lambda rng: [(_regular(6), 1.0)],
    "open ring": _open_ring,
    "tee": lambda rng: _tee(rng.uniform(0.24, 0.38)),
    "triangle": lambda rng: [(_regular(3), 1.0)],
}
CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)
ROUND = ("ball", "half disc")  # shaded as parts of a sphere


# --- From a shape to pixels ---


class Silhouette(NamedTuple):
    """A shape on a patch with a margin: coverage and brightness, float32 `(h, w)` 0..1."""

    coverage: np.ndarray
    brightness: np.ndarray


def silhouette(rng: np.random.Generator, name: str, size: float) -> Silhouette:
    """Draws a shape, randomly turned and stretched, whose longer side is `size` pixels."""
    facets = (SHAPES | LOOK_ALIKES)[name](rng)
    angle = rng.uniform(-TILT, TILT)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    stretch = math.exp(rng.normal(0, 0.08))
    facets = [(points * (stretch, 1 / stretch) @ turn, shade) for points, shade in facets]
    corners = np.concatenate([points for points, _ in facets])
    low, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    scale, margin = size / extent.max(), math.ceil(3 + 0.12 * size)
    width, height = (math.ceil(side) + 2 * margin for side in extent * scale)
    masks = [Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING)) for _ in range(2)]
    for points, shade in facets:
        pixels = (((points - low) * scale + margin) * SUPERSAMPLING).ravel().tolist()
        ImageDraw.Draw(masks[0]).polygon(pixels, fill=255 if shade else 0)
        ImageDraw.Draw(masks[1]).polygon(pixels, fill=round(255 * shade))
    coverage, shaded = (_unit(mask.reduce(SUPERSAMPLING)) for mask in masks)
    return Silhouette(coverage, shaded / np.maximum(coverage, 1 / 255))


def _unit(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255


def _blurred(values: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray((values * 255).astype(np.uint8))
    return _unit(image.filter(ImageFilter.BoxBlur(radius)))


def _colour(
    rng: np.random.Generator, saturation: float, value: float, *, least_saturation: float = 0.0
) -> np.ndarray:
    """Draws a colour `(3,)` 0..1 of any hue and a saturation up to that, of at least that value."""
    hue, s, v = rng.random(3) * (6, saturation - least_saturation, 1 - value)
    s, v = s + least_saturation, v + value
    ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (v * (1 - s * (1 - ramp))).astype(np.float32)


def _texture(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, plain: bool) -> np.ndarray:
    """Draws a pattern: the share 0..1 of the second colour at u, v, which span -1..1."""
    angle, waves, phase = rng.uniform(0, math.pi), rng.uniform(4, 11), rng.uniform(0, 6)
    a, b = (u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle))
    patterned = not plain and rng.random() < PATTERNED_SHARE
    kind = rng.integers(2, 5) if patterned else rng.integers(2)
    if kind == 0:
        return np.zeros_like(u)
    if kind == 1:
        return np.clip(0.5 + 0.5 * a, 0, 1)
    first, second = np.sin(waves * a + phase), np.sin(waves * b)
    wave = (first, first * second, first + second - 0.9)[kind - 2]
    return np.clip(0.5 + 3 * wave, 0, 1)


def _light(name: str, shape: Silhouette, u: np.ndarray, v: np.ndarray, side: float) -> np.ndarray:
    """Returns how bright each pixel is, about 1: the light comes from above and `side` -1 or 1."""
    if name in ROUND:
        depth = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
        facing = np.clip(0.45 * side * u - 0.6 * v + 0.66 * depth, 0, 1)
        return 0.4 + 0.7 * facing + 0.6 * facing**14
    bevel = max(0.8, 0.045 * max(shape.coverage.shape))
    slope_y, slope_x = np.gradient(_blurred(shape.coverage, bevel))
    relief = 0.5 * bevel * (slope_y - side * slope_x)
    return shape.brightness * (1 - 0.18 * (v - side * u)) + relief


def _paint(
    rng: np.random.Generator, name: str, shape: Silhouette, ground: np.ndarray, side: float
) -> np.ndarray:
    """Paints a shape and its shadow on a patch of ground, float32 `(h, w, 3)` 0..1; returns it."""
    size = float(np.ptp(np.argwhere(shape.coverage >= 0.5), axis=0).max()) + 1
    v, u = np.mgrid[: ground.shape[0], : ground.shape[1]].astype(np.float32)
    u, v = (2 * u + 1 - ground.shape[1]) / size, (2 * v + 1 - ground.shape[0]) / size
    around = ground[shape.coverage >= 0.5].mean(axis=0)
    colours = [_colour(rng, 1.0, 0.55, least_saturation=0.3) for _ in range(4)]
    first, second, *_ = sorted(colours, key=lambda colour: -float(np.abs(colour - around).sum()))
    share = _texture(rng, u, v, plain=size < 40)[..., None]
    light = _light(name, shape, u, v, side)
    if rng.random() < 0.5:  # a dark rim
        light = light * np.clip(2.2 * _blurred(shape.coverage, 0.7 + 0.02 * size) - 1.1, 0.25, 1)
    paint = np.clip((first + share * (second - first)) * light[..., None], 0, 1)
    drop = max(1, round(0.045 * size))
    shadow = np.roll(_blurred(shape.coverage, drop), (drop, round(-side * drop)), (0, 1))
    shaded = ground * (1 - 0.5 * shadow)[..., None]
    return shaded + (paint - shaded) * shape.coverage[..., None]


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
    """Draws translucent blots and lines on a copy of `image`, some in the colours of objects."""
    image, (width, height) = image.copy(), image.size
    draw = ImageDraw.Draw(image, "RGBA")

    def ink() -> tuple[int, ...]:
        vivid = rng.random() < 0.25
        colour = _colour(rng, 1.0, 0.3) if vivid else tones[int(rng.integers(len(tones)))]
        return (*(int(255 * c) for c in colour), int(rng.integers(40, 150)))

    for _ in range(rng.integers(3, 16)):
        draw.polygon(_blot(rng, height, width), fill=ink())
    for _ in range(rng.integers(2, 14)):
        ends = (rng.random((2, 2)) * (width, height)).ravel().tolist()
        draw.line(ends, fill=ink(), width=int(rng.integers(2, 14)))
    return image


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws a cluttered ground, float32 `(height, width, 3)` 0..1, with no shape of a class."""
    tones = [_colour(rng, 0.35, 0.25) for _ in range(3)]
    corners = np.stack([tones[i] for i in rng.integers(0, 3, 4)]).reshape(2, 2, 3)
    image = Image.fromarray((corners * 255).astype(np.uint8))
    image = image.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    image = _cluttered(rng, image, tones)
    light = np.ones((height, width), np.float32)
    for cells, strength in ((5, 0.3), (24, 0.15), (80, 0.1)):
        clouds = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        smooth = _unit(clouds.resize((width, height), Image.Resampling.BICUBIC))
        light *= 1 + np.float32(rng.uniform(0, strength)) * (2 * smooth - 1)
    return np.clip(_unit(image.reduce(2)) * light[..., None], 0, 1)


# --- The scene ---


class _Thing(NamedTuple):
    name: str
    box: tuple[int, int, int, int]
    pixels: int  # of the whole shape
    inside: int  # of the part in the picture


def _plan(rng: np.random.Generator) -> list[tuple[str, float]]:
    """Draws the names and relative sizes of the things, the larger ones mostly further back."""
    objects = 0 if rng.random() < EMPTY_SHARE else min(1 + rng.poisson(2.2), MAX_OBJECTS)
    names = [*rng.choice(CLASS_NAMES, objects)]
    names += [*rng.choice(list(LOOK_ALIKES), min(rng.poisson(LOOK_ALIKES_MEAN), MAX_LOOK_ALIKES))]
    sizes = np.clip(SIZE_MEDIAN * np.exp(rng.normal(0, SIZE_SIGMA, len(names))), *SIZE_RANGE)
    order = np.argsort(-sizes * np.exp(rng.normal(0, 0.5, len(names))))
    return [(str(names[i]), float(sizes[i])) for i in order]


def _offset(rng: np.random.Generator, side: int, room: int, over: float) -> int:
    """Draws where a thing of `side` pixels starts in `room`, up to `over` of it beyond the edge."""
    slack = int(over * side)
    return int(rng.integers(-slack, room - side + slack, endpoint=True))


def _common(
    picture: np.ndarray, patch: np.ndarray, offset: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the views of both where a patch at offset (y, x) lies on the picture."""
    (y, x), (h, w) = offset, picture.shape[:2]
    top, left = max(y, 0), max(x, 0)
    inner = patch[top - y : max(h - y, 0), left - x : max(w - x, 0)]
    return picture[top : top + inner.shape[0], left : left + inner.shape[1]], inner


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
        if thing.name in SHAPES and left <= (1 - most_hidden) * thing.pixels:
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
    shape: Silhouette,
    offset: tuple[int, int],
    side: float,
) -> np.ndarray:
    """Paints a shape, whose patch may reach over the edges, on a copy of `image`; returns it."""
    image = image.copy()
    rows, columns = (
        np.clip(start + np.arange(length), 0, limit - 1)
        for start, length, limit in zip(offset, shape.coverage.shape, image.shape[:2], strict=True)
    )
    painted = _paint(rng, name, shape, image[np.ix_(rows, columns)], side)
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
    height, width = (int(side) for side in rng.integers(*PICTURE_SIDES, 2, endpoint=True))
    image, owner = _ground(rng, height, width), np.zeros((height, width), np.int16)
    things: list[_Thing] = []
    side = rng.choice((-1.0, 1.0))
    for name, size in _plan(rng):
        shape = silhouette(rng, name, size * min(height, width))
        solid = shape.coverage >= 0.5
        low, extent = np.argwhere(solid).min(axis=0), np.ptp(np.argwhere(solid), axis=0) + 1
        most_hidden = GONE_FROM if rng.random() < OVERLAP_SHARE else LEAST_HIDDEN
        over = 0.6 if name in SHAPES and rng.random() < CUT_SHARE else 0.0
        for _ in range(PLACE_TRIALS):
            y = _offset(rng, int(extent[0]), height, over) - int(low[0])
            x = _offset(rng, int(extent[1]), width, over) - int(low[1])
            put = _put(owner, things, name, solid, (y, x), most_hidden)
            if put:
                owner, things = put
                image = _pasted(rng, image, name, shape, (y, x), side)
                break
    seen = zip(things, _visible(owner, things), strict=True)
    objects = tuple(_annotated(thing, int(left)) for thing, left in seen if thing.name in SHAPES)
    return Scene(_photograph(rng, image), objects)


# --- The folder ---


def _element(tag: str, *children: ElementTree.Element, **texts: object) -> ElementTree.Element:
    """Returns an element that holds one element for each of `texts`, then `children`."""
    parent = ElementTree.Element(tag)
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)
    parent.extend(children)
    return parent


def _annotation(folder: str, filename: str, drawn: Scene) -> ElementTree.Element:
    """Returns the annotation of a scene in the schema of VOC2007, with VOC2012's `occluded`."""
    height, width, depth = drawn.image.shape
    root = _element("annotation", folder=folder, filename=filename)
    root.append(_element("source", database="ssd_jax synthetic"))
    root.append(_element("size", width=width, height=height, depth=depth))
    ElementTree.SubElement(root, "segmented").text = "0"
    for one in drawn.objects:
        flags = {flag: int(getattr(one, flag)) for flag in ("truncated", "occluded", "difficult")}
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), one.box, strict=True))
        box = _element("bndbox", **corners)
        root.append(_element("object", box, name=one.name, pose="Unspecified", **flags))
    ElementTree.indent(root, "\t")
    return root


def _name(split: str, number: int) -> str:
    return f"{split}_{number + 1:06d}"


def _write_share(
    folder: str, counts: Sequence[int], seed: int, first: int, step: int, parent: int
) -> None:
    """Writes the pictures first, first + step, ... of every split and their annotations.

    Ends this process where `parent`, for which it works, is gone, or the machine is in trouble,
    whose number its exit status then tells.
    """
    for index, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        for number in range(first, count, step):
            if os.getppid() != parent:
                sys.exit("whoever wanted these pictures is gone")
            drawn, name = scene(np.random.default_rng([seed, index, number])), _name(split, number)
            try:
                _write_scene(Path(folder), name, drawn)
            except OSError as error:
                sys.exit(_MACHINE + (error.errno or errno.EIO))


def _write_scene(folder: Path, name: str, drawn: Scene) -> None:
    picture = folder / "JPEGImages" / f"{name}.jpg"
    Image.fromarray(drawn.image).save(picture, quality=JPEG_QUALITY)
    root = _annotation(folder.name, picture.name, drawn)
    ElementTree.ElementTree(root).write(folder / "Annotations" / f"{name}.xml")


def _write_share_in_a_process(*job: object) -> None:
    """Runs `_write_share(*job)` in a fresh interpreter.

    multiprocessing would import the caller's script, and JAX with it, in every worker, and would
    fail where that script has no `__main__` guard.

    Raises:
      OSError: It can't write.
    """
    code = "import json, sys; from ssd_jax.data import synthetic; "
    code += "synthetic._write_share(*json.loads(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command = [sys.executable, "-c", code, json.dumps((*job, os.getpid()))]
    status = subprocess.run(command, env=environment).returncode
    if status > _MACHINE:
        raise OSError(status - _MACHINE, os.strerror(status - _MACHINE), job[0])
    if status == -signal.SIGKILL:  # as the system does to end what takes its memory
        raise OSError(errno.ENOMEM, "a process that makes the pictures was killed", job[0])
    if status:
        raise subprocess.CalledProcessError(status, command)


def write(
    folder: str | os.PathLike[str],
    *,
    train: int = 2000,
    test: int = 200,
    seed: int = 0,
    processes: int | None = None,
) -> None:
    """Writes the dataset as a PASCAL VOC folder, which appears when it is complete.

    Args:
      folder: Made here, with JPEGImages, Annotations and ImageSets/Main; its parents too.
      train: Number of pictures of the split "train".
      test: Number of pictures of the split "test".
      seed: At least 0; another seed gives other pictures.
      processes: At least 1; None takes one for each CPU. It does not change what is written.

    Raises:
      UserError: `folder` exists.
      OSError: It can't be written.
    """
    folder, counts = Path(folder).absolute(), (train, test)
    if folder.exists():
        raise errors.UserError(f"{folder} exists: remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        part = Path(temporary, folder.name)
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (part / name).mkdir(parents=True)
        for split, count in zip(SPLITS, counts, strict=True):
            names = "".join(f"{_name(split, number)}\n" for number in range(count))
            (part / "ImageSets/Main" / f"{split}.txt").write_text(names)
        step = processes or os.cpu_count() or 1
        jobs = [(str(part), counts, seed, first, step) for first in range(step)]
        with futures.ThreadPoolExecutor(step) as pool:  # each thread waits for one process
            list(pool.map(lambda job: _write_share_in_a_process(*job), jobs))
        part.rename(folder)
