"""Writes and reads detections in the formats of the COCO and VOC evaluation servers.

COCO's is one JSON, a list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`
with the ids that the dataset gives. VOC's is a text file for each class, `comp4_det_SET_CLASS.txt`,
whose lines are `id score xmin ymin xmax ymax` in VOC's pixels; an id is the image's name without
its suffix. Numbers have nine digits, which is all that float32 holds. COCO's server takes the JSON
in a zip, VOC's the files in a tar, below `results/VOC2012/Main`.

Source: "Results format" of the COCO dataset's site; section 5.2.1 of the VOC2012 devkit's manual.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssd_jax import adapters, errors, files
from ssd_jax.data import annotations, datasets, parsing, paths, readers

_FORMS = "COCO's JSON, or a folder of VOC's comp4_det_SET_CLASS.txt"


class Found(NamedTuple):
    """Detections in images by their names, in the pixels of either convention.

    Attributes:
      voc: Boxes `[N, 4]` in VOC's pixels (1-based, inclusive), scores `[N]` and labels `[N]`.
      coco: The same with bboxes `[N, 4]` float64 (x, y, width, height), of which 0 is the edge.
    """

    voc: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    coco: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


class Key(NamedTuple):
    """Names and ids of the images and classes of a split in results.

    Attributes:
      image_ids: COCO's id of each image, by name; empty where the dataset has none.
      names: The names of all its images, in order.
      class_names: Label k is class_names[k - 1].
      category_ids: The dataset's own id of each class.
    """

    image_ids: dict[str, int]
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def key_of(split: datasets.Split) -> Key:
    """Names and ids of the images and classes of a split in results.

    Raises:
      UserError: If the split holds an image twice.
    """
    ids: dict[str, int] = {}
    for index in range(len(split.source)):
        record = split.source[index]
        if record["name"] in ids:
            raise errors.UserError(
                f"the split holds {record['name']} twice; detect in each image once"
            )
        ids[record["name"]] = record["image_id"]
    known = readers.NO_IMAGE_ID not in ids.values()
    return Key(ids if known else {}, tuple(ids), split.class_names, split.category_ids)


def write(folder: Path, found: Found, key: Key, *, dataset: str, split: str) -> dict[str, Path]:
    """Writes the results for the evaluation server into `folder/results`, replacing earlier ones.

    Args:
      folder: Folder of the evaluation.
      found: The detections.
      key: Key of the split.
      dataset: Name of the dataset, see `datasets.load`.
      split: Name of the split, see `datasets.load`.

    Returns:
      The path of what was written by a word for it; empty for datasets without a results format.
    """
    place = folder / "results"
    parts = (re.sub(r"\s*(\w+/|\[.*)", "", part) for part in split.split("+"))
    set_name = "+".join(dict.fromkeys(parts))
    if key.image_ids:
        files.make_folder(place)
        file = place / f"detections_{set_name.replace('testdev', 'test-dev')}_ssd_results.json"
        write_coco(file, found, key)
        return {"results": file}
    if dataset == "voc":
        files.make_folder(place)
        for earlier in place.glob("comp4_det_*.txt"):
            earlier.unlink(missing_ok=True)
        write_voc(place, found, key, set_name=set_name)
        return {"results": place}
    return {}


def write_coco(path: Path, found: Found, key: Key) -> None:
    """Writes COCO's JSON into an existing folder; `key` has to have image ids."""
    rows = (
        row
        for name, (bboxes, scores, labels) in found.coco.items()
        for row in adapters.coco_rows(
            bboxes.tolist(),
            scores.tolist(),
            [key.category_ids[label - 1] for label in labels.tolist()],
            image_id=key.image_ids[name],
        )
    )
    adapters.write_coco(path, rows)


def write_voc(folder: Path, found: Found, key: Key, *, set_name: str) -> None:
    """Writes VOC's text file of each class, also of classes without detections."""
    lines: dict[str, list[str]] = {name: [] for name in key.class_names}
    for name, columns in found.voc.items():
        for box, score, label in zip(*(column.tolist() for column in columns), strict=True):
            numbers = " ".join(f"{value:.9g}" for value in (score, *box))
            lines[key.class_names[label - 1]].append(f"{_stem(name)} {numbers}\n")
    for name, of_class in lines.items():
        files.write(folder / f"comp4_det_{set_name}_{name}.txt", "".join(of_class))


