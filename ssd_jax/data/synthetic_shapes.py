"""The things in the scenes of the built-in dataset: their shapes, and how they are painted.

Color, texture and tilt are drawn alike for all, so that only the shape tells a class from another
and from the look-alikes, which are not annotated.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PATTERNED_SHARE = 0.2  # of the things have stripes, checks or dots
TILT = 0.35  # radians, the most that a thing is turned
SUPERSAMPLING = 3

Facet = tuple[np.ndarray, float]  # polygon (N, 2), y down, any unit; brightness 0..1, 0 cuts a hole


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
    coverage, shaded = (unit(mask.reduce(SUPERSAMPLING)) for mask in masks)
    return Silhouette(coverage, shaded / np.maximum(coverage, 1 / 255))


def unit(image: Image.Image) -> np.ndarray:
    """The pixels of an 8-bit image as float32 in 0..1."""
    return np.asarray(image, np.float32) / 255


def _blurred(values: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray((values * 255).astype(np.uint8))
    return unit(image.filter(ImageFilter.BoxBlur(radius)))


def color(
    rng: np.random.Generator, saturation: float, value: float, *, least_saturation: float = 0.0
) -> np.ndarray:
    """Draws a color `(3,)` 0..1 of any hue and a saturation up to that, of at least that value."""
    hue, s, v = rng.random(3) * (6, saturation - least_saturation, 1 - value)
    s, v = s + least_saturation, v + value
    ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (v * (1 - s * (1 - ramp))).astype(np.float32)


def _texture(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, plain: bool) -> np.ndarray:
    """Draws a pattern: the share 0..1 of the second color at u, v, which span -1..1."""
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


def paint(
    rng: np.random.Generator, name: str, shape: Silhouette, ground: np.ndarray, side: float
) -> np.ndarray:
    """Paints a shape and its shadow on a patch of ground, float32 `(h, w, 3)` 0..1; returns it."""
    size = float(np.ptp(np.argwhere(shape.coverage >= 0.5), axis=0).max()) + 1
    v, u = np.mgrid[: ground.shape[0], : ground.shape[1]].astype(np.float32)
    u, v = (2 * u + 1 - ground.shape[1]) / size, (2 * v + 1 - ground.shape[0]) / size
    around = ground[shape.coverage >= 0.5].mean(axis=0)
    colors = [color(rng, 1.0, 0.55, least_saturation=0.3) for _ in range(4)]
    first, second, *_ = sorted(colors, key=lambda color: -float(np.abs(color - around).sum()))
    share = _texture(rng, u, v, plain=size < 40)[..., None]
    light = _light(name, shape, u, v, side)
    if rng.random() < 0.5:  # a dark rim
        light = light * np.clip(2.2 * _blurred(shape.coverage, 0.7 + 0.02 * size) - 1.1, 0.25, 1)
    paint = np.clip((first + share * (second - first)) * light[..., None], 0, 1)
    drop = max(1, round(0.045 * size))
    shadow = np.roll(_blurred(shape.coverage, drop), (drop, round(-side * drop)), (0, 1))
    shaded = ground * (1 - 0.5 * shadow)[..., None]
    return shaded + (paint - shaded) * shape.coverage[..., None]
