"""Datasets in COCO's JSON form.

    your folder/
      annotations/instances_train2017.json, instances_val2017.json, ...
      train2017/000000000009.jpg, ...     or images/train2017/, images/, or beside the JSON

A split is what follows `instances_` in a file's name. `train/_annotations.coco.json` with its
pictures beside it is split `train`. One JSON file of any name may be given instead of the folder.

COCO's boxes are (x, y, width, height) in continuous pixels of which the first begins at 0. Labels
count from 1 in ascending order of the categories' ids, of which some may be missing. Crowds
(`iscrowd`) are kept and marked: training drops them, evaluation counts them neither way.

Source: Lin et al. 2014, and "Data format" of the COCO dataset's site.
"""

import collections
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssd_jax import errors
from ssd_jax.data import annotations, builder

_INSTANCES = "instances_"
_BESIDE = "_annotations.coco.json"  # Roboflow's, in the folder of the pictures
_MAX_ID = 2**63 - 1


class _Image(NamedTuple):
    """An entry of `images`."""

    id: Any
    file_name: str
    height: Any
    width: Any


class _Row(NamedTuple):
    """An entry of `annotations`, without the outline, which takes most of the memory."""

    id: Any
    image_id: Any
    category_id: Any
    bbox: Any
    iscrowd: Any


class _Picture(NamedTuple):
    """What a key stands for."""

    json: pathlib.Path
    folders: tuple[pathlib.Path, ...]  # where its file may be
    image: _Image
    rows: Sequence[_Row]
    fault: str  # why it cannot be used, as far as the JSON tells


def files(path: str) -> list[pathlib.Path]:
    """The JSON files and all pictures below their dataset's folder.

    Raises:
      UserError: There is no such dataset.
    """
    jsons = list(_find(path).values())
    below = builder.walk(_root(jsons[0], path))
    return jsons + [file for file in below if file.suffix.lower() in builder.PICTURE_SUFFIXES]


