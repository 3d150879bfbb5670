"""Boxes on images, and contact sheets of images."""

import colorsys
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssd_jax import augment, console, fonts

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_SHADES = ((0.80, 0.95), (0.90, 0.62), (0.40, 1.0))  # saturation, value: bright, dark, pale
_LONGEST_NAME = 40  # letters of a class's name in a caption
_HIGHEST = 4  # times a column's width, of an image on a contact sheet
_ROWS = 256  # of an image that are converted at a time
_HUES = 7  # of one shade; the eighth step of the golden ratio comes close to where it began


def class_color(label: int) -> tuple[int, int, int]:
    """The color of a class: the same on every image, and far from those of the next classes.

    Steps of the golden ratio around the color circle spread the hues; shades tell apart those that
    come close.

    Args:
      label: The class, from 1; 0, the background, is gray.

    Returns:
      Red, green and blue in 0..255.
    """
    if label == 0:
        return 128, 128, 128
    saturation, value = _SHADES[(label - 1) // _HUES % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    class_names: Sequence[str],
    score_format: str = ".2f",
) -> np.ndarray:
    """A copy of the image with boxes and captions; lines and letters grow with the image.

    Earlier rows are drawn over later ones: of detections, the best stays readable. A class whose
    name that no font of the machine contains is shown by its number, with one remark.

    Args:
      image: `[H, W, 3]` uint8.
      boxes: `[N, 4]` corners in pixels, 0 at the left and upper edge; drawn as far as they are
        inside the image.
      labels: `[N]` classes from 1; rows with label 0 are padding and not drawn.
      scores: `[N]` for the captions, or None for class names alone.
      class_names: Label k is `class_names[k - 1]`.
      score_format: How a caption spells its score, as `format` takes it.

    Returns:
      `[H, W, 3]` uint8.

    Raises:
      ValueError: If the labels are no integers, such as scores in their place.
    """
    options: Any = {"class_names": class_names, "score_format": score_format}
    return _pixels(draw_image(image, boxes, labels, scores, **options))


