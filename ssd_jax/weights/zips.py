"""Third-party zip archives: their claimed sizes are checked before they are read."""

import contextlib
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # all that NumPy and PyTorch write
_ENCRYPTED = 1  # a flag
_LARGEST_DIRECTORY = 2**21  # bytes; some 20,000 entries
_DIRECTORY_SIZE = 5  # index in zipfile's record of the end of the archive


@contextlib.contextmanager
def opened(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Opens an archive with stored or deflated entries, few enough to list.

    Raises:
      ValueError: If it is another one.
      zipfile.BadZipFile: If it is none, or damaged.
    """
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type not in _COMPRESSIONS:  # others may allocate unbounded memory
                raise ValueError(
                    f"{entry.filename:.100} is compressed in a way that neither NumPy nor PyTorch "
                    "writes; save it by one of them"
                )
            if entry.flag_bits & _ENCRYPTED:
                raise ValueError(f"{entry.filename:.100} is encrypted; save it without a password")
        yield archive


def claimed(archive: zipfile.ZipFile) -> int:
    """Total claimed size of all entries in bytes."""
    return sum(entry.file_size for entry in archive.infolist())


def read(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of an entry: no more than it claims to have.

    `ZipFile.read` unpacks up to 2 GiB before it compares.

    Raises:
      ValueError: If it has fewer.
      zipfile.BadZipFile: If it is damaged.
    """
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        data = file.read(entry.file_size)
    if len(data) < entry.file_size:
        raise ValueError(f"{name:.100} claims {entry.file_size:,} bytes and has {len(data):,}")
    return data


def _check_directory(file: BinaryIO) -> None:
    """Counts the entries before zipfile makes an object of some hundred bytes of each."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[_DIRECTORY_SIZE] > _LARGEST_DIRECTORY:
        raise ValueError("it claims to hold more files than any network has arrays")
    file.seek(0)
