"""COCO 2014 and 2017, one split at a time, read from the official zip archives without extraction.

Source: Lin et al. 2014, and COCO's site.
"""

import contextlib
import functools
import pathlib
import posixpath
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from ssd_jax import download, errors
from ssd_jax.data import builder, classes, coco, parsing, paths

HOST = "http://images.cocodataset.org/"  # downloads are verified

_USED_IDS = sorted({*range(1, 91)} - {*classes.COCO_UNUSED_IDS})
CATEGORIES = dict(zip(_USED_IDS, classes.COCO, strict=True))
"""The official names by id."""


class Archive(NamedTuple):
    """An official archive: its path below `HOST` and its checksum."""

    path: str
    sha256: str

    @property
    def filename(self) -> str:
        """Its name in a folder."""
        return posixpath.basename(self.path)


class Official(NamedTuple):
    """The archives of an official split.

    Attributes:
      images: The archive with its images.
      tables: The archive with its JSON.
      json: Name of its JSON file.
      annotated: Whether the objects were published.
    """

    images: Archive
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

_ROOM = 64 << 20  # bytes that any member may have, however small it is compressed
_MOST_INFLATED = 100  # times that a larger file may grow when it is unpacked; COCO's JSON: 5


class ZipImages:
    """Images of one folder of a zip archive, read in place, never extracted."""

    def __init__(self, path: pathlib.Path, *, folder: str):
        self.places = f"{path}/{folder}"
        self._archive = _open_zip(path)
        self._members = {f"{path}/{name}": name for name in self._archive.namelist()}

    def find(self, file_name: str) -> str | None:
        """The name of an image, behind that of the archive."""
        file = f"{self.places}/{file_name}"
        return file if file in self._members else None

    def read(self, file: str) -> bytes:
        """Reads a member and verifies its checksum."""
        return _member(self._archive, self._members[file], file, at_most=paths.MOST_IMAGE_BYTES)


class Coco(builder.Builder):
    """COCO 2014 and 2017, a split at a time."""

    name = "ssd_coco"  # in tfds' registry
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = [
        tfds.core.BuilderConfig(name=split, description=f"COCO {split}") for split in SPLITS
    ]

    def __init__(self, *, archives: Sequence[pathlib.Path] = (), **kwargs: Any):
        """Args are those of tfds, and the archives.

        Args:
          archives: Archives of the split from `find_archives`. Empty: they are downloaded
            and compared with their known SHA-256.
          **kwargs: Options of tfds' builders: `config` (the split), `data_dir`, ...
        """
        self._archives = archives
        super().__init__(**kwargs)

    def _readers(self, dl_manager: tfds.download.DownloadManager) -> list[coco.Reader]:
        split = self.builder_config.name
        folder = pathlib.Path(dl_manager.download_dir)
        images, tables = self._archives or [_download(folder, a) for a in archives_of(split)]
        return [read_archives(images, tables, split)]


def archives_of(split: str) -> tuple[Archive, Archive]:
    """The official archives of a split: its images', and that of its JSON."""
    return SPLITS[split].images, SPLITS[split].tables


def find_archives(folder: str, split: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The official archives of a split in a folder, as `archives_of` names them.

    Raises:
      UserError: If there is no such folder, or one is not in it.
    """
    base = pathlib.Path(folder).expanduser()
    if not paths.is_folder(base):
        raise errors.UserError(f"config.data.archives={folder}: no such folder")
    images, tables = (base / archive.filename for archive in archives_of(split))
    for path in (images, tables):
        if not paths.is_file(path):
            raise errors.UserError(
                f"config.data.archives={folder}: no {path.name} in it, which {split} needs; put it "
                "there, or leave the field empty to download it"
            )
    return images, tables


def read_archives(images: pathlib.Path, tables: pathlib.Path, split: str) -> coco.Reader:
    """Reads an official split with COCO's 80 classes from its archives without extraction.

    Raises:
      UserError: If they are not such archives.
    """
    official = SPLITS[split]
    folder = official.images.filename.removesuffix(".zip")
    archive, member = _open_zip(tables), f"annotations/{official.json}"
    if member not in archive.namelist():
        raise errors.UserError(f"{tables}: holds no {member}; is it another archive?")
    source = coco.AnnotationFile(
        file=f"{tables}/{member}",
        split=split,
        read=functools.partial(
            _member, archive, member, f"{tables}/{member}", at_most=parsing.MOST_JSON_BYTES
        ),
        images=ZipImages(images, folder=folder),
        annotated=official.annotated,
    )
    return coco.Reader(str(images), [source], categories=CATEGORIES)


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    with _named(str(path)):
        return zipfile.ZipFile(path)


def _member(archive: zipfile.ZipFile, member: str, file: str, *, at_most: int) -> bytes:
    """The bytes of a member that messages call `file`; its checksum has to be right.

    Args:
      archive: The archive that contains it.
      member: Its name there.
      file: Name of the archive for messages.
      at_most: Bytes that it may have.

    Raises:
      UserError: If it cannot be read, or unpacks to more than an image or a table of that size
        does.
    """
    with _named(file):
        entry = archive.getinfo(member)
        inflated = entry.file_size > max(_ROOM, _MOST_INFLATED * entry.compress_size)
        if entry.file_size > at_most or inflated:
            raise errors.UserError(
                f"{file}: unpacks from {entry.compress_size} to {entry.file_size} bytes, more than "
                "is read of such a file; download the archive again"
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
            f"{file}: not in a whole zip archive ({reason}); download it again"
        ) from error


def _download(folder: pathlib.Path, archive: Archive) -> pathlib.Path:
    """Downloads an archive, or finds it downloaded.

    Raises:
      UserError: If the download fails or its checksum differs; the message names an alternative.
    """
    return download.fetch(
        HOST + archive.path,
        folder / archive.filename,
        sha256=archive.sha256,
        otherwise="put the archives in a folder and give --config.data.archives=DIR",
    )
