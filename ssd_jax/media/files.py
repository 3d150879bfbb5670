"""Inputs of a command line, output paths of their copies, and the output folder."""

import contextlib
import fcntl
import functools
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ssd_jax import addresses, errors, globs

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm",
    ".wmv",
)  # fmt: skip
_KEPT = (".jpeg", ".jpg", ".png")  # image formats that are written as what they were
_MOST_STEM = 200  # bytes of a copy's name, to which numbers and endings are added

Input = Path | addresses.Address


class Inputs(NamedTuple):
    """The inputs named on a command line.

    Attributes:
      paths: Files, and videos at addresses.
      problems: A line for each folder that could not be searched for them.
    """

    paths: list[Input]
    problems: list[str]


def find(names: Sequence[str]) -> Inputs:
    """The files and addresses that a command line names, each once, in its order.

    Args:
      names: Files, folders (all images directly in it, sorted), globs (`**` for any depth) and
        addresses of videos, such as `https://host/video.mp4`.

    Raises:
      UserError: If a name matches nothing, or there is none.
    """
    if not names:
        raise errors.UserError("name at least one image, folder, 'glob*' or video")
    named = [_named(name) for name in names]
    paths = dict.fromkeys(path for one in named for path in one.paths)
    problems = dict.fromkeys(line for one in named for line in one.problems)
    return Inputs(_numbered(paths), list(problems))


def is_video(path: Input) -> bool:
    """Whether an input is a video: an address, or a file with the ending of a video."""
    return isinstance(path, addresses.Address) or path.suffix.lower() in VIDEOS


def places(paths: Sequence[Input], output: Path) -> dict[Input, Path]:
    """Returns the path of the annotated copy of each input.

    A copy has the name of its file, except that two copies never share a name, none replaces one of
    `paths`, videos become MP4, images that are not JPEG become PNG, and very long names are
    shortened.
    """
    free = FreePlaces(paths)
    chosen = {}
    for path in paths:
        name = Path(path.name)
        ending = ".mp4" if is_video(path) else name.suffix
        if ending.lower() not in (*_KEPT, ".mp4"):
            ending = ".png"
        chosen[path] = free.take(output / f"{shortened(name.stem, _MOST_STEM)}{ending}")
    return chosen


def camera_place(targets: Mapping[Input, Path], output: Path) -> Path:
    """Returns a path for the annotated video of a camera that is not among `targets`."""
    return FreePlaces((*targets, *targets.values())).take(output / "camera.mp4")


@contextlib.contextmanager
def output_folder(given: str | None, *, default: Path, overwrite: bool) -> Iterator[Path]:
    """The folder of a command's results, for this command alone until it ends.

    Args:
      given: Its path; None: a new folder, `default` or the first of `DEFAULT-2`, `DEFAULT-3`, ...
        that does not exist.
      default: The folder if none is given; with `overwrite` it is used even if it exists.
      overwrite: Whether there may be files in it already.

    Yields:
      The folder, made with those above it. If nothing is in it in the end, it is removed, unless it
      was there before.

    Raises:
      UserError: If it cannot be made, holds files, or another command has it.
    """
    with contextlib.ExitStack() as stack:
        if given is None and not overwrite:
            folder, new = new_folder(default), True
        else:
            folder = Path(given or default)
            new = not folder.exists()
            make_folder(folder, overwrite=overwrite)
        stack.enter_context(_alone_in(folder))
        if new:  # not before: it may be another command's
            stack.callback(remove_empty, folder)
        if given is not None:
            make_folder(folder, overwrite=overwrite)  # by now there may be another's files
        yield folder


def make_folder(path: Path, *, overwrite: bool = False) -> None:
    """Creates a folder and its parents if missing.

    Args:
      path: Path of the folder.
      overwrite: Whether there may be files in it already.

    Raises:
      UserError: If that is not possible, or there are files.
    """
    try:
        if path.is_dir() and not overwrite and any(path.iterdir()):
            raise errors.UserError(
                f"--output {path}: there are files in it; give another folder, or --overwrite"
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(path, error) from None


def new_folder(path: Path) -> Path:
    """Creates the folder, or the first of `PATH-2`, `PATH-3`, ... that does not exist.

    Creating it claims it, so two commands never share one.

    Raises:
      UserError: If it cannot be made.
    """
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    for place in itertools.chain([path], names):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir()
        except FileExistsError as error:
            if not os.path.lexists(place):  # one of those above it is a file
                raise _no_folder(place, error) from None
        except OSError as error:
            raise _no_folder(place, error) from None
        else:
            return place
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Locks a folder against other commands, if the file system has locks."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_folder(folder, error) from None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise errors.UserError(
            f"--output {folder}: another command is writing there; give another folder"
        ) from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(opened)


