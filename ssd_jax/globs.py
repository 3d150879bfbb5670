"""Globs such as `photos/**/*.jpg` that terminate even with cyclic links."""

import errno
import fnmatch
import glob
import os
from collections import deque
from pathlib import Path
from typing import NamedTuple

from ssd_jax import errors

_GONE = (errno.ENOENT, errno.ENOTDIR)  # removed, or replaced by a file, since it was listed


class Expansion(NamedTuple):
    """The matches of a glob.

    Attributes:
      paths: Everything that matches and is no folder, sorted, each file of a folder once.
      problems: A line for each folder that could not be listed.
    """

    paths: list[Path]
    problems: list[str]


def expand(pattern: str) -> Expansion:
    """Everything that a glob matches.

    `**` matches any number of folders. Names that start with a dot match only a part that does so
    too. If a folder contains a name that is literally a part of the pattern, brackets and
    all, that part means it alone. Each folder is listed once for a part of the pattern, however
    many links lead to it, and by its own path where that matches as well.

    Raises:
      MachineError: If the machine has no more open files or no memory.
    """
    return _Search(pattern).run()


class _Search:
    def __init__(self, pattern: str):
        parts = Path(pattern).parts
        self._root = parts[0] if Path(pattern).anchor else ""
        self._parts = _without_repeats(parts[1:] if self._root else parts)
        self._folders: deque[tuple[str, int]] = deque([(self._root, 0)])
        self._links: deque[tuple[str, int]] = deque()  # they are followed when all else is done
        self._seen: set[tuple[int, int, int]] = set()
        self._found: dict[tuple[int, int, str], str] = {}
        self._problems: dict[str, None] = {}

    def run(self) -> Expansion:
        while self._folders or self._links:
            folder, number = (self._folders or self._links).popleft()
            try:
                self._match(folder, number)
            except OSError as error:
                self._note(folder, error)
        return Expansion(sorted(map(Path, self._found.values())), list(self._problems))

    def _match(self, folder: str, number: int) -> None:
        """Matches the entries of a folder with one part of the pattern."""
        at = os.stat(folder or os.curdir)
        if (at.st_dev, at.st_ino, number) in self._seen or number == len(self._parts):
            return
        self._seen.add((at.st_dev, at.st_ino, number))
        part, last = self._parts[number], number == len(self._parts) - 1
        if not glob.has_magic(part):
            path = os.path.join(folder, part)
            if not os.path.isdir(path) and last and os.path.lexists(path):
                self._found.setdefault((at.st_dev, at.st_ino, part), path)
            elif os.path.isdir(path):
                self._folders.append((path, number + 1))
            return
        with os.scandir(folder or os.curdir) as listed:
            entries = {entry.name: entry for entry in listed}
        if part == "**":
            self._folders.append((folder, number + 1))
        for name in _matching(entries, part):
            path = os.path.join(folder, name)
            if _is_folder(entries[name]):
                queue = self._links if entries[name].is_symlink() else self._folders
                queue.append((path, number if part == "**" else number + 1))
            elif last:
                self._found.setdefault((at.st_dev, at.st_ino, name), path)

    def _note(self, folder: str, error: OSError) -> None:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise errors.of_machine(error, folder) from None
        if error.errno not in _GONE:
            line = f"{folder or os.curdir}: its content cannot be listed: {error.strerror}"
            self._problems[line] = None


def _without_repeats(parts: tuple[str, ...]) -> list[str]:
    """`**/**` is `**`."""
    pairs = zip(parts, ("", *parts), strict=False)
    return [part for part, before in pairs if not part == before == "**"]


def _matching(names: dict[str, os.DirEntry[str]], part: str) -> list[str]:
    if part in names:
        return [part]
    matches = names if part == "**" else fnmatch.filter(names, part)
    return [name for name in matches if part.startswith(".") or not name.startswith(".")]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or leads to one; a link in a circle does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
