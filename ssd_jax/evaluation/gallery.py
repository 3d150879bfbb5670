"""Images of an evaluation with their objects and detections."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ssd_jax import build, errors
from ssd_jax import config as config_lib
from ssd_jax.data import annotations, datasets
from ssd_jax.evaluation import analysis, page, tide, voc

ReadImage = Callable[[str], np.ndarray | None]
"""Maps the name of an image to `[H, W, 3]` uint8, or to None if it is unavailable."""

_MOST_OBJECTS = 15  # that are drawn on one image
_MOST_DETECTIONS = 8


class Box(NamedTuple):
    """A box on an image, with edges in pixels of the image.

    Attributes:
      kind: `truth` or `detection`, and `subject` in addition for what the caption is about.
      text: Caption beside it; empty: none.
    """

    left: float
    top: float
    right: float
    bottom: float
    kind: str
    text: str = ""


class Shot(NamedTuple):
    """One image of a gallery.

    Attributes:
      image: The image; None if unavailable, then only its boxes are shown.
      size: (height, width) in pixels.
      boxes: Later ones are drawn over earlier ones.
      caption: Caption of the crop.
    """

    image: page.Embedded | None
    size: tuple[int, int]
    boxes: list[Box]
    caption: str

    @property
    def text_size(self) -> float:
        """The font size of the labels in pixels of the image."""
        return max(self.size) / 20

    def labels(self) -> list[tuple[float, float, str]]:
        """(left, foot, text) of the captions of boxes, without overlap while there is room.

        A caption is at the upper left corner of its box, that of an object at the lower one, or on
        the nearest line that is free; the last box is served first.
        """
        (height, width), size = self.size, self.text_size
        feet = np.arange(size, max(height, size + 1), size / 4)
        placed: list[tuple[float, float, str]] = []

        def is_free(left: float, foot: float, long: float) -> bool:
            return not any(
                left < other + 0.6 * size * len(text)
                and other < left + long
                and abs(foot - line) < size
                for other, line, text in placed
            )

        for box in reversed([box for box in self.boxes if box.text]):
            long = 0.6 * size * len(box.text)
            left = max(0.0, min(box.left + size / 5, width - long))
            truth = box.kind.startswith("truth")
            wanted = box.bottom - size / 4 if truth else box.top - size / 5
            nearest = feet[np.argsort(np.abs(feet - wanted), kind="stable")]
            foot = next((foot for foot in nearest if is_free(left, foot, long)), nearest[0])
            placed.append((left, float(foot), box.text))
        return placed


def false_negatives(one: analysis.Analysis, read: ReadImage, *, count: int) -> list[Shot]:
    """The worst objects that are not detected."""
    rows = analysis.worst_false_negatives(one.matches, score_threshold=one.point.score, count=count)
    scores, objects, shots = analysis.found_at(one.matches), one.matches.objects, []
    for row in rows:
        known = np.isfinite(scores[row])
        how = f"detected only at {scores[row]:.2f}" if known else "not detected at any score"
        caption = f"{one.source.class_names[objects.labels[row] - 1]}: {how}"
        shots.append(shot(one, read, objects.image[row], caption, about_object=row))
    return shots


def false_positives(one: analysis.Analysis, read: ReadImage, *, count: int) -> list[Shot]:
    """The wrong detections of the best scores."""
    (found, objects), shots = one.matches[:2], []
    for row in analysis.confident_false_positives(one.matches, count=count):
        kind = one.labels.kind[row]
        caption = f"{_says(one, row)}: {tide.KINDS[kind]}"
        if kind == tide.CLASSIFICATION:
            label = objects.labels[one.labels.about[row]]
            caption += f", it is {one.source.class_names[label - 1]}"
        shots.append(shot(one, read, found.image[row], caption, about_detection=row))
    return shots


def shot(
    one: analysis.Analysis,
    read: ReadImage,
    image: int,
    caption: str,
    *,
    about_object: int = -1,
    about_detection: int = -1,
) -> Shot:
    """Returns one image with its objects and detections.

    Args:
      one: The evaluation.
      read: Gives the image.
      image: Number of the image.
      caption: Caption; the name is added.
      about_object: Row of `matches.objects` that is marked; -1: none.
      about_detection: Row of `matches.found` that is marked; -1: none.
    """
    found, objects, order = one.matches.found, one.matches.objects, one.matches.order
    name, size = list(one.source.sizes.items())[image]
    ranked = order[found.image[order] == image]
    reported = ranked[found.values[ranked] >= one.point.score][:_MOST_DETECTIONS]
    boxes = [
        _box(objects, row, size, "truth")
        for row in np.flatnonzero(objects.image == image)[:_MOST_OBJECTS]
        if row != about_object
    ]
    boxes += [
        _box(found, row, size, "detection", _says(one, row))
        for row in reported[::-1]
        if row != about_detection
    ]
    if about_object >= 0:
        text = one.source.class_names[objects.labels[about_object] - 1]
        boxes.append(_box(objects, about_object, size, "truth subject", text))
    if about_detection >= 0:
        text = _says(one, about_detection)
        boxes.append(_box(found, about_detection, size, "detection subject", text))
    pixels = read(name)
    shown = None if pixels is None else page.embed(pixels)
    return Shot(shown, size, boxes, f"{caption} ({name})")


def image_reader(
    split: datasets.Split, names: Sequence[str], options: config_lib.DataConfig
) -> ReadImage:
    """Reads images of a split by name, as small as a page shows them.

    A missing or broken image is None.

    Args:
      split: The split.
      names: The names of its first images, in their order.
      options: The data config.
    """
    numbers = {name: number for number, name in enumerate(names)}

    def read(name: str) -> np.ndarray | None:
        if not numbers[name] < len(split.source):
            return None
        try:
            record = split.source[numbers[name]]
            same = record["name"] == name
            fit = (page.IMAGE_SIDE, page.IMAGE_SIDE)
            return build.image(options, record, fit=fit) if same else None
        except errors.MachineError:
            raise
        except (errors.UserError, OSError) as error:
            if errors.is_of_machine(error):
                raise
            return None

    return read


def _says(one: analysis.Analysis, row: int) -> str:
    """Class and score of a detection."""
    found = one.matches.found
    return f"{one.source.class_names[found.labels[row] - 1]} {found.values[row]:.2f}"


def _box(rows: voc.Rows, row: int, size: tuple[int, int], kind: str, text: str = "") -> Box:
    """The part of a box inside an image of that (height, width)."""
    edges = annotations.from_voc_pixels(rows.boxes[row])[0].astype(float)
    left, top, right, bottom = np.clip(edges, 0, [*size[::-1], *size[::-1]]).tolist()
    return Box(left, top, right, bottom, kind, text)
