"""Records of prepared splits, by number."""

import bisect
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from ssd_jax.data import (
    machine,
)


class Stretch(NamedTuple):
    """Records `start` to `stop`, less that one, of a split prepared in `directory`.

    Attributes:
      most_objects: The most that any of them has.
      size: Size of the whole split's files in bytes.
    """

    directory: str
    split: str
    start: int
    stop: int
    most_objects: int
    size: int


class Records:
    """Concatenated stretches of prepared splits as one sequence of records.

    Threads may share it; unpickled, it reopens its files with an empty cache, as worker processes
    would each keep all. Item `i`, which may be shared and is not to be changed, is a dict of
    `image` (the bytes of the image's file), `name`, `height` and `width` (pixels), `boxes`
    ([N, 4] float32 xyxy in [0, 1]), `labels` ([N] int32, from 1), `difficult`, `truncated`,
    `crowd` and `degenerate` ([N] bool), `bboxes` ([N, 4] float64, (x, y, width, height) as the file
    has them) and `areas` ([N] float64), in pixels, and `image_id`, that of COCO, which is -1 in
    other datasets.

    Args:
      stretches: The records.
      memory_gib: See `datasets.load`.
    """

    def __init__(self, stretches: Iterable[Stretch], *, memory_gib: float = 0.0):
        self._stretches = tuple(stretches)
        files = {(part.directory, part.split): part.size for part in self._stretches}
        self._keep = 0 < sum(files.values()) <= memory_gib * 2**30
        self._kept: dict[int, dict[str, Any]] = {}
        self._ends = list(itertools.accumulate(part.stop - part.start for part in self._stretches))
        with machine.blaming(self._stretches[0].directory):
            self._sources = [_open(part.directory, part.split) for part in self._stretches]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        record = self._kept.get(index)
        if record is None:
            record = self._read(index)
            if self._keep:
                for value in record.values():
                    if isinstance(value, np.ndarray):
                        value.flags.writeable = False  # it is everybody's
                self._kept[index] = record
        return record

    def _read(self, index: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._ends, index)
        offset = index - (self._ends[number - 1] if number else 0)
        with machine.blaming(self._stretches[number].directory):
            return _record(self._sources[number][self._stretches[number].start + offset])

    def __reduce__(self) -> tuple[type["Records"], tuple[tuple[Stretch, ...]]]:
        return Records, (self._stretches,)

    def __repr__(self) -> str:
        return f"Records({list(self._stretches)})"


def _open(directory: str, split: str) -> Any:
    return tfds.builder_from_directory(directory).as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )


def _record(example: bytes) -> dict[str, Any]:
    """Reads a stored `tf.train.Example`.

    tfds' own way from there to arrays takes three times as long, with the GIL held: a fifth of the
    time that decoding the image takes.
    """
    # NumPy takes a list in half the time that it takes protobuf's own sequence.
    feature = tf_example_pb2.Example.FromString(example).features.feature

    def integers(name: str) -> list[int]:
        return list(feature[name].int64_list.value)

    def flags(name: str) -> np.ndarray:
        return np.array(integers(f"objects/{name}"), bool)

    def numbers(name: str) -> np.ndarray:
        return np.frombuffer(feature[f"objects/{name}"].bytes_list.value[0], np.float64)

    return {
        "image": feature["image"].bytes_list.value[0],
        "name": feature["name"].bytes_list.value[0].decode(),
        "image_id": integers("image_id")[0],
        "height": integers("height")[0],
        "width": integers("width")[0],
        "boxes": np.array(list(feature["objects/boxes"].float_list.value), np.float32).reshape(
            -1, 4
        ),
        "labels": np.array(integers("objects/labels"), np.int32) + 1,
        "difficult": flags("difficult"),
        "truncated": flags("truncated"),
        "crowd": flags("crowd"),
        "degenerate": flags("degenerate"),
        "bboxes": numbers("bboxes").reshape(-1, 4),
        "areas": numbers("areas"),
    }
