"""The one entrance to files of weights: a path in, arrays by their name in the file out.

What a file is, its first bytes say, not its ending. Nothing in a file is ever run, and what it
claims to hold is compared with its size before memory is asked for.
"""

import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssd_jax import errors
from ssd_jax.weights import caffe, hdf5, npz, pytorch, safetensors

Arrays = dict[str, np.ndarray]

_AGAIN = "give another file, or delete this one, if it is a download, and fetch it anew"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # all that NumPy and PyTorch write
_HEAD = 16  # bytes that tell the formats apart
# What broken files make the standard library and NumPy raise.
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
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise errors.UserError(f"{path}: {error.strerror}") from None
    name, read_file = _format(path, head)
    try:
        with warnings.catch_warnings(action="ignore"):  # parsers' thoughts on damaged text
            arrays = read_file(path)
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        raise errors.UserError(
            f"{path} looks like {name} and cannot be read: {reason}; {_AGAIN}"
        ) from None
    if not arrays:
        raise errors.UserError(f"{path} looks like {name} and holds no array; give another file")
    return arrays


def _format(path: Path, head: bytes) -> tuple[str, Callable[[Path], Arrays]]:
    """What a file is, in words and as the function that reads it, from its first bytes.

    Raises:
      UserError: If it is nothing that is known.
    """
    if head.startswith(b"PK\x03\x04"):
        return _zip_format(path)
    if head.startswith(hdf5.MAGIC):
        return "an HDF5 file", hdf5.read
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a PyTorch file of the older form", pytorch.read_legacy
    if head[8:9] == b"{":
        return "a safetensors file", safetensors.read
    if head.startswith(caffe.BEGINNINGS):
        return "a .caffemodel", caffe.read
    raise errors.UserError(
        f"{path} is no file of weights that is known here (PyTorch, safetensors, HDF5, Caffe, "
        f".npz): it begins with {head!r}; {_AGAIN}"
    )


def _zip_format(path: Path) -> tuple[str, Callable[[Path], Arrays]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (*_BROKEN,) as error:
        raise errors.UserError(
            f"{path} is a broken zip archive ({error}), perhaps a download that stopped; {_AGAIN}"
        ) from None
    for entry in entries:
        if entry.compress_type not in _COMPRESSIONS:  # others claim memory that is not compared
            raise errors.UserError(
                f"{path}: {entry.filename} is compressed in a way that neither NumPy nor PyTorch "
                "writes; save it by one of them"
            )
    if any(entry.filename.endswith(pytorch.PICKLE) for entry in entries):
        return "a PyTorch file", pytorch.read_zip
    return "an .npz", npz.read
