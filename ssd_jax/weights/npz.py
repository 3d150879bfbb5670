"""NumPy's .npz: a zip archive of .npy files."""

import io
import math
import os
import zipfile
from typing import Any, BinaryIO

import numpy as np

from ssd_jax.weights import names, zips

_SMALL = 2**26  # bytes that compressed arrays may unpack to, whatever the file's size
_SUFFIX = ".npy"
TIMES = 8
"""More bytes than a file of weights that they may have: they shrink little, but some are zeros."""


def read(file: BinaryIO, *, times: int = TIMES) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz; pickled objects are refused.

    Args:
      file: The open file.
      times: Maximum ratio of unpacked to packed bytes; small arrays are always accepted.

    Raises:
      ValueError: If an entry is no array, or claims more than the file holds.
      zipfile.BadZipFile: If the archive is damaged.
    """
    paths = names.Names()
    with zips.opened(file) as archive:
        _check_size(zips.claimed(archive), times * os.fstat(file.fileno()).st_size)
        return {
            paths.join("", entry.filename.removesuffix(_SUFFIX), ""): _array(archive, entry)
            for entry in archive.infolist()
        }


def _check_size(claimed: int, most: int) -> None:
    if claimed > max(_SMALL, most):
        raise ValueError(f"it claims {claimed:,} bytes, of which a file this size holds none")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Reads one .npy of the archive after comparing its shape with its size."""
    name = f"{entry.filename:.100}"
    if not entry.filename.endswith(_SUFFIX):
        raise ValueError(f"{name} is no array")
    data = zips.read(archive, entry.filename)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has version {version} of .npy")
    shape, fortran, dtype = _header(name, stream, version)
    size = math.prod(shape) * dtype.itemsize
    begin = stream.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or size > len(data) - begin:
        raise ValueError(f"{name} claims shape {shape!s:.100} of {dtype!s:.100}")
    array = np.frombuffer(data, dtype, math.prod(shape), begin)
    return array.reshape(shape, order="F" if fortran else "C")


def _header(name: str, stream: BinaryIO, version: tuple[int, int]) -> Any:
    """Shape, whether the first index runs fastest, and type."""
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    try:
        return header(stream)
    except MemoryError:  # Python's parser on brackets in brackets: of the file, not of the machine
        raise ValueError(f"{name} has a header that cannot be parsed") from None
