"""Outputs for the inputs of a detection: JSON, COCO results, progress."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich import progress

from ssd_jax import adapters, console, errors, files
from ssd_jax.detection import Detections
from ssd_jax.media import files as media_files


class Outcome(NamedTuple):
    """The outcome of one input.

    Attributes:
      path: The input; of a camera, what it is called.
      place: Its annotated copy.
      found: For an image `{"boxes", "scores", "labels"}`, for a video `{"fps", "size", "times",
        "frames"}` with the seconds from its start at which each frame is due; None where nothing
        could be read.
      problem: None, or one line that names the input and its fault.
    """

    path: media_files.Input | str
    place: Path
    found: dict[str, Any] | None
    problem: str | None = None


def as_json(found: Detections, class_names: Sequence[str]) -> dict[str, Any]:
    """Converts detections in pixels to JSON values with the digits of float32."""
    return {
        "boxes": np.asarray(found.boxes, np.float64).round(3).tolist(),
        "scores": np.asarray(found.scores, np.float64).round(5).tolist(),
        "labels": [class_names[label - 1] for label in np.asarray(found.labels).tolist()],
    }


def save_image(image: Image.Image, place: Path) -> None:
    """Writes an image file; a link at its place is replaced."""
    if os.path.islink(place):
        place.unlink()
    image.save(place, quality=95)


def in_words(found: Mapping[str, Any]) -> str:
    """Counts of an outcome's `found`: `"2 dog, 1 person"`, of a video over all its frames."""
    labels = found_labels(found)
    if "frames" in found:
        return f"{len(found['frames'])} frames, {_counted(labels)}"
    return _counted(labels)


def found_labels(found: Mapping[str, Any]) -> list[str]:
    """Names in an outcome's `found`, one for each box, of a video over all its frames."""
    if "frames" in found:
        return [label for frame in found["frames"] for label in frame["labels"]]
    return list(found["labels"])


def write_json(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Writes the detections as one JSON object: one line per input, by its path.

    Raises:
      UserError: If the file cannot be written.
    """
    lines = [
        f"{json.dumps(str(outcome.path))}: {json.dumps(outcome.found)}"
        for outcome in outcomes
        if outcome.found is not None
    ]
    with _named_if_not_written(path):
        files.write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def check_coco(
    ids: adapters.CocoIds, paths: Iterable[media_files.Input], class_names: Iterable[str]
) -> None:
    """Checks that detections in files can be written as COCO results.

    Args:
      ids: Ids of the annotations that the results are for.
      paths: The files; none may be a video.
      class_names: Class names of the detector.

    Raises:
      UserError: If a file or class has no id, or two files have the same.
    """
    first: dict[str, media_files.Input] = {}
    for path in paths:
        if media_files.is_video(path) or path.name not in ids.images:
            raise errors.UserError(
                f"{path}: no image of {ids.file}, so COCO's results cannot name it"
            )
        if first.setdefault(path.name, path) != path:
            raise errors.UserError(
                f"{path} and {first[path.name]}: both are the image {path.name} of {ids.file}; "
                f"leave one out"
            )
    unknown = [name for name in class_names if name not in ids.categories]
    if unknown:
        raise errors.UserError(f"{ids.file}: no category of the detector's class {unknown[0]!r}")


def write_coco(path: Path, outcomes: Iterable[Outcome], ids: adapters.CocoIds) -> None:
    """Writes the detections in images as COCO results.

    Args:
      path: Path of the JSON: a list of `image_id`, `category_id`, `bbox` (x, y, width, height in
        pixels) and `score`.
      outcomes: Outcomes of images, after `check_coco`.
      ids: The ids that were given to `check_coco`.

    Raises:
      UserError: If the file cannot be written.
    """
    rows = (
        row
        for outcome in outcomes
        if outcome.found is not None
        for row in _coco_rows(outcome.found, ids, Path(str(outcome.path)).name)
    )
    with _named_if_not_written(path):
        adapters.write_coco(path, rows)


def _coco_rows(
    found: Mapping[str, Any], ids: adapters.CocoIds, name: str
) -> Iterator[dict[str, Any]]:
    """COCO results of the image of that name."""
    return adapters.coco_rows(
        [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in found["boxes"]],
        found["scores"],
        [ids.categories[label] for label in found["labels"]],
        image_id=ids.images[name],
    )


@contextlib.contextmanager
def _named_if_not_written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.UserError(f"{path}: not written: {error.strerror}") from None


class Progress:
    """A progress bar on a terminal; elsewhere a line for each input."""

    def __init__(self, total: int):
        self._bar = progress.Progress(
            progress.TextColumn("[bold]{task.completed:.0f}/{task.total:.0f}"),
            progress.BarColumn(),
            progress.TextColumn("{task.description}", markup=False),
            console=console.stdout,
            disable=not console.stdout.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=total)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def frame(self, path: object, frames: int) -> None:
        """Shows how many frames of a video are done."""
        self._bar.update(self._task, description=console.printable(f"{path}: frame {frames}"))

    def done(self, outcome: Outcome) -> None:
        """Prints the detections in an input; inputs without output are only counted."""
        text = f"{outcome.path}: not read"
        if outcome.found is not None:
            text = f"{outcome.path}: {in_words(outcome.found)} -> {outcome.place}"
        self._bar.update(self._task, advance=1, description=console.printable(text))
        if not console.stdout.is_terminal and outcome.found is not None:
            console.stdout.print(console.plain(text))


def _counted(labels: Iterable[str]) -> str:
    counts = Counter(labels).most_common()
    return ", ".join(f"{count} {label}" for label, count in counts) or "nothing"