class Reader(builder.Reader):
    """COCO JSON files as one dataset; a key is split/file name."""

    def __init__(self, path: str):
        """Reads the JSON files.

        Raises:
          UserError: There are none, or one is not in COCO's form.
        """
        self.name = path
        self._names: dict[int, str] = {}
        self._pictures: dict[str, _Picture] = {}
        remarks: list[str] = []
        splits = {}
        for split, file in _find(path).items():
            content = _load(file)
            self._add_categories(content["categories"], file)
            before = len(self._pictures)
            remarks += self._add_pictures(content, split, file, _root(file, path))
            splits[split] = tuple(itertools.islice(self._pictures, before, None))
        self.keys = tuple(self._pictures)
        self.splits = {name: keys for name, keys in splits.items() if name}
        self.remarks = remarks

    def example(self, key: str) -> builder.Example:
        """Decodes one picture and converts its boxes."""
        picture = self._pictures[key]
        if picture.fault:
            raise errors.UserError(picture.fault)
        image = picture.image
        where = f"{picture.json}: {image.file_name}"
        file = next((f / image.file_name for f in picture.folders if _is_file(f, image)), None)
        if file is None:
            looked = ", ".join(str(folder) for folder in picture.folders)
            raise errors.UserError(
                f"{where}: no such picture in {looked}; add it or remove it from the JSON"
            )
        read = functools.partial(builder.read_file, file)
        data = read()
        height, width = builder.decode_size(data, name=str(file))
        _check_size(image, (height, width), where)
        annotation = self._annotation(picture, height, width, where)
        number = image.id if type(image.id) is int else builder.NO_IMAGE_ID
        return builder.Example(image.file_name, read, len(data), annotation, number)

    def categories(self, names: Iterable[str]) -> dict[str, int]:
        """All categories, by ascending id, those without an object too."""
        if not set(names):
            raise errors.UserError(f"{self.name}: no annotation is an object within its picture")
        return {self._names[number]: number for number in sorted(self._names)}

    def _add_categories(self, entries: Iterable[Any], file: pathlib.Path) -> None:
        for entry in entries:
            number, name = _get(entry, "id"), _get(entry, "name")
            if type(number) is not int or not isinstance(name, str) or not name:
                raise errors.UserError(
                    f"{file}: category {entry!r} needs a whole number as id and a name"
                )
            if self._names.setdefault(number, name) != name:
                raise errors.UserError(
                    f"{file}: category {number} is {name!r}, and {self._names[number]!r} before; "
                    "give each its own id"
                )
        twice = [n for n, count in collections.Counter(self._names.values()).items() if count > 1]
        if twice:
            raise errors.UserError(
                f"{file}: several categories are named {twice[0]!r}; rename all but one"
            )

    def _add_pictures(
        self, content: Mapping[str, Any], split: str, file: pathlib.Path, root: pathlib.Path
    ) -> list[str]:
        """Notes the pictures of one file; returns remarks."""
        remarks: list[str] = []
        images = _images(content["images"], file, remarks)
        rows = _rows(content["annotations"], {image.id for image, _ in images}, file, remarks)
        folders = _picture_folders(file, split, root)
        for image, fault in images:
            key = f"{split}/{image.file_name}" if split else image.file_name
            if key in self._pictures:
                fault = f"{file}: {image.file_name} is listed twice; remove one of the entries"
                key = f"{key} (id {image.id})"
            self._pictures[key] = _Picture(file, folders, image, rows[image.id], fault)
        return remarks

    def _annotation(
        self, picture: _Picture, height: int, width: int, where: str
    ) -> annotations.Annotation:
        objects: list[annotations.Object] = []
        notes: list[str] = []
        for row in picture.rows:
            what = f"{where}: annotation {row.id}"
            if type(row.category_id) is not int or row.category_id not in self._names:
                raise errors.UserError(f"{what}: there is no category {row.category_id!r}")
            name = self._names[row.category_id]
            written = ", ".join(f"{value:g}" for value in _numbers(row.bbox, what))
            x, y, w, h = row.bbox
            box, said = annotations.clip(
                np.array([x, y, x + w, y + h], np.float64),
                height=height,
                width=width,
                written=written,
            )
            notes += [f"{what} ({name}): {remark}" for remark in said]
            if box is not None:
                objects.append(annotations.Object(name, box, crowd=row.iscrowd == 1))
        return annotations.collect(objects, height=height, width=width, notes=notes)


def _find(path: str) -> dict[str, pathlib.Path]:
    """The JSON files by their split; a single one that names none has split "".

    Raises:
      UserError: There are none, or two of one split.
    """
    base = pathlib.Path(path).expanduser().absolute()
    if base.is_file():
        return {_split_of(base): base}
    if not base.is_dir():
        raise errors.UserError(f"config.data.path={path!r}: no such folder or file")
    found: dict[str, pathlib.Path] = {}
    patterns = (f"annotations/{_INSTANCES}*.json", f"{_INSTANCES}*.json", f"*/{_BESIDE}")
    for file in (file for pattern in patterns for file in sorted(base.glob(pattern))):
        split = _split_of(file)
        if split in found:
            raise errors.UserError(f"{file} and {found[split]} are both split {split!r}; move one")
        found[split] = file
    if not found:
        raise errors.UserError(
            f"{path}: looked for {', '.join(patterns)}, and found none; name the JSON file itself"
        )
    return found


def _split_of(file: pathlib.Path) -> str:
    """The split that a file's name tells: `val2017` of instances_val2017.json; else ""."""
    if file.name == _BESIDE:
        return builder.check_split_name(file.parent.name, str(file.parent))
    if file.stem.startswith(_INSTANCES):
        return builder.check_split_name(file.stem.removeprefix(_INSTANCES), str(file))
    return ""


def _root(json: pathlib.Path, path: str) -> pathlib.Path:
    """The folder of the dataset that a JSON file belongs to."""
    base = pathlib.Path(path).expanduser().absolute()
    if base.is_dir():
        return base
    return json.parent.parent if json.parent.name == "annotations" else json.parent


def _picture_folders(
    json: pathlib.Path, split: str, root: pathlib.Path
) -> tuple[pathlib.Path, ...]:
    """Where a split's pictures may lie, the likeliest first."""
    folders = [root / split, root / "images" / split] if split else []
    folders += [root / "images", json.parent, json.parent / "images", root]
    return tuple(folder for folder in dict.fromkeys(folders) if folder.is_dir())


