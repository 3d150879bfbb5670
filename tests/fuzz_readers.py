"""Reads 2,000 damaged files of weights in 2 GiB of memory, loads 2,000 networks that lack arrays or
have others, reads 2,000 damaged documents and resumes 300 damaged logs: python fuzz_readers.py DIR.

The documents are a run's config, its metrics and the YAML of a dataset. Prints how many files were
read all the same, and how many refused; then how many networks were loaded, and how many refused;
then the same of the documents; then how many rows of the logs were kept, and how many lost.
Whatever is no UserError of one line ends it.
"""

import collections
import json
import pathlib
import resource
import sys
import zipfile
from unittest import mock

import numpy as np
import weight_files
from absl import logging

from ssd_jax import config, config_files, errors
from ssd_jax.data import yolo
from ssd_jax.evaluation import report
from ssd_jax.training import guard, logs
from ssd_jax.weights import layouts, loading, reader

FILES = NETWORKS = DOCUMENTS = 2_000
LOGS, ROWS = 300, 10
MEMORY = 2 * 2**30  # bytes of address space


def arrays(rng):
    return {
        # Longer than what zipfile reads, and checks, at once.
        "features.0.weight": rng.normal(size=(16, 16, 3, 3)).astype(np.float32),
        "features.0.bias": rng.normal(size=16).astype(np.float16),
        "step": np.array(7),
    }


def caffe(path, content):
    weight_files.caffe(path, {name: [array] * 2 for name, array in content.items()})


def npz(compression):
    def write(path, content):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, array in content.items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.save(entry, array)

    return write


NPZ = {
    "npz": npz(zipfile.ZIP_STORED),
    "compressed npz": npz(zipfile.ZIP_DEFLATED),  # as np.savez_compressed
}
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
    **NPZ,
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


def network(layout):
    """All that a layout names, of 4 channels for 3."""
    kernel = (4, 3, 3, 3) if layout.channels_first else (3, 3, 3, 4)
    return {
        name: np.ones(kernel if ours.endswith("/kernel") else 4, np.float32)
        for name, ours in layout.entries.items()
    }


def alter(rng, content):
    """One or a few arrays go, or have another shape, type or name; most often of the first ones."""
    content = dict(content)
    for _ in range(rng.integers(1, 4)):
        names = list(content)[: 4 if rng.random() < 0.5 else None]
        name, other = rng.choice(names, 2)
        array = content.pop(name)
        match rng.integers(4):
            case 0:
                continue
            case 1:
                shape = rng.integers(0, 5, rng.integers(0, 6))
                content[name] = np.ones(shape, np.float32)
            case 2:
                kind = rng.choice(["U5", "M8[s]", "c8", "f4,i4", "V2", "?", "u1", "f8"])
                content[name] = np.zeros(array.shape, kind)
            case 3:
                prefix = rng.choice(["model.", "module.", "model_weights/", "optimizer/", "x."])
                content[f"{prefix}{rng.choice([name, other])}"] = array
    return content


def load_altered(rng, count):
    """Loads networks of all layouts, altered; counts the "loaded" and the "refused"."""
    outcomes = collections.Counter()
    for index in range(count):
        content = alter(rng, network(layouts.LAYOUTS[index % len(layouts.LAYOUTS)]))
        with mock.patch.object(reader, "read", return_value=content):
            try:
                weights = loading.with_mean(loading.read("altered"), (1, 2, 3))
                loading.has_heads(weights)
                outcomes["loaded"] += 1
            except errors.UserError as error:
                if not str(error).startswith("altered"):  # the file is to be named
                    raise
                outcomes["refused"] += 1
    return outcomes


def write_documents(folder):
    """A file of each kind; gives by its name what reads it."""
    folder.mkdir()
    config_files.save(folder / "config.json", config.Config(), ("cat", "dog"))
    rows = [{"step": step, "loss": 1 / step, "mean_ap": None} for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(map(logs.as_json, rows)), encoding="utf-8")
    (folder / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: &v [images/val]\ntest: *v\nnc: 2\nnames: {0: a, 1: b}\n"
    )
    for name in ("images/train", "images/val"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.jpg").touch()
    return {
        "config.json": config_files.load,
        "metrics.jsonl": logs.read,
        "data.yaml": lambda path: yolo.Reader(path.parent),
    }


def read_damaged(rng, folder, count):
    """Reads documents, damaged; counts the "read" and the "refused"."""
    outcomes = collections.Counter()
    readers = write_documents(folder)
    logging.set_verbosity(logging.ERROR)  # lines that are left out are warnings
    whole = {name: (folder / name).read_bytes() for name in readers}
    for index in range(count):
        name = list(readers)[index % len(readers)]
        (folder / name).write_bytes(mutate(rng, whole[name]))
        try:
            readers[name](folder / name)
            outcomes["read"] += 1
        except errors.UserError as error:
            if len(str(error)) > 2_000:
                raise
            outcomes["refused"] += 1
        (folder / name).write_bytes(whole[name])
    return outcomes


def resume_damaged(rng, folder, count):
    """Resumes logs whose records are damaged, and draws them; counts rows "kept" and "lost"."""
    columns = {name: 1.5 for name in logs._COLUMNS if name != "step"}
    lines = [json.dumps({"step": step, **columns}) + "\n" for step in range(1, ROWS + 1)]
    whole, outcomes = "".join(lines).encode(), collections.Counter()
    for _ in range(count):
        for name in ("metrics.jsonl", "skipped.jsonl"):
            (folder / name).write_bytes(mutate(rng, whole))
        with logs.MetricsLog(folder, step=ROWS) as log:
            log.write(step=ROWS + 1, loss=0.5)
        guard.Guard(folder, step=ROWS, most=0, names_of=lambda step: ["a"]).check(
            ROWS + 1, {"skipped": True, "loss": 0.5}
        )
        rows = logs.read(folder / "metrics.jsonl")
        assert rows == log.rows, "what was resumed is not what is there"
        assert logs.records(folder / "skipped.jsonl")[-1]["images"] == ["a"]
        list(report._training(rows))
        outcomes["kept"] += len(rows) - 1
        outcomes["lost"] += max(0, ROWS + 1 - len(rows))
        for path in folder.glob("events.*"):
            path.unlink()
    return outcomes


def fail(text, *args):
    """Stands for what logs an error of the code."""
    raise AssertionError(text % args)


def main(folder):
    rng = np.random.default_rng(0)
    whole = {}
    for name, write in WRITERS.items():
        write(folder / "whole", arrays(rng))
        reader.read(folder / "whole")
        whole[name] = (folder / "whole").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    outcomes = collections.Counter()
    path = folder / "damaged"
    for index in range(FILES):
        name = list(whole)[index % len(whole)]
        path.write_bytes(mutate(rng, whole[name]))
        try:
            reader.read(path)
            outcomes["read"] += 1
        except errors.UserError as error:
            if isinstance(error, errors.MachineError) or "allocate" in str(error):
                raise
            outcomes["refused"] += 1
    print(outcomes["read"], outcomes["refused"])
    outcomes = load_altered(rng, NETWORKS)
    print(outcomes["loaded"], outcomes["refused"])
    outcomes = read_damaged(rng, folder / "documents", DOCUMENTS)
    print(outcomes["read"], outcomes["refused"])
    resource.setrlimit(resource.RLIMIT_AS, before)  # too little for the threads that JAX starts
    with (
        mock.patch.object(logging, "warning"),
        mock.patch.object(logging, "error", fail),
    ):
        outcomes = resume_damaged(rng, folder, LOGS)
    print(outcomes["kept"], outcomes["lost"])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
