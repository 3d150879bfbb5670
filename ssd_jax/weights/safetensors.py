"""safetensors: the length of a JSON header, the header, the arrays' bytes.

Read here and not by the library `safetensors`, which bounds neither the names nor their number: its
0.8 accepts a name of 100,000 characters, and takes 700 MB for a file of 35 MB of empty arrays.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ssd_jax import files
from ssd_jax.weights import names

_LARGEST_HEADER = 2**23  # bytes; a network of 1,000 arrays has 0.1e6
_MOST_DIMENSIONS = 32
_METADATA = "__metadata__"
_TYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a safetensors file.

    Raises:
      ValueError: If the header is invalid, or an array exceeds the file.
    """
    with files.open_regular(path) as file:
        return parse(file)


def parse(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads the arrays of an open safetensors file; no two share bytes.

    Raises:
      ValueError: If the header is invalid, an array exceeds the file, or two overlap.
    """
    header = _header(file)
    data = file.read()
    header.pop(_METADATA, None)
    paths = names.Names()
    arrays = {paths.join("", name, ""): _array(name, item, data) for name, item in header.items()}
    if (claimed := sum(array.nbytes for array in arrays.values())) > len(data):
        raise ValueError(f"its arrays claim {claimed:,} bytes of {len(data):,}")
    return arrays


def metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a safetensors file without its arrays.

    Raises:
      ValueError: If the header is none.
    """
    with files.open_regular(path) as file:
        return _header(file).get(_METADATA, {})


def _header(file: BinaryIO) -> dict[str, Any]:
    """The JSON at the beginning; the file is then behind it."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(_LARGEST_HEADER, size - 8):
        raise ValueError(f"its header claims {length:,} bytes, the file has {size:,}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def _array(name: str, entry: dict[str, Any], data: bytes) -> np.ndarray:
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _TYPES:
        kind = names.shown(entry["dtype"])
        raise ValueError(f"{name:.100} has type {kind}, which is not known here")
    dtype = _TYPES[entry["dtype"]]
    numbers = (*shape, begin, end)
    if (
        len(numbers) > _MOST_DIMENSIONS
        or not all(isinstance(number, int) and 0 <= number < 2**60 for number in numbers)
        or not begin + math.prod(shape) * dtype.itemsize == end <= len(data)
    ):
        raise ValueError(f"{name:.100} claims other bytes than the {len(data):,} of the file")
    return np.frombuffer(data, dtype, math.prod(shape), begin).reshape(shape)
