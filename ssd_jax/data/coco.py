"""COCO itself, from its official archives, and any dataset in its JSON form.

    your folder/
      annotations/instances_train2017.json, instances_val2017.json, ...
      train2017/000000000009.jpg, ...     or images/train2017/, images/, or beside the JSON

A split is what follows `instances_` in a file's name. `train/_annotations.coco.json` with its
pictures beside it is split `train`. One JSON file of any name may be given instead of the folder.

COCO's boxes are (x, y, width, height) in continuous pixels of which the first begins at 0. Labels
count from 1 in ascending order of the categories' ids, of which some may be missing. Crowds
(`iscrowd`) are kept and marked: training drops them, evaluation counts them neither way. Objects
without area are marked too: training drops them, evaluation counts them as COCO's own does. The
boxes and areas of the file are kept beside the clipped boxes: evaluation takes them as they are.

Source: Lin et al. 2014, and "Data format" of the COCO dataset's site.
"""

import collections
import contextlib
import functools
import itertools
import os
import pathlib
import posixpath
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from ssd_jax import download, errors
from ssd_jax.data import annotations, builder, classes, parsing, paths, readers

HOST = "http://images.cocodataset.org/"  # what comes is verified

_USED_IDS = sorted({*range(1, 91)} - {*classes.COCO_UNUSED_IDS})
CATEGORIES = dict(zip(_USED_IDS, classes.COCO, strict=True))
"""The official names by id."""


class Archive(NamedTuple):
    """An official archive: where its download is below `HOST`, and what it has to be."""

    path: str
    sha256: str

    @property
    def filename(self) -> str:
        """Its name in a folder."""
        return posixpath.basename(self.path)


class Official(NamedTuple):
    """What an official split is made of.

    Attributes:
      pictures: The archive with its pictures.
      tables: The archive with its JSON.
      json: Which of its JSON files.
      annotated: Whether the objects were published.
    """

    pictures: Archive
    tables: Archive
    json: str
    annotated: bool = True


_OF_2014 = Archive(
    "annotations/annotations_trainval2014.zip",
    "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
)
_OF_2017 = Archive(
    "annotations/annotations_trainval2017.zip",
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)
_OF_TEST_2017 = Archive(
    "annotations/image_info_test2017.zip",
    "e52f412dd7195ac8f98d782b44c6dd30ea10241e9f42521f67610fbe055a74f8",
)
_TEST_2017 = Archive(
    "zips/test2017.zip",
    "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba",
)

SPLITS: dict[str, Official] = {
    "train2017": Official(
        Archive(
            "zips/train2017.zip",
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        ),
        _OF_2017,
        "instances_train2017.json",
    ),
    "val2017": Official(
        Archive(
            "zips/val2017.zip",
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        ),
        _OF_2017,
        "instances_val2017.json",
    ),
    "train2014": Official(
        Archive(
            "zips/train2014.zip",
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        ),
        _OF_2014,
        "instances_train2014.json",
    ),
    "val2014": Official(
        Archive(
            "zips/val2014.zip",
            "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
        ),
        _OF_2014,
        "instances_val2014.json",
    ),
    "test2017": Official(_TEST_2017, _OF_TEST_2017, "image_info_test2017.json", annotated=False),
    "testdev2017": Official(
        _TEST_2017, _OF_TEST_2017, "image_info_test-dev2017.json", annotated=False
    ),
}
"""The official splits. The paper's trainval35k is train2017, its minival val2017."""

_INSTANCES = "instances_"
_BESIDE = "_annotations.coco.json"  # Roboflow's, in the folder of the pictures
PATTERNS = (f"annotations/{_INSTANCES}*.json", f"{_INSTANCES}*.json", f"*/{_BESIDE}")
_MAX_ID = 2**63 - 1
_ROOM = 64 << 20  # bytes that anything in an archive may have, however small it is there
_MOST_INFLATED = 100  # times that a larger file may grow when it is unpacked; COCO's JSON: 5
_LONGEST_PATH = 4096  # characters; no system takes more
_MOST_NAMED = 3  # images that a message names


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
    area: Any


class Pictures(Protocol):
    """Picture files, wherever they lie; safe to read from several threads."""

    places: str  # where, for messages

    def find(self, file_name: str) -> str | None:
        """The whole name of the file that a JSON names so; None where there is none."""
        ...

    def read(self, file: str) -> bytes:
        """The bytes of a file that `find` gave."""
        ...