def _load(file: pathlib.Path) -> dict[str, Any]:
    """The content of a JSON file, of which annotations are `_Row`s.

    Raises:
      UserError: It is no JSON, or not in COCO's form.
    """
    try:
        with open(file, encoding="utf-8-sig") as opened:
            content = json.load(opened, object_hook=_slim)
    except OSError as error:
        raise errors.UserError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"{file}: not JSON ({error}); fetch or export it anew") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(_get(content, part), list):
            raise errors.UserError(
                f"{file}: has no list {part!r}, so it is not COCO's JSON of instances"
            )
    return content


def _slim(entry: dict[str, Any]) -> Any:
    """Makes an annotation a `_Row` as soon as it is parsed, so that its outline is let go."""
    return _Row(*map(entry.get, _Row._fields)) if "image_id" in entry else entry


def _get(entry: Any, field: str) -> Any:
    """A field of an entry; None where either is missing."""
    return entry.get(field) if isinstance(entry, dict) else None


def _images(
    entries: Sequence[Any], file: pathlib.Path, remarks: list[str]
) -> list[tuple[_Image, str]]:
    """The entries of `images`, each with why it cannot be used, or "".

    An id that repeats leaves open whose the objects are: neither picture can be used then.
    """
    images: dict[_Image, str] = {}
    for number, entry in enumerate(entries):
        image = _Image(*(_get(entry, field) for field in _Image._fields))
        if type(image.height) is not int or type(image.width) is not int:
            image = image._replace(height=None, width=None)
        fault = ""
        if not isinstance(image.file_name, str) or not _is_id(image.id):
            fault = f"{file}: images[{number}] has no id or no file_name"
            image = _Image(f"images[{number}]", f"images[{number}]", None, None)
        if image in images:
            remarks.append(f"{file}: {image.file_name}: image {image.id} is there twice; one kept")
        images[image] = fault
    files_of: dict[Any, list[str]] = collections.defaultdict(list)
    for image in images:
        files_of[image.id].append(image.file_name)
    for image, fault in images.items():
        if not fault and len(files_of[image.id]) > 1:
            images[image] = (
                f"{file}: {' and '.join(files_of[image.id])} share the image id {image.id}; give "
                "each its own"
            )
    return list(images.items())


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (type(value) is int and abs(value) <= _MAX_ID)


def _rows(
    entries: Sequence[Any], image_ids: set[Any], file: pathlib.Path, remarks: list[str]
) -> dict[Any, list[_Row]]:
    """The entries of `annotations` by image; remarks on ids that repeat or lead nowhere."""
    rows: dict[Any, list[_Row]] = collections.defaultdict(list)
    seen: dict[Any, _Row] = {}
    for number, row in enumerate(entries):
        if not isinstance(row, _Row) or not _is_id(row.image_id):
            remarks.append(f"{file}: annotations[{number}] has no image_id; passed over")
        elif row.image_id not in image_ids:
            remarks.append(
                f"{file}: annotation {row.id}: there is no image {row.image_id}; passed over"
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


def _is_file(folder: pathlib.Path, image: _Image) -> bool:
    try:
        return (folder / image.file_name).is_file()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


def _check_size(image: _Image, actual: tuple[int, int], where: str) -> None:
    """The picture's size, if the JSON tells it, has to be the true one."""
    told = (image.height, image.width)
    if all(told) and told != actual:
        raise errors.UserError(
            f"{where}: the JSON says {told[1]} x {told[0]}, but the picture is {actual[1]} x "
            f"{actual[0]} (width x height, upright); correct the JSON and the boxes"
        )


def _numbers(bbox: Any, what: str) -> Sequence[float]:
    """The four numbers of a `bbox`."""
    fine = isinstance(bbox, list) and len(bbox) == 4
    if not fine or not all(type(v) in (int, float) and math.isfinite(v) for v in bbox):
        raise errors.UserError(f"{what}: bbox is {bbox!r}, not four numbers x, y, width, height")
    return bbox
