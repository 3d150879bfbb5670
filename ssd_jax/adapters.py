"""Converts detections to COCO results, writes them, and converts to `supervision.Detections`."""

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssd_jax import errors, files
from ssd_jax.detection import Detections

_MOST_BYTES = 2 << 30  # of COCO's JSON; the largest of COCO's own has 0.5 GB


class CocoIds(NamedTuple):
    """Ids that COCO results refer to.

    Attributes:
      file: The JSON that gives the ids.
      images: Id of each image by the last part of its file name.
      categories: Id of each class by its name.
    """

    file: Path
    images: Mapping[str, int]
    categories: Mapping[str, int]


def read_coco_ids(path: Path) -> CocoIds:
    """The ids of images and classes in COCO's JSON, `instances_*` or `image_info_*`.

    Raises:
      UserError: If it cannot be read, is no file or larger than 2 GiB, is not in COCO's form, or
        gives a name two ids.
    """
    try:
        content = json.loads(files.read(path, at_most=_MOST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise errors.UserError(f"{path}: not read: {error.strerror}") from None
    except errors.UserError:  # which is a ValueError
        raise
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"{path}: not JSON ({error}); fetch or export it again") from None
    images, categories = (
        _ids_of(content, part, field, path)
        for part, field in (("images", "file_name"), ("categories", "name"))
    )
    return CocoIds(path, images, categories)


def _ids_of(content: Any, part: str, field: str, path: Path) -> dict[str, int]:
    entries = content.get(part) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise errors.UserError(f"{path}: has no list {part!r}, so it is not COCO's JSON")
    ids: dict[str, int] = {}
    for number, entry in enumerate(entries):
        name, given = (entry.get(field), entry.get("id")) if isinstance(entry, dict) else (0, 0)
        if not isinstance(name, str) or type(given) is not int:
            raise errors.UserError(
                f"{path}: {part}[{number}] has no {field} or no number as its id"
            )
        name = name.rpartition("/")[2]
        if ids.setdefault(name, given) != given:
            raise errors.UserError(f"{path}: {part}: {name} has the ids {ids[name]} and {given}")
    return ids


def to_coco(
    found: Detections, *, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Converts the detections of one image to COCO results.

    Args:
      found: Detections as a detector returns them: corners in pixels, used rows only.
      image_id: COCO's id of the image.
      category_ids: The id of label k is `category_ids[k - 1]`.

    Returns:
      See `coco_rows`.

    Raises:
      ValueError: If a label has no id.
    """
    boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(found.labels).tolist()
    if any(not 1 <= label <= len(category_ids) for label in labels):
        raise ValueError(f"labels reach from 1 to {len(category_ids)}; these are {set(labels)}")
    bboxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return list(
        coco_rows(
            bboxes.tolist(),
            np.asarray(found.scores, np.float64).tolist(),
            [category_ids[label - 1] for label in labels],
            image_id=image_id,
        )
    )


def coco_rows(
    bboxes: Iterable[Sequence[float]],
    scores: Iterable[float],
    categories: Iterable[int],
    *,
    image_id: int,
) -> Iterator[dict[str, Any]]:
    """Returns COCO results of the detections of one image.

    Args:
      bboxes: x, y, width and height in pixels, of each detection.
      scores: Score of each detection.
      categories: COCO's id of the class of each detection.
      image_id: COCO's id of the image.

    Yields:
      For each detection `image_id`, `category_id`, `bbox` and `score`.
    """
    for bbox, score, category in zip(bboxes, scores, categories, strict=True):
        yield {
            "image_id": image_id, "category_id": category, "bbox": list(bbox), "score": score
        }  # fmt: skip


def write_coco(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes COCO results as JSON, a detection a line, in place of an earlier file.

    Args:
      path: Path of the file, in an existing folder.
      rows: Rows of `to_coco` or `coco_rows`; numbers are written with nine digits, which is all
        that float32 holds.

    Raises:
      OSError: If the file cannot be written. The previous file then stays unchanged.
    """
    with files.replacing(path) as file:
        file.write(b"[")
        for number, row in enumerate(rows):
            bbox, score = [_nine(value) for value in row["bbox"]], _nine(row["score"])
            line = json.dumps({**row, "bbox": bbox, "score": score})
            file.write(((",\n" if number else "") + line).encode())
        file.write(b"]\n")


def from_coco(
    results: Iterable[Mapping[str, Any]], *, category_ids: Sequence[int]
) -> dict[int, Detections]:
    """COCO results as the detections of each image, best first.

    Args:
      results: Results of `to_coco` for any number of images.
      category_ids: Label k is that of `category_ids[k - 1]`.

    Returns:
      By `image_id`, corners in pixels, float32.

    Raises:
      ValueError: If a category is not among them.
    """
    label_of = {category: label for label, category in enumerate(category_ids, start=1)}
    rows: dict[int, list[tuple[list[float], float, int]]] = {}
    for row in results:
        if row["category_id"] not in label_of:
            raise ValueError(f"category_id {row['category_id']} is none of {list(category_ids)}")
        x, y, width, height = row["bbox"]
        entry = [x, y, x + width, y + height], row["score"], label_of[row["category_id"]]
        rows.setdefault(row["image_id"], []).append(entry)
    return {
        image_id: _detections(*zip(*entries, strict=True)) for image_id, entries in rows.items()
    }


def to_supervision(found: Detections, class_names: Sequence[str]) -> Any:
    """Converts the detections of one image to `supervision.Detections`.

    Args:
      found: Detections as a detector returns them: corners in pixels, used rows only.
      class_names: Label k is `class_names[k - 1]`; supervision counts classes from 0.

    Returns:
      `supervision.Detections` with `xyxy`, `confidence`, `class_id` and `data["class_name"]`.

    Raises:
      UserError: If supervision is not installed.
    """
    labels = np.asarray(found.labels, int)
    return _supervision().Detections(
        xyxy=np.asarray(found.boxes, np.float32).reshape(-1, 4),
        confidence=np.asarray(found.scores, np.float32),
        class_id=labels - 1,
        data={"class_name": np.array([class_names[label - 1] for label in labels], dtype=str)},
    )


def from_supervision(detections: Any) -> Detections:
    """`supervision.Detections` as ours, best first.

    Args:
      detections: With a `class_id`; without a `confidence`, each scores 1.
    """
    count = len(detections.xyxy)
    scores = np.ones(count) if detections.confidence is None else detections.confidence
    labels = np.zeros(0, int) if count == 0 else np.asarray(detections.class_id) + 1
    return _detections(detections.xyxy, scores, labels)


def _detections(boxes: Any, scores: Any, labels: Any) -> Detections:
    columns: Any = (np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32))
    order = np.argsort(-columns[1], kind="stable")
    return Detections(*(column[order] for column in (*columns, np.asarray(labels, np.int32))))


def _nine(value: float) -> float:
    return float(f"{value:.9g}")


def _supervision() -> Any:
    try:
        return importlib.import_module("supervision")
    except ImportError as error:
        raise errors.UserError(
            f"supervision cannot be imported ({error}): pip install 'ssd-jax[supervision]'"
        ) from None