class FolderPictures:
    """Pictures in folders of a dataset's folder, looked for in this order."""

    def __init__(self, folders: Sequence[pathlib.Path], *, root: pathlib.Path):
        self.places = ", ".join(map(str, folders))
        self._folders = folders
        self._root = root

    def find(self, file_name: str) -> str | None:
        """The path of a picture.

        Raises:
          UserError: It is not below the dataset's folder, where a change of it would be noticed.
        """
        path = next(filter(paths.is_file, (folder / file_name for folder in self._folders)), None)
        if path is None:
            return None
        if not pathlib.Path(os.path.normpath(path)).is_relative_to(os.path.normpath(self._root)):
            raise errors.UserError(
                f"{path}: the JSON names a picture outside {self._root}; move it there, or a link "
                "to its folder, and correct file_name"
            )
        return str(path)

    def read(self, file: str) -> bytes:
        """The bytes of a file."""
        return paths.read(file, at_most=paths.MOST_IMAGE_BYTES)


class ZipPictures:
    """Pictures of one folder of a zip archive, read in place, never extracted."""

    def __init__(self, path: pathlib.Path, *, folder: str):
        self.places = f"{path}/{folder}"
        self._archive = _open_zip(path)
        self._members = {f"{path}/{name}": name for name in self._archive.namelist()}

    def find(self, file_name: str) -> str | None:
        """The name of a picture, behind that of the archive."""
        file = f"{self.places}/{file_name}"
        return file if file in self._members else None

    def read(self, file: str) -> bytes:
        """The bytes of a file, whose checksum in the archive has to be right."""
        return _member(self._archive, self._members[file], file, at_most=paths.MOST_IMAGE_BYTES)


class Source(NamedTuple):
    """A JSON file and the pictures that it is about.

    Attributes:
      file: What messages call the JSON.
      split: "" for a single file that names none.
      read: Gives the bytes of the JSON.
      pictures: Where they are.
      annotated: Whether the JSON tells the objects.
    """

    file: str
    split: str
    read: Callable[[], bytes]
    pictures: Pictures
    annotated: bool = True


class _Picture(NamedTuple):
    """What a key stands for."""

    source: Source
    image: _Image
    rows: Sequence[_Row]
    fault: str  # why it cannot be used, as far as the JSON tells


def files(path: str) -> list[pathlib.Path]:
    """The JSON files and all pictures below their dataset's folder.

    Raises:
      UserError: There is no such dataset.
    """
    jsons = list(_find(path).values())
    below = paths.walk(_root(jsons[0], path))
    return jsons + [
        file
        for file in below
        if file.suffix.lower() in readers.PICTURE_SUFFIXES and paths.is_file(file)
    ]


class Reader(readers.Reader):
    """COCO JSON files as one dataset; a key is split/file name."""

    def __init__(
        self, name: str, sources: Iterable[Source], *, categories: Mapping[int, str] | None = None
    ):
        """Reads the JSON files.

        Args:
          name: What messages call the dataset.
          sources: Its JSON files.
          categories: All that there may be, by id; None: those that the files list.

        Raises:
          UserError: One is not in COCO's form.
        """
        self.name = name
        self._closed = categories is not None
        self._names: dict[int, str] = dict(categories or {})
        self._pictures: dict[str, _Picture] = {}
        remarks: list[str] = []
        splits = {}
        unannotated = []
        for source in sources:
            content = _load(source)
            self._add_categories(content["categories"], source.file)
            before = len(self._pictures)
            remarks += self._add_pictures(content, source)
            splits[source.split] = tuple(itertools.islice(self._pictures, before, None))
            unannotated += [] if source.annotated else [source.split]
        self.keys = tuple(self._pictures)
        self.splits = {name: keys for name, keys in splits.items() if name}
        self.remarks = remarks
        self.unannotated = tuple(unannotated)

    def example(self, key: str) -> readers.Example:
        """Decodes one picture and converts its boxes."""
        picture = self._pictures[key]
        if picture.fault:
            raise errors.UserError(picture.fault)
        image, pictures = picture.image, picture.source.pictures
        where = f"{picture.source.file}: {image.file_name}"
        file = pictures.find(image.file_name)
        if file is None:
            raise errors.UserError(
                f"{where}: no such picture in {pictures.places}; add it or remove it from the JSON"
            )
        read = functools.partial(pictures.read, file)
        data = read()
        height, width, notes = readers.decode_size(
            data, name=file, max_megapixels=self.max_megapixels
        )
        _check_size(image, (height, width), where)
        annotation = self._annotation(picture, height, width, where)
        number = image.id if type(image.id) is int else readers.NO_IMAGE_ID
        return readers.Example(image.file_name, read, len(data), annotation, number, notes)

    def categories(self, names: Iterable[str]) -> dict[str, int]:
        """All categories, by ascending id, those without an object too."""
        if not self._closed and not set(names):
            raise errors.UserError(f"{self.name}: no annotation is an object within its picture")
        return {self._names[number]: number for number in sorted(self._names)}

    def _add_categories(self, entries: Iterable[Any], file: str) -> None:
        for entry in entries:
            number, name = _get(entry, "id"), _get(entry, "name")
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

    def _add_pictures(self, content: Mapping[str, Any], source: Source) -> list[str]:
        """Notes the pictures of one file; returns remarks."""
        file, split = source.file, source.split
        remarks: list[str] = []
        images = _images(content["images"], file, remarks)
        rows = _rows(content["annotations"], {image.id for image, _ in images}, file, remarks)
        for image, fault in images:
            key = f"{split}/{image.file_name}" if split else image.file_name
            if key in self._pictures:
                fault = f"{file}: {image.file_name} is listed twice; remove one of the entries"
                key = f"{key} (id {image.id})"
            self._pictures[key] = _Picture(source, image, rows[image.id], fault)
        return remarks

    def _annotation(
        self, picture: _Picture, height: int, width: int, where: str
    ) -> annotations.Annotation:
        objects: list[annotations.Object] = []
        notes: list[str] = []
        for row in picture.rows:
            what = f"{where}: annotation {parsing.shown(row.id)}"
            if type(row.category_id) is not int or row.category_id not in self._names:
                number = parsing.shown(row.category_id)
                raise errors.UserError(f"{what}: there is no category {number}")
            name = self._names[row.category_id]
            written = ", ".join(f"{value:g}" for value in _numbers(row.bbox, what))
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
                    area=_area(row.area),
                )
            )
        return annotations.collect(objects, height=height, width=width, notes=notes)