def remove_empty(folder: Path) -> None:
    """Removes a folder if it is empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _no_folder(path: Path, error: OSError) -> errors.UserError:
    return errors.UserError(f"--output {path}: no folder there: {error.strerror}")


def _named(name: str) -> Inputs:
    if not name:
        raise errors.UserError("one of the names is empty; name an image, folder or video")
    if address := addresses.parse(name):
        return Inputs([_video_at(address)], [])
    path = Path(name)
    try:
        if path.is_dir():
            return Inputs(list(_images_of(path)), [])
        if path.exists():
            return Inputs([path], [])
        found = globs.expand(name)
    except OSError as error:
        raise errors.UserError(f"{name}: {error.strerror}") from None
    kept = [p for p in found.paths if p.suffix.lower() in (*IMAGES, *VIDEOS)]
    if kept:
        return Inputs(list(kept), found.problems)
    if found.problems:
        raise errors.UserError(found.problems[0])
    if found.paths:
        raise errors.UserError(f"{name}: none of the matches is an image or a video")
    raise errors.UserError(f"{name}: file or folder not found, and no match")


def _video_at(address: addresses.Address) -> addresses.Address:
    if address.ending in IMAGES:
        raise errors.UserError(
            f"{address}: images are read from files only; download it, and name the file"
        )
    return address


def _images_of(folder: Path) -> list[Path]:
    """Images directly in a folder, sorted, without hidden files; also those that are no files."""
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGES and not path.name.startswith(".") and not _is_dir(path)
    ]
    if not images:
        raise errors.UserError(
            f"{folder}: this folder holds no images ({' '.join(IMAGES)}); name videos singly"
        )
    return sorted(images)


def _is_dir(path: Path) -> bool:
    return os.path.isdir(path)  # Path.is_dir raises where a link may not be followed


def _numbered(paths: Iterable[Input]) -> list[Input]:
    """Gives addresses that look alike without their secrets a number."""
    taken: dict[str, int] = {}
    distinct: list[Input] = []
    for path in paths:
        if isinstance(path, addresses.Address):
            taken[path.shown] = number = taken.get(path.shown, 0) + 1
            if number > 1:
                path = addresses.Address(path.url, f"{path.shown} ({number})")
        distinct.append(path)
    return distinct


class FreePlaces:
    """Assigns paths that differ from each other and from `taken`."""

    def __init__(self, taken: Iterable[object]):
        self._real = functools.cache(lambda folder: folded(os.path.realpath(folder)))
        files_taken = [path for path in taken if isinstance(path, Path)]
        led_to = [Path(os.path.realpath(path)) for path in files_taken if os.path.islink(path)]
        self._taken = {self._identity(path) for path in (*files_taken, *led_to)}
        self._next: dict[str, int] = {}

    def take(self, place: Path) -> Path:
        """The place, or the first of `STEM-2`, `STEM-3`, ..., that is free."""
        first = identity = self._identity(place)
        chosen, number = place, self._next.get(first, 2)  # those before are taken
        while identity in self._taken:
            chosen = place.with_name(f"{place.stem}-{number}{place.suffix}")
            identity, number = self._identity(chosen), number + 1
        self._next[first] = number
        self._taken.add(identity)
        return chosen

    def _identity(self, path: Path) -> str:
        """Returns a key that is equal for paths that some file system treats as one.

        Links are not followed: writing replaces them.
        """
        folder, name = os.path.split(path)
        return os.path.join(self._real(folder), folded(name))


def folded(name: str) -> str:
    """Returns a key that is equal for names that some file system treats as one."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def shortened(name: str, most: int) -> str:
    """Shortens a name to at most `most` bytes."""
    data = os.fsencode(name)
    return name if len(data) <= most else data[:most].decode(errors="ignore")
