"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of the one at `path` when it is whole.

    Args:
      path: Of the file; its folder has to be there. What is no file, as a terminal, is written to.

    Raises:
      OSError: If it can't be written; what was there is then as it was before.
    """
    place = Path(path).resolve()
    if place.exists() and not place.is_file():
        with place.open("wb") as file:
            yield file
        return
    part = place.with_name(f"{place.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as UTF-8 by `replacing`; one of this content already is left alone.

    Args:
      path: Of the file.
      text: Its content; line ends stay as they are, bytes of names that are no UTF-8 are escaped.

    Raises:
      OSError: As `replacing`.
    """
    place, data = Path(path), text.encode(errors="backslashreplace")
    if place.is_file() and place.read_bytes() == data:
        return
    with replacing(place) as file:
        file.write(data)
