"""Atomic writing of files, and reading of regular files only."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from ssd_jax import errors

_PART = ".part"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing that replaces `path` when it is complete.

    A link at `path` is replaced whatever its target, and so is a pipe, which may have no reader.
    Two processes that write the same file do so one after the other.

    Args:
      path: Path of the file, in an existing folder. A device such as a terminal is written to
        directly.

    Raises:
      OSError: If it cannot be written; the previous file is then unchanged.
    """
    place = Path(path)
    if not _may_be_replaced(place):
        with place.open("wb") as file:
            yield file
        return
    part = place.with_name(place.name + _PART)
    with _opened_alone(part) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as UTF-8 by `replacing`, unless it already has this content.

    Args:
      path: Path of the file.
      text: Its content; line ends stay as they are, bytes of names that are no UTF-8 are escaped.

    Raises:
      OSError: See `replacing`.
    """
    place, data = Path(path), text.encode(errors="backslashreplace")
    if not place.is_symlink() and place.is_file() and place.read_bytes() == data:
        return
    with replacing(place) as file:
        file.write(data)


def appending(path: str | os.PathLike[str]) -> TextIO:
    """Opens a UTF-8 text file to read and append; a link or special file there is replaced.

    Raises:
      OSError: If it can't be opened.
    """
    _remove_unless_regular(Path(path))
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(
        os.open(path, flags, 0o666), "a+", encoding="utf-8", errors="replace", newline=""
    )


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Creates a folder of a run and its parents if missing; a link is replaced.

    Raises:
      OSError: If that is not possible.
    """
    place = Path(path)
    if place.is_symlink():
        place.unlink()
    place.mkdir(parents=True, exist_ok=True)
    return place


@contextlib.contextmanager
def alone(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Locks a folder while several files that belong together are written.

    Without locks in the file system, nothing waits.
    """
    place = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading; pipes and devices, which may be endless, are rejected.

    Raises:
      OSError: If it can't be opened.
      UserError: If it is no regular file.
    """
    _check_regular(path, os.stat(path).st_mode)
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode)  # it may be another one by now
    except BaseException:
        file.close()
        raise
    return file


def read(path: str | os.PathLike[str], *, at_most: int) -> bytes:
    """The bytes of a regular file.

    Args:
      path: Path of the file.
      at_most: Bytes; a larger file is refused before it is read.

    Raises:
      OSError: If it can't be read.
      UserError: If it is no regular file, or larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= at_most else b""  # not more: it takes that memory
        if len(data) > size:  # it grows, or its size is unknown
            data += file.read(at_most + 1 - len(data))
    if size > at_most or len(data) > at_most:
        raise errors.UserError(f"{path}: larger than {at_most} bytes, the most that is read")
    return data


def _check_regular(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise errors.UserError(f"{path}: not a regular file but a pipe or device; give a file")


def _may_be_replaced(place: Path) -> bool:
    """Returns the type of a path: missing, file, link or special file."""
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return True
    return any(kind(mode) for kind in (stat.S_ISREG, stat.S_ISLNK, stat.S_ISFIFO, stat.S_ISSOCK))


@contextlib.contextmanager
def _opened_alone(part: Path) -> Iterator[BinaryIO]:
    """Opens the temporary file, empty and locked: other processes wait for it here."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        _remove_unless_regular(part)
        with os.fdopen(os.open(part, flags, 0o666), "wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, part):  # whom this one waited for has finished it, or removed it
                continue
            file.truncate(0)
            yield file
            return


def _remove_unless_regular(place: Path) -> None:
    """Removes a link or special file at the path of a file to write."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(place.lstat().st_mode):
            place.unlink()


def _is_at(file: BinaryIO, place: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    return False
