"""Datasets of YOLO text files, as Ultralytics, Roboflow, LabelImg and darknet write them.

    your folder/
      data.yaml                    names, and the images of train, val, test
      images/train/a.jpg, ...      or train/images/, or all beside their text files
      labels/train/a.txt, ...      a line for each object: class cx cy width height

Without a data.yaml the names are the lines of `classes.txt` or `obj.names`, and the splits are the
folders below `images` (or those that hold an `images`); without such folders there are none.
Numbers are normalized to the image and classes count from 0; label k is class k - 1. A line of a
polygon, `class x1 y1 x2 y2 x3 y3 ...`, is replaced by its bounding box; one with keypoints (see
`kpt_shape` in data.yaml) by the box at its start. An image whose text file is
missing or empty has no objects.

Source: "Detection datasets", "Segmentation datasets" and "Pose datasets" of the Ultralytics
documentation.
"""

import collections
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssd_jax import errors
from ssd_jax.data import annotations, parsing, paths, readers

_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_YAMLS = ("*.yaml", "*.yml")
PATTERNS = (*_YAMLS, *_CLASS_FILES, "labels/classes.txt")
"""Of the files that describe a dataset, below its folder."""

_SPLITS = ("train", "val", "test")
_SLACK = 0.01  # outside [0, 1] that Ultralytics allows too; more is no normalized number
_NO_LABELS = (*_CLASS_FILES, "train.txt", "val.txt", "test.txt")


class _Files(NamedTuple):
    """The files of a key."""

    file: pathlib.Path
    labels: pathlib.Path | None  # None if it is missing


class _Dataset(NamedTuple):
    """The files of a dataset."""

    root: pathlib.Path
    about: list[pathlib.Path]  # the file that names the classes, and those that list images
    names: dict[int, str]
    splits: dict[str, list[pathlib.Path]]  # "" where the dataset has no splits
    keypoints: int = 0  # numbers behind the box in a line; 0: a box or a polygon


def files(path: str) -> list[pathlib.Path]:
    """The files that name the classes and list images, all images and their text files.

    Raises:
      UserError: If there is no such dataset.
    """
    dataset = _dataset(path)
    images = [_image(file) for split in dataset.splits.values() for file in split]
    found = (file for image in images for file in image if file is not None)
    return [*dataset.about, *filter(paths.is_file, found)]


