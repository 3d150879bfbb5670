"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write(path: str | Path, text: str) -> None:
    """Writes a text file as UTF-8, which until the last moment is what it was before.

    One that has this content already is left alone.

    Args:
      path: Of the file; its folder has to be there.
      text: Its content; line ends stay as they are.

    Raises:
      OSError: If it can't be written; it then is what it was before.
    """
    path, data = Path(path), text.encode()
    if path.is_file() and path.read_bytes() == data:
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
