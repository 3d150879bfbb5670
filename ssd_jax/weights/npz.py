"""NumPy's .npz: a zip archive of .npy files."""

import math
import zipfile
from pathlib import Path

import numpy as np

_LARGEST = 2**30  # bytes that compressed arrays may unpack to; a whole VGG-16 has 0.55e9
_SUFFIX = ".npy"


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz; pickled objects are refused.

    Raises:
      ValueError: If an entry is no array, or claims more than the file holds.
      zipfile.BadZipFile: If the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_size(sum(entry.file_size for entry in entries), path.stat().st_size)
        return {entry.filename.removesuffix(_SUFFIX): _array(archive, entry) for entry in entries}


def _check_size(claimed: int, actual: int) -> None:
    if claimed > max(_LARGEST, actual):
        raise ValueError(f"it claims {claimed:,} bytes, of which a file this size holds none")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One .npy of the archive, whose shape is compared with its size first."""
    if not entry.filename.endswith(_SUFFIX):
        raise ValueError(f"{entry.filename} is no array")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{entry.filename} has version {version} of .npy")
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or size > entry.file_size:
            raise ValueError(f"{entry.filename} claims shape {shape} of {dtype}, which it lacks")
        array = np.frombuffer(file.read(size), dtype)
        file.read()  # to the end, where the checksum is compared
    return array.reshape(shape, order="F" if fortran else "C")
