"""Reads 2,000 damaged files of weights in 2 GiB of memory: python fuzz_readers.py DIR.

Prints how many were read all the same, and how many refused. Whatever is no UserError ends it.
"""

import collections
import io
import pathlib
import resource
import sys

import numpy as np
import weight_files

from ssd_jax import errors
from ssd_jax.weights import reader

FILES = 2_000
MEMORY = 2 * 2**30  # bytes of address space


def arrays(rng):
    return {
        "features.0.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "features.0.bias": rng.normal(size=4).astype(np.float16),
        "step": np.array(7),
    }


def caffe(path, content):
    weight_files.caffe(path, {name: [array] * 2 for name, array in content.items()})


def npz(save, content):
    file = io.BytesIO()
    save(file, **content)
    return file.getvalue()


WRITERS = {
    "zip": lambda path, content: weight_files.torch_zip(
        path, {"model": content, "epoch": [1, 2.5]}
    ),
    "legacy": weight_files.torch_legacy,
    "safetensors": weight_files.safetensors,
    "hdf5": weight_files.hdf5,
    "nested hdf5": lambda path, content: weight_files.hdf5(
        path, {f"model_weights/{name}/{name}/kernel:0": array for name, array in content.items()}
    ),
    "caffe": caffe,
    "old caffe": lambda path, content: weight_files.caffe(
        path, {name: [array] for name, array in content.items()}, old=True
    ),
    "npz": lambda path, content: path.write_bytes(npz(np.savez, content)),
    "compressed npz": lambda path, content: path.write_bytes(npz(np.savez_compressed, content)),
}


def mutate(rng, data):
    """One or a few changes: bytes, numbers as large as can be, cuts, repeats."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = (
            int(rng.integers(len(data)))
            if rng.random() < 0.5
            else int(rng.integers(min(400, len(data))))
        )
        match rng.integers(6):
            case 0:
                data[place] = rng.integers(256)
            case 1:
                data[place] ^= 1 << int(rng.integers(8))
            case 2:
                data[place : place + 8] = bytes(rng.choice([0, 127, 255], 8).astype(np.uint8))
            case 3:
                del data[place + 1 :]
            case 4:
                del data[place : place + int(rng.integers(1, 9))]
            case 5:
                data[place:place] = data[place : place + int(rng.integers(1, 60))]
        data = data or bytearray(b"x")
    return bytes(data)


def main(folder):
    rng = np.random.default_rng(0)
    whole = {}
    for name, write in WRITERS.items():
        write(folder / "whole", arrays(rng))
        reader.read(folder / "whole")
        whole[name] = (folder / "whole").read_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outcomes = collections.Counter()
    path = folder / "damaged"
    for index in range(FILES):
        name = list(whole)[index % len(whole)]
        path.write_bytes(mutate(rng, whole[name]))
        try:
            reader.read(path)
            outcomes["read"] += 1
        except errors.UserError as error:
            if "MemoryError" in str(error) or "allocate" in str(error):
                raise
            outcomes["refused"] += 1
    print(outcomes["read"], outcomes["refused"])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
