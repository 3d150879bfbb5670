"""Any dataset in COCO's JSON form.

    your folder/
      annotations/instances_train2017.json, instances_val2017.json, ...
      train2017/000000000009.jpg, ...     or images/train2017/, images/, or beside the JSON

A split is what follows `instances_` in a file's name. `train/_annotations.coco.json` with its
images beside it is split `train`. One JSON file of any name may be given instead of the folder.

COCO's boxes are (x, y, width, height) in continuous pixels, the first of which starts at 0. Labels
count from 1 in ascending order of the categories' ids, of which some may be missing. Crowds
(`iscrowd`) are kept and marked: training drops them, evaluation counts them neither way. Objects
without area are marked too: training drops them, evaluation counts them as COCO's own does. The
boxes and areas of the file are kept beside the clipped boxes: evaluation takes them as they are.

Source: Lin et al. 2014, and "Data format" of the COCO dataset's site.
"""

import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ssd_jax import errors
from ssd_jax.data import annotations, coco_json, parsing, paths, readers

_INSTANCES = "instances_"
_BESIDE = "_annotations.coco.json"  # Roboflow's, in the folder of the images
PATTERNS = (f"annotations/{_INSTANCES}*.json", f"{_INSTANCES}*.json", f"*/{_BESIDE}")


class Images(Protocol):
    """Finds and reads image files; safe to use from several threads."""

    places: str  # where, for messages

    def find(self, file_name: str) -> str | None:
        """Finds the full name of a file by its name in a JSON; None if it is missing."""
        ...

    def read(self, file: str) -> bytes:
        """The bytes of a file that `find` gave."""
        ...


class FolderImages:
    """Images in subfolders of a dataset, searched in this order."""

    def __init__(self, folders: Sequence[pathlib.Path], *, root: pathlib.Path):
        self.places = ", ".join(map(str, folders))
        self._folders = folders
        self._root = root

    def find(self, file_name: str) -> str | None:
        """The path of an image.

        Raises:
          UserError: If it is outside the dataset's folder, where changes would go unnoticed.
        """
        path = next(filter(paths.is_file, (folder / file_name for folder in self._folders)), None)
        if path is None:
            return None
        if not pathlib.Path(os.path.normpath(path)).is_relative_to(os.path.normpath(self._root)):
            raise errors.UserError(
                f"{path}: the JSON names an image outside {self._root}; move it there, or a link "
                "to its folder, and correct file_name"
            )
        return str(path)

    def read(self, file: str) -> bytes:
        """The bytes of a file."""
        return paths.read(file, at_most=paths.MOST_IMAGE_BYTES)


class AnnotationFile(NamedTuple):
    """A JSON file and the images that it is about.

    Attributes:
      file: Name of the JSON for messages.
      split: "" for a single file that names none.
      read: Gives the bytes of the JSON.
      images: Finds and reads the images.
      annotated: Whether the JSON contains annotations.
    """

    file: str
    split: str
    read: Callable[[], bytes]
    images: Images
    annotated: bool = True


class _Entry(NamedTuple):
    """The image of a key."""

    source: AnnotationFile
    image: coco_json.Image
    rows: Sequence[coco_json.Row]
    fault: str  # why it cannot be used, judged by the JSON alone


def files(path: str) -> list[pathlib.Path]:
    """The JSON files and all images below their dataset's folder.

    Raises:
      UserError: If there is no such dataset.
    """
    jsons = list(_find(path).values())
    below = paths.walk(_root(jsons[0], path))
    return jsons + [
        file
        for file in below
        if file.suffix.lower() in readers.IMAGE_SUFFIXES and paths.is_file(file)
    ]