class Coco(builder.Builder):
    """COCO 2014 and 2017, a split at a time."""

    name = "ssd_coco"  # in tfds' registry
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = [
        tfds.core.BuilderConfig(name=split, description=f"COCO {split}") for split in SPLITS
    ]

    def __init__(self, *, archives: Sequence[pathlib.Path] = (), **kwargs: Any):
        """Args are those of tfds, and the archives.

        Args:
          archives: Those of the split, as `find_archives` found them. Empty: they are downloaded
            and compared with their known SHA-256.
          **kwargs: Of tfds' builders: `config` (the split), `data_dir`, ...
        """
        self._archives = archives
        super().__init__(**kwargs)

    def _readers(self, dl_manager: tfds.download.DownloadManager) -> list[Reader]:
        split = self.builder_config.name
        folder = pathlib.Path(dl_manager.download_dir)
        pictures, tables = self._archives or [_download(folder, a) for a in archives_of(split)]
        return [read_archives(pictures, tables, split)]


def archives_of(split: str) -> tuple[Archive, Archive]:
    """The official archives of a split: its pictures', and that of its JSON."""
    return SPLITS[split].pictures, SPLITS[split].tables


def find_archives(folder: str, split: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The official archives of a split in a folder, as `archives_of` names them.

    Raises:
      UserError: There is no such folder, or one is not in it.
    """
    base = pathlib.Path(folder).expanduser()
    if not paths.is_folder(base):
        raise errors.UserError(f"config.data.archives={folder}: no such folder")
    pictures, tables = (base / archive.filename for archive in archives_of(split))
    for path in (pictures, tables):
        if not paths.is_file(path):
            raise errors.UserError(
                f"config.data.archives={folder}: no {path.name} in it, which {split} needs; put it "
                "there, or leave the field empty to download it"
            )
    return pictures, tables


def read_archives(pictures: pathlib.Path, tables: pathlib.Path, split: str) -> Reader:
    """An official split, with COCO's 80 classes, from its archives, which are not extracted.

    Raises:
      UserError: They are no such archives.
    """
    official = SPLITS[split]
    folder = official.pictures.filename.removesuffix(".zip")
    archive, member = _open_zip(tables), f"annotations/{official.json}"
    if member not in archive.namelist():
        raise errors.UserError(f"{tables}: holds no {member}; is it another archive?")
    source = Source(
        file=f"{tables}/{member}",
        split=split,
        read=functools.partial(
            _member, archive, member, f"{tables}/{member}", at_most=parsing.MOST_JSON_BYTES
        ),
        pictures=ZipPictures(pictures, folder=folder),
        annotated=official.annotated,
    )
    return Reader(str(pictures), [source], categories=CATEGORIES)


def read_folder(path: str) -> Reader:
    """A folder in COCO's form, or one JSON file.

    Raises:
      UserError: There is no JSON, or one is not in COCO's form.
    """
    sources = []
    for split, file in _find(path).items():
        root = _root(file, path)
        pictures = FolderPictures(_picture_folders(file, split, root), root=root)
        read = functools.partial(paths.read, file, at_most=parsing.MOST_JSON_BYTES)
        sources.append(Source(str(file), split, read, pictures))
    return Reader(path, sources)


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    with _named(str(path)):
        return zipfile.ZipFile(path)


def _member(archive: zipfile.ZipFile, member: str, file: str, *, at_most: int) -> bytes:
    """The bytes of a member that messages call `file`; its checksum has to be right.

    Args:
      archive: That it is in.
      member: Its name there.
      file: What messages call it.
      at_most: Bytes that it may have.

    Raises:
      UserError: It cannot be read, or unpacks to more than an image or a table of that size does.
    """
    with _named(file):
        entry = archive.getinfo(member)
        inflated = entry.file_size > max(_ROOM, _MOST_INFLATED * entry.compress_size)
        if entry.file_size > at_most or inflated:
            raise errors.UserError(
                f"{file}: unpacks from {entry.compress_size} to {entry.file_size} bytes, more than "
                "is read of such a file; fetch the archive anew"
            )
        return archive.read(entry)


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Names the file of an archive that cannot be read."""
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:  # encrypted: RuntimeError; damaged ones raise a dozen kinds
        if errors.is_of_machine(error):
            raise errors.of_machine(error, file) from error
        reason = parsing.cut(error)
        raise errors.UserError(
            f"{file}: not in a whole zip archive ({reason}); fetch it anew"
        ) from error


def _download(folder: pathlib.Path, archive: Archive) -> pathlib.Path:
    """Downloads an archive, or finds it downloaded.

    Raises:
      UserError: It cannot be had, or is not what it was; it says how to do without the download.
    """
    return download.fetch(
        HOST + archive.path,
        folder / archive.filename,
        sha256=archive.sha256,
        otherwise="put the archives in a folder and give --config.data.archives=DIR",
    )


def _find(path: str) -> dict[str, pathlib.Path]:
    """The JSON files by their split; a single one that names none has split "".

    Raises:
      UserError: There are none, or two of one split.
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
        raise errors.UserError(
            f"{path}: looked for {', '.join(PATTERNS)}, and found none; name the JSON file itself"
        )
    return found


def _split_of(file: pathlib.Path) -> str:
    """The split that a file's name tells: `val2017` of instances_val2017.json; else ""."""
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


def _picture_folders(
    json: pathlib.Path, split: str, root: pathlib.Path
) -> tuple[pathlib.Path, ...]:
    """Where a split's pictures may lie, the likeliest first."""
    folders = [root / split, root / "images" / split] if split else []
    folders += [root / "images", json.parent, json.parent / "images", root]
    return tuple(filter(paths.is_folder, dict.fromkeys(folders)))


def _load(source: Source) -> dict[str, Any]:
    """The content of a JSON file, of which annotations are `_Row`s.

    Raises:
      UserError: It is no JSON, or not in COCO's form.
    """
    file = source.file
    content = parsing.json_content(source.read(), file, _slim)
    if not source.annotated and isinstance(content, dict):
        content = {**content, "annotations": []}
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


def _images(entries: Sequence[Any], file: str, remarks: list[str]) -> list[tuple[_Image, str]]:
    """The entries of `images`, each with why it cannot be used, or "".

    An id that repeats leaves open whose the objects are: neither picture can be used then.
    """
    images: dict[_Image, str] = {}
    for number, entry in enumerate(entries):
        image = _Image(*(_get(entry, field) for field in _Image._fields))
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
            image = _Image(f"images[{number}]", f"images[{number}]", None, None)
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
    """A whole number of pixels; None for anything else."""
    fine = type(value) is int or (type(value) is float and value.is_integer())
    return int(value) if fine else None


def _is_name(value: Any) -> bool:
    """Whether a file can have that name."""
    return isinstance(value, str) and len(value) <= _LONGEST_PATH


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (type(value) is int and abs(value) <= _MAX_ID)


def _rows(
    entries: Sequence[Any], image_ids: set[Any], file: str, remarks: list[str]
) -> dict[Any, list[_Row]]:
    """The entries of `annotations` by image; remarks on ids that repeat or lead nowhere."""
    rows: dict[Any, list[_Row]] = collections.defaultdict(list)
    seen: dict[Any, _Row] = {}
    for number, row in enumerate(entries):
        if not isinstance(row, _Row) or not _is_id(row.image_id):
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
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise errors.UserError(
            f"{what}: bbox is {parsing.shown(bbox)}, not four numbers x, y, width, height"
        )
    return bbox


def _area(value: Any) -> float | None:
    """The `area` of an annotation; None where it is no number, and the box's is taken."""
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    """Whether it is finite, and a float can hold it."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
