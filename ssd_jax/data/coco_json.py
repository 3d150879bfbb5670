"""Parses JSON files in COCO's format entry by entry, tolerating malformed entries.

Outlines are let go while the file is parsed: they take most of the memory.
"""

import collections
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ssd_jax import errors
from ssd_jax.data import parsing

_MAX_ID = 2**63 - 1
_LONGEST_PATH = 4096  # characters; no system takes more
_MOST_NAMED = 3  # images that a message names


class Image(NamedTuple):
    """An entry of `images`."""

    id: Any
    file_name: str
    height: Any
    width: Any


class Row(NamedTuple):
    """An entry of `annotations` without its outline, which takes most of the memory."""

    id: Any
    image_id: Any
    category_id: Any
    bbox: Any
    iscrowd: Any
    area: Any


def load(data: bytes, file: str, *, annotated: bool) -> dict[str, Any]:
    """Loads a JSON file with annotations as `Row`s.

    Args:
      data: The JSON.
      file: Name of the file for messages.
      annotated: Whether it contains annotations; otherwise `annotations` is empty.

    Raises:
      UserError: If it is not JSON or not in COCO's format.
    """
    content = parsing.json_content(data, file, _slim)
    if not annotated and isinstance(content, dict):
        content = {**content, "annotations": []}
    for part in ("images", "annotations", "categories"):
        if not isinstance(get(content, part), list):
            raise errors.UserError(
                f"{file}: has no list {part!r}, so it is not COCO's JSON of instances"
            )
    return content


def _slim(entry: dict[str, Any]) -> Any:
    """Converts an annotation to a `Row` as soon as it is parsed, which frees its outline."""
    return Row(*map(entry.get, Row._fields)) if "image_id" in entry else entry


def get(entry: Any, field: str) -> Any:
    """Returns a field of an entry; None if either is missing."""
    return entry.get(field) if isinstance(entry, dict) else None


def images_of(entries: Sequence[Any], file: str, remarks: list[str]) -> list[tuple[Image, str]]:
    """Parses the entries of `images`, each with the reason why it cannot be used, or "".

    If an id repeats, its objects are ambiguous and neither image can be used.
    """
    images: dict[Image, str] = {}
    for number, entry in enumerate(entries):
        image = Image(*(get(entry, field) for field in Image._fields))
        told = (image.height, image.width)
        image = image._replace(height=_side(image.height), width=_side(image.width))
        fault = ""
        if told != (image.height, image.width):
            fault = (
                f"{file}: {parsing.cut(image.file_name)}: height {parsing.shown(told[0])} and "
                f"width {parsing.shown(told[1])} are no whole numbers of pixels; correct them"
            )
        if not _is_name(image.file_name) or not _is_id(image.id):
            fault = f"{file}: images[{number}] has no id or no file_name"
            image = Image(f"images[{number}]", f"images[{number}]", None, None)
        if image in images:
            remarks.append(
                f"{file}: {image.file_name}: image {parsing.shown(image.id)} is there twice; "
                "one kept"
            )
        images[image] = fault
    files_of: dict[Any, list[str]] = collections.defaultdict(list)
    for image in images:
        files_of[image.id].append(image.file_name)
    for image, fault in images.items():
        if not fault and len(files_of[image.id]) > 1:
            names = files_of[image.id][:_MOST_NAMED]
            more = " and more" if len(files_of[image.id]) > _MOST_NAMED else ""
            images[image] = (
                f"{file}: {' and '.join(names)}{more} share the image id "
                f"{parsing.shown(image.id)}; give each its own"
            )
    return list(images.items())


def _side(value: Any) -> int | None:
    """Converts to a whole number of pixels; None for anything else."""
    fine = type(value) is int or (type(value) is float and value.is_integer())
    return int(value) if fine else None


def _is_name(value: Any) -> bool:
    """Whether a file can have that name."""
    return isinstance(value, str) and len(value) <= _LONGEST_PATH


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (type(value) is int and abs(value) <= _MAX_ID)


def rows_of(
    entries: Sequence[Any], image_ids: set[Any], file: str, remarks: list[str]
) -> dict[Any, list[Row]]:
    """The entries of `annotations` by image; remarks on ids that repeat or lead nowhere."""
    rows: dict[Any, list[Row]] = collections.defaultdict(list)
    seen: dict[Any, Row] = {}
    for number, row in enumerate(entries):
        if not isinstance(row, Row) or not _is_id(row.image_id):
            remarks.append(f"{file}: annotations[{number}] has no image_id; passed over")
        elif row.image_id not in image_ids:
            remarks.append(
                f"{file}: annotation {parsing.shown(row.id)}: there is no image "
                f"{parsing.shown(row.image_id)}; passed over"
            )
        elif row.id is not None and _is_id(row.id) and row.id in seen:
            same = seen[row.id] == row
            remarks.append(
                f"{file}: annotation id {row.id} is there twice; "
                + ("one kept, they are the same" if same else "both kept, they differ")
            )
            if not same:
                rows[row.image_id].append(row)
        else:
            rows[row.image_id].append(row)
            if _is_id(row.id):
                seen[row.id] = row
    return rows


def check_size(image: Image, actual: tuple[int, int], where: str) -> None:
    """Checks the size of an image in the JSON, if present, against the file."""
    told = (image.height, image.width)
    if all(told) and told != actual:
        raise errors.UserError(
            f"{where}: the JSON says {told[1]} x {told[0]}, but the image is {actual[1]} x "
            f"{actual[0]} (width x height, upright); correct the JSON and the boxes"
        )


def numbers(bbox: Any, what: str) -> Sequence[float]:
    """The four numbers of a `bbox`."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise errors.UserError(
            f"{what}: bbox is {parsing.shown(bbox)}, not four numbers x, y, width, height"
        )
    return bbox


def area(value: Any) -> float | None:
    """Returns the `area` of an annotation; None if it is not a number, then the box's is used."""
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    """Whether it is finite, and a float can hold it."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