class Reader(readers.Reader):
    """YOLO's text files and their images; a key is the image's path below the folder."""

    def __init__(self, path: str):
        """Lists the dataset.

        Raises:
          UserError: If it has no images, or nothing names its classes.
        """
        self.name = path
        dataset = _dataset(path)
        self._names = dataset.names
        self._range = f"from {min(dataset.names)} to {max(dataset.names)}"
        self._keypoints = dataset.keypoints
        self._images: dict[str, _Files] = {}
        splits: dict[str, list[str]] = {}
        for split, images in dataset.splits.items():
            splits[split] = [_key(file, dataset.root) for file in images]
            self._images |= zip(splits[split], map(_image, images), strict=True)
        self.keys = sorted(self._images)
        self.splits = {name: keys for name, keys in splits.items() if name}
        self.remarks = [
            *self._unlabeled(splits),
            *_strays(self._images.values()),
        ]

    def example(self, key: str) -> readers.Example:
        """Decodes one image and parses its text file."""
        file, labels = self._images[key]
        read = functools.partial(paths.read, file, at_most=paths.MOST_IMAGE_BYTES)
        data = read()
        height, width, notes = readers.decode_size(
            data, name=str(file), max_megapixels=self.max_megapixels
        )
        text = _text(labels, paths.MOST_TEXT_BYTES) if labels else ""
        annotation = self._annotation(text, str(labels), height, width)
        return readers.Example(key, read, len(data), annotation, notes=notes)

    def categories(self, names: Iterable[str]) -> dict[str, int]:
        """All classes, in their order, those without an object too; YOLO counts them from 0."""
        if not set(names):
            raise errors.UserError(f"{self.name}: no text file has an object within its image")
        return {self._names[number]: number for number in sorted(self._names)}

    def _unlabeled(self, splits: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """Remarks on splits with images without text file."""
        for split, keys in splits.items():
            missing = [key for key in keys if self._images[key].labels is None]
            if missing:
                yield (
                    f"{self.name}: {split or 'all'}: {len(missing)} of {len(keys)} images have "
                    f"no text file, so no objects; the first is {missing[0]}"
                )

    def _annotation(self, text: str, file: str, height: int, width: int) -> annotations.Annotation:
        objects: list[annotations.Object] = []
        notes: list[str] = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{file}: line {number}"
            name, corners = self._parse(line, where)
            box, degenerate, said = annotations.clip(
                corners * [width, height, width, height],
                height=height,
                width=width,
                written=", ".join(line.split()[1:5]),
            )
            notes += [f"{where} ({name}): {remark}" for remark in said]
            objects.append(_object(name, box, corners, degenerate, height, width))
        return annotations.collect(objects, height=height, width=width, notes=notes)

    def _parse(self, line: str, where: str) -> tuple[str, np.ndarray]:
        """Parses the class and the normalized corners `[4]` of one line."""
        shown = parsing.shown(line.strip())
        try:
            kind, *values = (float(word) for word in line.split())
        except ValueError:
            raise errors.UserError(f"{where}: {shown} are not all numbers") from None
        if self._keypoints and len(values) != 4 + self._keypoints:
            raise errors.UserError(
                f"{where} has {len(values) + 1} numbers, not {5 + self._keypoints} (class cx cy "
                "width height and the keypoints of kpt_shape)"
            )
        values = values[:4] if self._keypoints else values
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise errors.UserError(
                f"{where} has {len(values) + 1} numbers, not 5 (class cx cy width height) or the "
                "class and the points of a polygon"
            )
        if kind not in self._names:
            raise errors.UserError(
                f"{where}: class {kind:g} is out of range; there are {len(self._names)} names, "
                f"{self._range}"
            )
        if not all(-_SLACK <= value <= 1 + _SLACK for value in values):  # NaN too
            raise errors.UserError(
                f"{where}: {shown} are not normalized to [0, 1]; divide by the image's size"
            )
        return self._names[int(kind)], _corners(np.array(values))


def _object(
    name: str, box: np.ndarray, corners: np.ndarray, degenerate: bool, height: int, width: int
) -> annotations.Object:
    """Makes an object; a degenerate one keeps its original box, which evaluation counts."""
    if not degenerate:
        return annotations.Object(name, box)
    (bbox,) = annotations.to_bboxes(corners, height, width).tolist()
    return annotations.Object(name, box, degenerate=True, bbox=bbox)


def _corners(values: np.ndarray) -> np.ndarray:
    """`[4]` xyxy of (cx, cy, width, height), or around the points of a polygon."""
    if len(values) == 4:
        center, sides = values[:2], values[2:]
        return np.concatenate([center - sides / 2, center + sides / 2])
    points = values.reshape(-1, 2)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _text(file: pathlib.Path, at_most: int) -> str:
    try:
        return paths.read(file, at_most=at_most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise errors.UserError(f"{file}: not a text file; export it again or remove it") from None


def _dataset(path: str) -> _Dataset:
    """Finds names, splits and images.

    Raises:
      UserError: If there is no such dataset.
    """
    given = pathlib.Path(path).expanduser().absolute()
    if not paths.exists(given):
        raise errors.UserError(f"config.data.path={path!r}: no such folder or file")
    description = given if paths.is_file(given) else _description(given)
    dataset = _from_yaml(description) if description else _from_folders(given)
    if not any(dataset.splits.values()):
        raise errors.UserError(f"{path}: holds no images ({', '.join(readers.IMAGE_SUFFIXES)})")
    return dataset


def _description(root: pathlib.Path) -> pathlib.Path | None:
    """Returns the YAML file of a folder, if any."""
    for name in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml"):
        if paths.is_file(root / name):
            return root / name
    found = [file for pattern in _YAMLS for file in paths.matching(root, pattern)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise errors.UserError(f"{root}: has {names}; give the path of the one that is meant")
    return found[0] if found else None


def _from_yaml(file: pathlib.Path) -> _Dataset:
    text = _text(file, parsing.MOST_YAML_BYTES)
    content = parsing.yaml_content(text, str(file))
    if not isinstance(content, dict):
        raise errors.UserError(f"{file}: holds no fields; it needs names, train and val")
    fields = ("path", "names", "nc", "kpt_shape", *_SPLITS)
    content = {**dict.fromkeys(fields), **content}
    names = _names(content["names"], content["nc"], file)
    root = file.parent / _word(content["path"] or "", "path", file)
    root = root if paths.is_folder(root) else file.parent
    places = {
        split: _places_of(content[split], split, (root, file.parent), file)
        for split in _SPLITS
        if content[split]
    }
    if not places:
        raise errors.UserError(f"{file}: names no images; it needs train and val")
    lists = [place for found in places.values() for place in found if paths.is_file(place)]
    splits = {split: _images_at(found) for split, found in places.items()}
    return _Dataset(root, [file, *lists], names, splits, _keypoints(content["kpt_shape"], file))


def _keypoints(shape: Any, file: pathlib.Path) -> int:
    """Returns the number of keypoint values per object by `kpt_shape`; 0 without it."""
    if shape is None:
        return 0
    fine = isinstance(shape, list) and len(shape) == 2
    if not fine or not all(type(side) is int and side > 0 for side in shape):
        raise errors.UserError(
            f"{file}: kpt_shape is {parsing.shown(shape)}, not two whole numbers, as [17, 3]; "
            "remove it where the text files have no keypoints"
        )
    return math.prod(shape)


def _names(value: Any, count: Any, file: pathlib.Path) -> dict[int, str]:
    """Classes by number, of a list or a mapping."""
    entries = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(entries, dict) or not entries:
        raise errors.UserError(f"{file}: needs names, a list of the classes")
    if not all(type(number) is int and number >= 0 for number in entries):
        raise errors.UserError(f"{file}: names must be numbered from 0")
    odd = [name for name in entries.values() if type(name) not in (str, int)]
    if odd:
        raise errors.UserError(
            f"{file}: YAML takes a name for {parsing.shown(odd[0])}; put all names in quotes, "
            "as 'yes'"
        )
    where = f"{file}: names"
    names = {n: annotations.class_name(str(name), where) for n, name in entries.items()}
    if count is not None and (type(count) is not int or count != len(names)):
        raise errors.UserError(
            f"{file}: nc is {parsing.shown(count)}, but there are {len(names)} names"
        )
    return _distinct(names, file)


def _distinct(names: dict[int, str], file: pathlib.Path) -> dict[int, str]:
    counts = collections.Counter(names.values())
    twice = [name for name, count in counts.items() if count > 1 or not name]
    if twice:
        raise errors.UserError(f"{file}: the name {twice[0]!r} is empty or there twice; rename it")
    return names


def _places_of(
    entry: Any, split: str, bases: Sequence[pathlib.Path], file: pathlib.Path
) -> list[pathlib.Path]:
    """Resolves one entry of a YAML file: folders, or text files that list images."""
    found: list[pathlib.Path] = []
    for part in entry if isinstance(entry, list) else [entry]:
        # Roboflow writes ../train/images, which is wrong relative to its file.
        word = _word(part, split, file)
        names = [word, word.removeprefix("../")]
        places = [base / name for name in names for base in bases]
        place = next(filter(paths.exists, places), None)
        if place is None:
            raise errors.UserError(
                f"{file}: {split}: {parsing.cut(word)} is neither in "
                f"{' nor in '.join(map(str, bases))}; correct the entry, or path"
            )
        found.append(place)
    return found


def _word(value: Any, field: str, file: pathlib.Path) -> str:
    """Checks that a field of a YAML file is a path."""
    if isinstance(value, list | dict | set):
        raise errors.UserError(
            f"{file}: {field} is {parsing.shown(value)}, not the name of a folder or list"
        )
    return str(value)


def _images_at(places: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The images in folders and lists, each once."""
    found = (_listed(place) if paths.is_file(place) else _images_below(place) for place in places)
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))


def _listed(file: pathlib.Path) -> list[pathlib.Path]:
    """Images listed in a text file; relative paths start at its folder."""
    lines = (line.strip() for line in _text(file, paths.MOST_LIST_BYTES).splitlines())
    return [pathlib.Path(os.path.normpath(file.parent / line)) for line in lines if line]


def _images_below(folder: pathlib.Path) -> list[pathlib.Path]:
    return [f for f in paths.walk(folder) if f.suffix.lower() in readers.IMAGE_SUFFIXES]


def _from_folders(root: pathlib.Path) -> _Dataset:
    """The dataset of a folder without YAML."""
    places = [root / name for name in _CLASS_FILES] + [root / "labels" / "classes.txt"]
    about = next(filter(paths.is_file, places), None)
    if about is None:
        raise errors.UserError(
            f"{root}: nothing names the classes; add data.yaml (names, train, val) or classes.txt "
            "(a name on each line)"
        )
    lines = _text(about, parsing.MOST_YAML_BYTES).rstrip().splitlines()
    names = {n: annotations.class_name(line, str(about)) for n, line in enumerate(lines)}
    names = _distinct(names, about)
    if not names:
        raise errors.UserError(f"{about}: is empty; write the name of a class on each line")
    return _Dataset(root, [about], names, _split_folders(root))


def _split_folders(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Images of images/SPLIT or SPLIT/images; of the whole folder, under "", without these."""
    folders = {f.name: f for f in paths.matching(root, "images/*") if paths.is_folder(f)}
    folders |= {f.parent.name: f for f in paths.matching(root, "*/images") if paths.is_folder(f)}
    if not folders:
        return {"": _images_below(root)}
    return {
        readers.check_split_name(name, str(folder)): _images_below(folder)
        for name, folder in folders.items()
    }


def _key(file: pathlib.Path, root: pathlib.Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _image(file: pathlib.Path) -> _Files:
    """Finds the text file of an image: below `labels` if the image is below `images`."""
    text = pathlib.Path(os.path.splitext(file)[0] + ".txt")
    parts = list(text.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    places = (pathlib.Path(*parts), text)
    return _Files(file, next(filter(paths.is_file, places), None))


def _strays(images: Iterable[_Files]) -> Iterator[str]:
    """Remarks on text files that belong to no image, or to two."""
    used: dict[pathlib.Path, pathlib.Path] = {}
    for file, labels in images:
        if labels in used and used[labels] != file:
            yield f"{labels}: is the text file of both {used[labels].name} and {file.name}"
        if labels is not None:
            used[labels] = file
    for folder in sorted({labels.parent for labels in used}):
        for text in paths.matching(folder, "*.txt"):
            if text not in used and text.name not in _NO_LABELS:
                yield f"{text}: has no image"