class Reader(readers.Reader):
    """COCO JSON files as one dataset; a key is split/file name."""

    def __init__(
        self,
        name: str,
        sources: Iterable[AnnotationFile],
        *,
        categories: Mapping[int, str] | None = None,
    ):
        """Reads the JSON files.

        Args:
          name: Name of the dataset for messages.
          sources: Its JSON files.
          categories: All that there may be, by id; None: those that the files list.

        Raises:
          UserError: If one is not in COCO's form.
        """
        self.name = name
        self._closed = categories is not None
        self._names: dict[int, str] = dict(categories or {})
        self._entries: dict[str, _Entry] = {}
        remarks: list[str] = []
        splits = {}
        unannotated = []
        for source in sources:
            content = coco_json.load(source.read(), source.file, annotated=source.annotated)
            self._add_categories(content["categories"], source.file)
            before = len(self._entries)
            remarks += self._add_images(content, source)
            splits[source.split] = tuple(itertools.islice(self._entries, before, None))
            unannotated += [] if source.annotated else [source.split]
        self.keys = tuple(self._entries)
        self.splits = {name: keys for name, keys in splits.items() if name}
        self.remarks = remarks
        self.unannotated = tuple(unannotated)

    def example(self, key: str) -> readers.Example:
        """Decodes one image and converts its boxes."""
        entry = self._entries[key]
        if entry.fault:
            raise errors.UserError(entry.fault)
        image, images = entry.image, entry.source.images
        where = f"{entry.source.file}: {image.file_name}"
        file = images.find(image.file_name)
        if file is None:
            raise errors.UserError(
                f"{where}: no such image in {images.places}; add it or remove it from the JSON"
            )
        read = functools.partial(images.read, file)
        data = read()
        height, width, notes = readers.decode_size(
            data, name=file, max_megapixels=self.max_megapixels
        )
        coco_json.check_size(image, (height, width), where)
        annotation = self._annotation(entry, height, width, where)
        number = image.id if type(image.id) is int else readers.NO_IMAGE_ID
        return readers.Example(image.file_name, read, len(data), annotation, number, notes)

    def categories(self, names: Iterable[str]) -> dict[str, int]:
        """All categories, by ascending id, those without an object too."""
        if not self._closed and not set(names):
            raise errors.UserError(f"{self.name}: no annotation is an object within its image")
        return {self._names[number]: number for number in sorted(self._names)}

    def _add_categories(self, entries: Iterable[Any], file: str) -> None:
        for entry in entries:
            number, name = coco_json.get(entry, "id"), coco_json.get(entry, "name")
            if isinstance(name, str):
                name = annotations.class_name(name, f"{file}: category {parsing.shown(number)}")
            if type(number) is not int or not isinstance(name, str) or not name:
                raise errors.UserError(
                    f"{file}: category {parsing.shown(entry)} needs a whole number as id and a name"
                )
            if self._closed and number not in self._names:
                raise errors.UserError(
                    f"{file}: category {number} ({name}) is none of COCO's 80; for your own data "
                    "give --config.data.path"
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

    def _add_images(self, content: Mapping[str, Any], source: AnnotationFile) -> list[str]:
        """Adds the images of one file and returns remarks."""
        file, split = source.file, source.split
        remarks: list[str] = []
        images = coco_json.images_of(content["images"], file, remarks)
        rows = coco_json.rows_of(
            content["annotations"], {image.id for image, _ in images}, file, remarks
        )
        for image, fault in images:
            key = f"{split}/{image.file_name}" if split else image.file_name
            if key in self._entries:
                fault = f"{file}: {image.file_name} is listed twice; remove one of the entries"
                key = f"{key} (id {image.id})"
            self._entries[key] = _Entry(source, image, rows[image.id], fault)
        return remarks

    def _annotation(
        self, image: _Entry, height: int, width: int, where: str
    ) -> annotations.Annotation:
        objects: list[annotations.Object] = []
        notes: list[str] = []
        for row in image.rows:
            what = f"{where}: annotation {parsing.shown(row.id)}"
            if type(row.category_id) is not int or row.category_id not in self._names:
                number = parsing.shown(row.category_id)
                raise errors.UserError(f"{what}: there is no category {number}")
            name = self._names[row.category_id]
            written = ", ".join(f"{value:g}" for value in coco_json.numbers(row.bbox, what))
            x, y, w, h = row.bbox
            box, degenerate, said = annotations.clip(
                np.array([x, y, x + w, y + h], np.float64),
                height=height,
                width=width,
                written=written,
            )
            notes += [f"{what} ({name}): {remark}" for remark in said]
            objects.append(
                annotations.Object(
                    name,
                    box,
                    crowd=row.iscrowd == 1,
                    degenerate=degenerate,
                    bbox=row.bbox,
                    area=coco_json.area(row.area),
                )
            )
        return annotations.collect(objects, height=height, width=width, notes=notes)


def read_folder(path: str) -> Reader:
    """A folder in COCO's form, or one JSON file.

    Raises:
      UserError: If there is no JSON, or one is not in COCO's form.
    """
    sources = []
    for split, file in _find(path).items():
        root = _root(file, path)
        images = FolderImages(_image_folders(file, split, root), root=root)
        read = functools.partial(paths.read, file, at_most=parsing.MOST_JSON_BYTES)
        sources.append(AnnotationFile(str(file), split, read, images))
    return Reader(path, sources)


def _find(path: str) -> dict[str, pathlib.Path]:
    """JSON files by split; a single file without a split has split "".

    Raises:
      UserError: If there are none, or two of one split.
    """
    base = pathlib.Path(path).expanduser().absolute()
    if paths.is_file(base):
        return {_split_of(base): base}
    if not paths.is_folder(base):
        raise errors.UserError(f"config.data.path={path!r}: no such folder or file")
    found: dict[str, pathlib.Path] = {}
    for file in (file for pattern in PATTERNS for file in paths.matching(base, pattern)):
        if not paths.is_file(file):
            raise errors.UserError(f"{file}: is no file, or leads to none; mend or remove it")
        split = _split_of(file)
        if split in found:
            raise errors.UserError(f"{file} and {found[split]} are both split {split!r}; move one")
        found[split] = file
    if not found:
        raise errors.UserError(f"{path}: no {', '.join(PATTERNS)} found; name the JSON file itself")
    return found


def _split_of(file: pathlib.Path) -> str:
    """Returns the split named by a file: `val2017` for instances_val2017.json; "" for others."""
    if file.name == _BESIDE:
        return readers.check_split_name(file.parent.name, str(file.parent))
    if file.stem.startswith(_INSTANCES):
        return readers.check_split_name(file.stem.removeprefix(_INSTANCES), str(file))
    return ""


def _root(json: pathlib.Path, path: str) -> pathlib.Path:
    """The folder of the dataset that a JSON file belongs to."""
    base = pathlib.Path(path).expanduser().absolute()
    if paths.is_folder(base):
        return base
    return json.parent.parent if json.parent.name == "annotations" else json.parent


def _image_folders(json: pathlib.Path, split: str, root: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Candidate folders for the images of a split, most likely first."""
    folders = [root / split, root / "images" / split] if split else []
    folders += [root / "images", json.parent, json.parent / "images", root]
    return tuple(filter(paths.is_folder, dict.fromkeys(folders)))