def read(path: str | os.PathLike[str], key: Key) -> Found:
    """Reads either form.

    Args:
      path: A JSON file, or a folder of text files.
      key: Key of the evaluated split.

    Raises:
      UserError: If there is no such file, it is malformed, or it is of another dataset: it names an
        image or a class that the split does not have.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _read_voc(place, key)
    if not place.is_file():
        raise errors.UserError(f"--results {path}: file not found; give {_FORMS}")
    return _read_coco(place, key)


def _read_coco(file: Path, key: Key) -> Found:
    if not key.image_ids:
        raise errors.UserError(
            f"{file}: the images of the split have no ids of COCO; give a folder of VOC's files"
        )
    try:
        entries = json.loads(paths.read(file, at_most=parsing.MOST_JSON_BYTES))
    except errors.UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"{file}: not JSON ({error}); give {_FORMS}") from error
    if not isinstance(entries, list):
        raise errors.UserError(f"{file}: is no list of detections; give {_FORMS}")
    names = {number: name for name, number in key.image_ids.items()}
    labels = {number: label for label, number in enumerate(key.category_ids, start=1)}
    rows: dict[str, list[tuple[float, ...]]] = {}
    for number, entry in enumerate(entries):
        image_id, label, values = _entry(entry, labels, f"{file}: entry {number}")
        if image_id not in names:
            raise errors.UserError(
                f"{file}: entry {number}: the split has no image_id {image_id}; give "
                "--config.data.eval_split of the results"
            )
        rows.setdefault(names[image_id], []).append((*values, label))
    return _found(rows, key, bboxes=True)


def _entry(entry: Any, labels: Mapping[int, int], where: str) -> tuple[int, int, tuple[float, ...]]:
    """Parses image id, label and (score, x, y, width, height) of one entry."""
    if not isinstance(entry, dict):
        raise errors.UserError(f"{where} is no detection but {entry!r:.60}")
    image_id, category_id, bbox, score = map(
        entry.get, ("image_id", "category_id", "bbox", "score")
    )
    if type(image_id) is not int:
        raise errors.UserError(f"{where}: image_id is {image_id!r:.60}, not a whole number")
    if type(category_id) is not int or category_id not in labels:
        raise errors.UserError(
            f"{where}: category_id {category_id!r:.60} is not in the dataset, whose ids are "
            f"from {min(labels)} to {max(labels)}"
        )
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise errors.UserError(
            f"{where}: bbox is {bbox!r:.60}, not four numbers x, y, width, height"
        )
    if not _is_number(score):
        raise errors.UserError(f"{where}: score is {score!r:.60}, not a number")
    return image_id, labels[category_id], (score, *bbox)


def _read_voc(folder: Path, key: Key) -> Found:
    names = {_stem(name): name for name in key.names}
    rows: dict[str, list[tuple[float, ...]]] = {}
    for file, label in _class_files(folder, key.class_names):
        for number, line in enumerate(_lines(file), start=1):
            image, values = _line(line, f"{file}: line {number}")
            if image not in names:
                raise errors.UserError(
                    f"{file}: line {number}: the split has no image {image}; give "
                    "--config.data.eval_split of the results"
                )
            rows.setdefault(names[image], []).append((*values, label))
    return _found(rows, key, bboxes=False)


def _class_files(folder: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    """The text file of each class, with its label."""
    files = sorted(folder.glob("comp*_det_*.txt"))
    if not files:
        raise errors.UserError(f"{folder}: holds no comp4_det_SET_CLASS.txt; give {_FORMS}")
    by_class: dict[str, Path] = {}
    for file in files:
        name = file.stem.rpartition("_")[2]
        if name not in class_names:
            raise errors.UserError(
                f"{file}: the dataset has no class {name!r}; give --config.data.dataset of the "
                "results"
            )
        if name in by_class:
            raise errors.UserError(
                f"{folder}: {by_class[name].name} and {file.name} are of one class; keep one set "
                "in a folder"
            )
        by_class[name] = file
    for name in class_names:
        if name not in by_class:
            raise errors.UserError(
                f"{folder}: no file ends in _{name}.txt; add one, empty if nothing was found"
            )
    return [(by_class[name], label) for label, name in enumerate(class_names, start=1)]


def _lines(file: Path) -> list[str]:
    try:
        return paths.read(file, at_most=parsing.MOST_JSON_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise errors.UserError(f"{file}: is no text; give {_FORMS}") from None


def _line(line: str, where: str) -> tuple[str, tuple[float, ...]]:
    """Parses the image and (score, xmin, ymin, xmax, ymax) of one line."""
    image, *words = line.split() or [""]
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        values = ()
    if len(values) != 5 or not all(map(math.isfinite, values)):
        raise errors.UserError(
            f"{where} is {line.strip()!r:.80}, not an id, a score and xmin ymin xmax ymax"
        )
    return image, values


def _found(rows: Mapping[str, Sequence[tuple[float, ...]]], key: Key, *, bboxes: bool) -> Found:
    """Detections from rows of (score, box, label), with boxes of either format."""
    other: Callable[[np.ndarray], np.ndarray] = (
        annotations.bboxes_to_voc_pixels if bboxes else annotations.voc_pixels_to_bboxes
    )
    given: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for name in key.names:
        table = np.array(rows.get(name, ()), np.float64).reshape(-1, 6)
        given[name] = table[:, 1:5], table[:, 0], table[:, 5].astype(np.int32)
    made = {name: (other(boxes), scores, of) for name, (boxes, scores, of) in given.items()}
    return Found(voc=made, coco=given) if bboxes else Found(voc=given, coco=made)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _stem(name: str) -> str:
    """An image's id in VOC's files."""
    return os.path.splitext(name)[0]
