"""Reads a whole dataset, each image once, and separates what cannot be used.

Images are decoded in threads, so that a broken one is found at once. Only the annotations are held
in memory.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rich.progress
from absl import logging

from ssd_jax import console, errors
from ssd_jax.data import readers

LIST_ALL = "python -m ssd_jax.data.check PATH lists all"
_VAL_EVERY = 5  # of a dataset without splits every fifth image validates
_IN_FLIGHT = 1024  # images that are given to the threads at a time
_MOST_LISTED = 10
_LONGEST_PART = 1000  # characters of a remark's beginning, and of its end


class Examined(NamedTuple):
    """A dataset, read whole.

    Attributes:
      splits: By split, its images that can be used.
      skipped: Keys of unusable images with the reason, by split.
      remarks: A line for each thing wrong that cost no image: boxes clipped, ...
    """

    splits: dict[str, list[readers.Example]]
    skipped: dict[str, dict[str, str]]
    remarks: tuple[str, ...]


def examine(reader: readers.Reader) -> Examined:
    """Decodes every image of a dataset and reads every annotation, each once.

    Without predefined splits, every fifth image in the order of the keys is `val`, the others
    are `train`, and `all` is both; what cannot be used counts as `train`'s, so that `val` is whole.

    Raises:
      MachineError: If the machine could not read an image, which may be good.
    """
    examples: dict[str, readers.Example] = {}
    failures: dict[str, str] = {}
    keys = list(dict.fromkeys(key for split in reader.splits.values() for key in split))
    keys = keys or list(reader.keys)
    with _threads_for(reader.name):
        for key, result in zip(keys, _progress(_results(reader, keys), len(keys)), strict=True):
            if isinstance(result, readers.Example):
                examples[key] = result
            else:
                failures[key] = result
    splits = reader.splits or _split_by_order(keys, failures)
    notes = [note for item in examples.values() for note in (*item.notes, *item.annotation.notes)]
    return Examined(
        splits={
            name: [examples[key] for key in split if key in examples]
            for name, split in splits.items()
        },
        skipped={
            name: {console.printable(key): failures[key] for key in split if key in failures}
            for name, split in splits.items()
        },
        remarks=tuple(map(_line, [*reader.remarks, *notes])),
    )


def without_objects(
    splits: Mapping[str, Sequence[readers.Example]], unannotated: Iterable[str]
) -> set[str]:
    """Annotated splits in which no image has an object to train on."""
    return {
        name
        for name, split in splits.items()
        if name not in unannotated and not any(map(_has_object, split))
    }


def class_names(splits: Mapping[str, Sequence[readers.Example]]) -> set[str]:
    """Returns the classes of all objects; empty if no object is within its image."""
    known = [item.annotation for item in itertools.chain.from_iterable(splits.values())]
    if all(annotation.degenerate.all() for annotation in known):
        return set()
    return {name for annotation in known for name in annotation.names}


def summary(failures: Mapping[str, str]) -> str:
    """One line for all failures: the first in full, more by their keys, of many the first few."""
    (_, first), *others = failures.items()
    if not others:
        return first
    listed = ", ".join(key for key, _ in others[:_MOST_LISTED])
    more = f", ...: {LIST_ALL}" if len(others) > _MOST_LISTED else ""
    return f"{first}; {len(others)} more cannot be used: {listed}{more}"


def _results(reader: readers.Reader, keys: Sequence[str]) -> Iterator[readers.Example | str]:
    """Yields an example for each key, or the reason why it cannot be used."""
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        for start in range(0, len(keys), _IN_FLIGHT):
            part = keys[start : start + _IN_FLIGHT]
            yield from pool.map(functools.partial(_example_or_reason, reader), part)
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _threads_for(name: str) -> Iterator[None]:
    """Converts the RuntimeError of missing threads to a one-line error."""
    try:
        yield
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise errors.MachineError(
            f"{name}: {error}: allow more processes (ulimit -u) or free memory, and run the same "
            "command again"
        ) from error


def _example_or_reason(reader: readers.Reader, key: str) -> readers.Example | str:
    """Reads one image.

    Raises:
      MachineError: If the machine could not; the image may be good.
    """
    try:
        example = reader.example(key)
        example.name.encode()
        return example
    except UnicodeEncodeError:
        return _line(f"{reader.name}: the file name {key!r} is not UTF-8; rename the file")
    except Exception as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, f"{reader.name}: {key}") from error
        if not isinstance(error, errors.UserError):
            raise
        return _line(str(error))


def _line(text: str) -> str:
    """Returns a remark as printable text, shortened in the middle if it is too long."""
    if len(text) > 2 * _LONGEST_PART:
        text = f"{text[:_LONGEST_PART]}...{text[-_LONGEST_PART:]}"
    return console.printable(text)


def _has_object(example: readers.Example) -> bool:
    """Whether an image has an object to train on."""
    annotation = example.annotation
    return bool(np.any(~annotation.degenerate & ~annotation.crowd))


def _split_by_order(keys: Sequence[str], bad: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Makes `all`, `train` and `val`: every fifth usable image is `val`."""
    val = tuple(key for key in keys[_VAL_EVERY - 1 :: _VAL_EVERY] if key not in bad)
    held_out = set(val)
    train = tuple(key for key in keys if key not in held_out)
    splits = {"train": train, "val": val, "all": tuple(keys)}
    return {name: split for name, split in splits.items() if split}


def _progress(
    results: Iterable[readers.Example | str], total: int
) -> Iterable[readers.Example | str]:
    screen = console.Console(stderr=True)
    return rich.progress.track(
        results,
        description="Checking images",
        total=total,
        console=screen,
        disable=not screen.is_terminal,
    )


def log_remarks(remarks: Sequence[str]) -> None:
    """Logs how many remarks a dataset got, and the first of them."""
    if not remarks:
        return
    logging.warning(
        "%d boxes were clipped, reordered or dropped from training, or files passed over or "
        "missing; %s; the first:",
        len(remarks),
        LIST_ALL,
    )
    for line in remarks[:_MOST_LISTED]:
        logging.warning("  %s", line)
