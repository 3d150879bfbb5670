"""Files and folders of datasets. An unreadable path is never treated as a missing one.

The system's own shortcuts (`os.path.isfile`, `Path.glob`, `os.walk`) pass over what they may not
read in silence; these stop with a MachineError that names it.
"""

import fnmatch
import os
import pathlib
import stat
from collections.abc import Iterator

from ssd_jax import errors, files

MOST_IMAGE_BYTES = 1 << 30  # 179 megapixels, uncompressed, in 4 bytes each are 0.7 GiB
MOST_TEXT_BYTES = 8 << 20  # of one image's annotation: some 20,000 objects in VOC's XML
MOST_LIST_BYTES = 256 << 20  # of a list of images: some millions of lines

_PASSED_OVER = "lost+found"  # the system's own, at the top of a volume; only root may read it


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a regular file or a link to one.

    Raises:
      MachineError: If the system cannot tell.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder or a link to one.

    Raises:
      MachineError: If the system cannot tell.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a path exists, following links.

    Raises:
      MachineError: If the system cannot tell.
    """
    return _mode(path) is not None


def status(path: str | os.PathLike[str]) -> os.stat_result:
    """Returns size and times of an existing path.

    Raises:
      UserError: If it no longer exists.
      MachineError: If its status cannot be read.
    """
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        raise _refusal(error, path) from error


def walk(root: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Lists all files below a folder, sorted, through linked folders too, without hidden ones.

    Each folder is entered once, whatever links lead to it.

    Raises:
      UserError: If a folder is gone.
      MachineError: If a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise _refusal(error, error.filename) from error

    seen = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(filter(_is_shown, below))
        yield from (pathlib.Path(folder, name) for name in sorted(filter(_is_shown, names)))


def matching(root: str | os.PathLike[str], pattern: str) -> list[pathlib.Path]:
    """Lists paths below a folder by a pattern such as `annotations/instances_*.json`, sorted.

    Args:
      root: The folder.
      pattern: Names joined by /, in which * matches anything but a leading dot.

    Raises:
      MachineError: If a folder on the way cannot be read.
    """
    first, _, rest = pattern.partition("/")
    places = [pathlib.Path(root, name) for name in _names_like(root, first)]
    if not rest:
        return places
    return [found for place in places if is_folder(place) for found in matching(place, rest)]


def read(path: str | os.PathLike[str], *, at_most: int) -> bytes:
    """The bytes of a file.

    Args:
      path: Path of the file.
      at_most: Bytes; a larger one is refused before it is read.

    Raises:
      UserError: If it does not exist, is not a regular file, or is larger.
      MachineError: If the machine cannot read it now.
    """
    try:
        return files.read(path, at_most=at_most)
    except errors.UserError:
        raise
    except (OSError, ValueError, MemoryError) as error:
        raise _refusal(error, path) from error


def _names_like(folder: str | os.PathLike[str], pattern: str) -> list[str]:
    if "*" not in pattern:
        return [pattern] if _mode(os.path.join(folder, pattern), links=False) is not None else []
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise _refusal(error, folder) from error
    return sorted(name for name in filter(_is_shown, names) if fnmatch.fnmatchcase(name, pattern))


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name != _PASSED_OVER


def _mode(path: str | os.PathLike[str], *, links: bool = True) -> int | None:
    """Returns the mode of a path, or of the link itself without `links`; None if it is missing."""
    try:
        return os.stat(path, follow_symlinks=links).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from error
        return None


def _refusal(error: Exception, path: object) -> errors.UserError:
    """Converts an error of reading a path to a one-line UserError or MachineError."""
    if errors.is_of_machine(error):
        return errors.of_machine(error, path)
    reason = error.strerror if isinstance(error, OSError) else error
    return errors.UserError(f"{path}: cannot be read ({reason})")
