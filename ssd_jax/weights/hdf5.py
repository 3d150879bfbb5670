"""HDF5, in which Keras keeps its weights."""

from pathlib import Path

import h5py
import numpy as np

MAGIC = b"\x89HDF\r\n\x1a\n"
_LARGEST = 2**30  # bytes that compressed arrays may unpack to; a whole VGG-16 has 0.55e9


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads all numeric datasets of an HDF5 file by their path, `block1_conv1/kernel:0`.

    Links to other files are not followed.

    Raises:
      ValueError: If the datasets claim more than the file holds.
      OSError, RuntimeError, KeyError: If the file is damaged.
    """
    datasets: dict[str, h5py.Dataset] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and item.shape is not None:
            datasets[name] = item

    with h5py.File(path, "r") as file:
        file.visititems(note)
        _check_size(datasets, path.stat().st_size)
        return {name: dataset[()] for name, dataset in datasets.items()}


def _check_size(datasets: dict[str, h5py.Dataset], file_size: int) -> None:
    claimed = 0
    for name, dataset in datasets.items():
        if dataset.external or dataset.is_virtual:
            raise ValueError(f"{name} lies in another file")
        stored = dataset.id.get_storage_size()
        if dataset.compression is None and dataset.nbytes > stored:
            raise ValueError(f"{name} claims {dataset.nbytes:,} bytes and has {stored:,}")
        claimed += dataset.nbytes
    if claimed > max(_LARGEST, file_size):
        raise ValueError(f"its arrays claim {claimed:,} bytes, the file has {file_size:,}")
