"""The one entrance to files of weights: a path in, arrays by their name in the file out.

The format is detected from the content, not the ending. No code in a file is executed, and what it
claims to hold is compared with its size before memory is asked for.
"""

import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ssd_jax import errors, files
from ssd_jax.weights import caffe, hdf5, npz, pytorch, safetensors, zips

Arrays = dict[str, np.ndarray]

_AGAIN = "give another file or, if this one is a download, delete it and download it again"
_LARGEST = 2**33  # bytes of a file; an SSD512 with its optimizer has 0.5e9
_HEAD = 16  # bytes that distinguish the formats
# Errors of the standard library and NumPy for broken files.
_BROKEN = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError, OSError,
    MemoryError, RecursionError, RuntimeError, SyntaxError, struct.error, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read(path: str | Path) -> Arrays:
    """Reads a file of weights: PyTorch, safetensors, HDF5 (Keras), Caffe or NumPy's .npz.

    Args:
      path: The file; its ending does not matter.

    Returns:
      Its arrays by name, in the file's own layout and types. Names within containers are joined by
      "." (PyTorch) or "/" (HDF5, and Caffe's layer and number of the blob: `conv1_1/0`).

    Raises:
      UserError: If the file is missing, is none of these, is damaged, claims more than it can hold,
        or asks for something to be run.
    """
    path = Path(path)
    try:
        file = files.open_regular(path)
    except OSError as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
        raise errors.UserError(f"{path}: {error.strerror}") from None
    with file:
        if (size := os.fstat(file.fileno()).st_size) > _LARGEST:
            raise errors.UserError(f"{path} has {size:,} bytes; weights have {_LARGEST:,} at most")
        name, arrays = _read(path, file)
    if not arrays:
        raise errors.UserError(f"{path} looks like {name} and holds no array; give another file")
    return arrays


def _read(path: Path, file: BinaryIO) -> tuple[str, Arrays]:
    """Returns the name of the format and the arrays of a file."""
    name = "a file of weights"
    try:
        name, read_file = _format(path, file)
        file.seek(0)
        with warnings.catch_warnings(action="ignore"):  # parsers' thoughts on damaged text
            return name, read_file(file)
    except errors.UserError:
        raise
    except _BROKEN as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
        reason = f"{error!s:.300}" or type(error).__name__
        raise errors.UserError(
            f"{path} looks like {name} and cannot be read: {reason}; {_AGAIN}"
        ) from None


def _format(path: Path, file: BinaryIO) -> tuple[str, Callable[[BinaryIO], Arrays]]:
    """Detects the format of a file from its first bytes: its name and the function to read it.

    Raises:
      UserError: If it is nothing that is known.
    """
    head = file.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        return _zip_format(path, file)
    if head.startswith(hdf5.MAGIC):
        return "an HDF5 file", hdf5.read
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a PyTorch file of the older form", pytorch.read_legacy
    if head[8:9] == b"{":
        return "a safetensors file", safetensors.parse
    if head.startswith(caffe.BEGINNINGS):
        return "a .caffemodel", caffe.read
    raise errors.UserError(
        f"{path} is no file of weights that is known here (PyTorch, safetensors, HDF5, Caffe, "
        f".npz): it starts with {head!r}; {_AGAIN}"
    )


def _zip_format(path: Path, file: BinaryIO) -> tuple[str, Callable[[BinaryIO], Arrays]]:
    try:
        with zips.opened(file) as archive:
            entries = archive.namelist()
    except _BROKEN as error:
        if errors.is_of_machine(error):
            raise
        raise errors.UserError(
            f"{path} is a broken zip archive ({error!s:.300}), perhaps a download that stopped; "
            f"{_AGAIN}"
        ) from None
    if any(name.endswith(pytorch.PICKLE) for name in entries):
        return "a PyTorch file", pytorch.read_zip
    return "an .npz", npz.read