def draw_image(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    class_names: Sequence[str],
    score_format: str = ".2f",
) -> Image.Image:
    """The same as `draw`, as the PIL image that it is drawn on: RGB, to be saved or shown."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}: are they the scores?")
    canvas = Image.fromarray(np.asarray(image, np.uint8))
    pen = ImageDraw.Draw(canvas)
    side = min(canvas.size)
    line = max(1, round(side / 160))
    size = max(10, round(side / 26))
    rows = [k for k in reversed(range(len(boxes))) if labels[k] > 0]
    corners = {k: _inside(boxes[k], canvas.size) for k in rows}
    for k in rows:
        pen.rectangle(corners[k], outline=class_color(int(labels[k])), width=line)
    for k in rows:  # after all boxes, whose lines would cross the letters
        label = int(labels[k])
        score = "" if scores is None else f" {float(scores[k]):{score_format}}"
        caption, font = _caption(class_names[label - 1], label, score, size)
        _tag(pen, corners[k][:2], caption, class_color(label), font, canvas.size)
    return canvas


def grid(
    images: Sequence[np.ndarray], *, columns: int, width: int = 1200, gap: int = 8
) -> np.ndarray:
    """A contact sheet: the images in reading order, each scaled to its column's width.

    One that is more than four times as high as wide is scaled to that height.

    Args:
      images: `[H, W, 3]` uint8 each, of any size.
      columns: Images in a row, at least 1.
      width: Width of the sheet in pixels.
      gap: Pixels of white around each image.

    Returns:
      `[height, width, 3]` uint8; a row is as high as its highest image.

    Raises:
      ValueError: If `columns` is less than 1, or the columns are left no pixel.
    """
    column = (width - gap) // columns - gap if columns >= 1 else 0
    if column < 1:
        raise ValueError(f"columns ({columns}) must be at least 1 and fit into width ({width})")
    scaled = [_to_width(pixels, column) for pixels in images]
    rows = [scaled[k : k + columns] for k in range(0, len(scaled), columns)]
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (width, gap + sum(height + gap for height in heights)), "white")
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for k, image in enumerate(row):
            left = gap + k * (column + gap) + (column - image.width) // 2
            sheet.paste(image, (left, top + (height - image.height) // 2))
        top += height + gap
    return _pixels(sheet)


def augmentations(
    key: jax.Array,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    class_names: Sequence[str],
    size: int | tuple[int, int] = 300,
    count: int = 15,
    columns: int = 4,
    **options: Any,
) -> np.ndarray:
    """Draws a contact sheet of augmentations of one image and its boxes.

    Args:
      key: Random key.
      image: `[H, W, 3]` uint8, the image itself, which comes first on the sheet.
      boxes: `[G, 4]` corners in [0, 1] of the image.
      labels: `[G]` int classes from 1; 0 is padding.
      class_names: Label k is `class_names[k - 1]`.
      size: Side, or (height, width), of the results in pixels.
      count: Number of results.
      columns: Images in a row.
      **options: Options of `augment.augment`: `policy`, `interpolations`, ...

    Returns:
      `[height, width, 3]` uint8.
    """
    image, labels = np.asarray(image, np.uint8), np.asarray(labels, np.int32)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    transform = functools.partial(augment.augment, size=size, **options)
    many = jax.jit(jax.vmap(transform, in_axes=(0, None, None, None, None)))
    keys = jax.random.split(key, count)
    results = jax.device_get(many(keys, image, np.array(image.shape[:2]), boxes, labels))
    scenes = [(image, boxes, labels), *zip(*results, strict=True)]
    return grid(
        [
            draw(
                np.round(pixels),
                corners * np.tile(pixels.shape[1::-1], 2),
                names,
                class_names=class_names,
            )
            for pixels, corners, names in scenes
        ],
        columns=columns,
    )


def _caption(name: str, label: int, score: str, size: int) -> tuple[str, fonts.Font]:
    """Returns the one-line caption of a class and a font with its letters."""
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
    text = console.printable(" ".join(short.split())) + score
    font = fonts.load(text, size)
    if font is None:
        _say_once(f"class {label}", console.printable(short))
        text = f"class {label}{score}"
    return text, font or ImageFont.load_default(size)


@functools.cache
def _say_once(number: str, name: str) -> None:
    """One remark of a process, on the first class that it concerns."""
    if _say_once.cache_info().misses == 1:
        console.warn(
            f"no font of this machine has the letters of {name!r}, so images show {number!r}, "
            f"as for other such names; install one, for example from Noto"
        )


def _inside(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Corner pixels of a box, clipped to the image; at least one pixel."""
    last = np.array([*size, *size]) - 1
    left, top, right, bottom = np.clip(np.round(np.asarray(box, np.float64)), 0, last).astype(int)
    return int(left), int(top), int(max(left, right)), int(max(top, bottom))


def _tag(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    color: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    """Writes on a filled tag above a box's corner, or within the box at the image's edge."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(1, round((bottom - top) / 4))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    pen.text((x + pad - left, y + pad - top), text, font=font, fill=_ink(color))


def _ink(color: tuple[int, int, int]) -> str:
    """Black or white, whichever is easier to read on the color (Rec. 601 luma)."""
    return "black" if np.dot(color, (0.299, 0.587, 0.114)) > 140 else "white"


def _to_width(pixels: np.ndarray, width: int) -> Image.Image:
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    scale = min(width / image.width, _HIGHEST * width / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS).convert("RGB")


def _pixels(image: Image.Image) -> np.ndarray:
    """Converts an RGB image to `[H, W, 3]` uint8 in parts, because Pillow makes copies."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _ROWS):
        room = pixels[top : top + _ROWS]
        room[:] = np.asarray(image.crop((0, top, image.width, top + len(room))))
    return pixels
