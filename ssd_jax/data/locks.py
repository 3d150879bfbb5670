"""One process at a time: locks that end with the process that holds them, however it ends."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def alone(place: pathlib.Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock in its `with` block, on this machine and, with NFS, across machines.

    Args:
      place: Path of the lock file, which is created with its folder and kept.
      wait: For another process that holds it.

    Yields:
      Whether this process holds the lock: not where another does, unless it is waited for, nor on
      a file system without locks.

    Raises:
      OSError: If the file can't be made.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(place, flags, 0o666), "rb") as file:
        yield _take(file.fileno(), place, wait)


def _take(descriptor: int, place: pathlib.Path, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if not wait:
            return False
        logging.warning("%s: another process prepares this; waiting for it", place.parent)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    except OSError:
        return False
