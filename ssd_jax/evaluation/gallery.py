"""Pictures of an evaluation with their objects and what was reported there."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssd_jax.data import annotations
from ssd_jax.evaluation import analysis, evaluated, page, tide, voc

ReadPicture = Callable[[str], np.ndarray | None]
"""Picture's name -> `[H, W, 3]` uint8, or None where it can't be had."""

_MOST_OBJECTS = 15  # that are drawn on one picture
_MOST_FOUND = 8


class Album(NamedTuple):
    """Where a gallery takes its pictures and boxes from.

    Attributes:
      source: The evaluation.
      matches: Of its detections, by `voc.match`.
      score_threshold: Detections from there on are drawn.
      read: Gives the pictures.
    """

    source: evaluated.Evaluated
    matches: voc.Matches
    score_threshold: float
    read: ReadPicture


def misses(album: Album, *, count: int) -> str:
    """The worst misses."""
    rows = analysis.worst_misses(album.matches, score_threshold=album.score_threshold, count=count)
    return page.shots([_miss(album, row) for row in rows])


def mistakes(album: Album, labels: tide.Labels, *, count: int) -> str:
    """The wrong detections of the best scores."""
    rows = analysis.confident_mistakes(album.matches, count=count)
    return page.shots([_mistake(album, labels, row) for row in rows])


def shot(
    album: Album,
    image: int,
    caption: str,
    *,
    about_object: int | None = None,
    about_found: int | None = None,
) -> str:
    """One picture with its objects and the detections over the threshold.

    Args:
      album: Where from.
      image: Number of the picture.
      caption: Plain text.
      about_object: Row of `matches.objects` that is marked.
      about_found: Row of `matches.found` that is marked.
    """
    found, objects = album.matches.found, album.matches.objects
    ranked = album.matches.order[found.image[album.matches.order] == image]
    reported = ranked[found.values[ranked] >= album.score_threshold][:_MOST_FOUND]
    boxes = [
        _box(objects, row, "truth")
        for row in np.flatnonzero(objects.image == image)[:_MOST_OBJECTS]
        if row != about_object
    ]
    boxes += [
        _box(found, row, "found", _says(album, row)) for row in reported[::-1] if row != about_found
    ]
    if about_object is not None:
        text = album.matches.class_names[objects.labels[about_object] - 1]
        boxes.append(_box(objects, about_object, "truth subject", text))
    if about_found is not None:
        boxes.append(_box(found, about_found, "found subject", _says(album, about_found)))
    name = list(album.source.sizes)[image]
    return page.shot(album.read(name), album.source.sizes[name], boxes, f"{caption} ({name})")


def _miss(album: Album, row: int) -> str:
    objects = album.matches.objects
    score = analysis.found_at(album.matches)[row]
    name = album.matches.class_names[objects.labels[row] - 1]
    how = f"found only at {score:.2f}" if np.isfinite(score) else "not found at any score"
    return shot(album, objects.image[row], f"{name}: {how}", about_object=row)


def _mistake(album: Album, labels: tide.Labels, row: int) -> str:
    kind, about = tide.KINDS[labels.kind[row]], labels.about[row]
    caption = f"{_says(album, row)}: {kind}"
    if kind == "classification":
        caption += f", it is {album.matches.class_names[album.matches.objects.labels[about] - 1]}"
    return shot(album, album.matches.found.image[row], caption, about_found=row)


def _says(album: Album, row: int) -> str:
    """What a detection says."""
    found = album.matches.found
    return f"{album.matches.class_names[found.labels[row] - 1]} {found.values[row]:.2f}"


def _box(rows: voc.Rows, row: int, kind: str, text: str = "") -> page.Box:
    return page.Box(annotations.from_voc_pixels(rows.boxes[row])[0], kind, text)
