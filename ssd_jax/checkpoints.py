"""Checkpoints of a run, as they are found and read.

A workdir holds `config.json` and `checkpoints/STEP/`, each with the items `params` and, if the run
keeps one, `ema` (one of them is all that detection needs), `training` (step and optimizer) and
`run` (config, classes, position in the data, a checksum of every array). A checkpoint exists
whole or not at all: Orbax renames it when all is written.
"""

import contextlib
import functools
import json
import logging as std_logging
import math
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from ssd_jax import config_files, errors, files

FOLDER = "checkpoints"
METRIC = "mean_ap"
_LARGEST_METRICS = 2**20  # bytes of the file of a checkpoint's mAP
_TEXTS = ("_CHECKPOINT_METADATA", "_METADATA", "_sharding", "metadata", "metrics")
_LARGEST_TEXT = 64 * 2**20  # bytes of each of these, which Orbax reads whole


class DamagedError(Exception):
    """A checkpoint with other content than was written."""


def restore_params(folder: str | Path, like: Any, *, ema: bool = True) -> Any:
    """Reads the parameters of one checkpoint.

    Args:
      folder: `WORKDIR/checkpoints/STEP`.
      like: Parameters, or their `jax.ShapeDtypeStruct`s, of the network that they are for.
      ema: Their moving average, where the run keeps one.

    Raises:
      UserError: If there is no such checkpoint, it is damaged, of a newer version or that of
        another network, or the machine can't read it.
    """
    folder = Path(folder).absolute()
    if not (folder / "params").is_dir():
        raise errors.UserError(f"{folder} is not a checkpoint: it has no folder 'params'")
    check_files(folder)
    quieten()
    item = "ema" if ema and (folder / "ema").is_dir() else "params"
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            facts = checkpointer.restore(folder / "run")
        config_files.check_version(folder, facts["version"])
        check_shapes(folder, like)
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(folder / item, abstract(like))
        verify({item: params}, facts)
    except errors.UserError:
        raise
    except Exception as error:
        check_machine(folder, error)
        raise errors.UserError(
            f"{folder} is damaged ({in_one_line(error)}): take another checkpoint"
        ) from error
    return params


def find(path: str | Path) -> Path:
    """The checkpoint folder that a user means.

    Args:
      path: A checkpoint (`WORKDIR/checkpoints/STEP`), or a workdir, of which the best checkpoint is
        taken, or the latest where none was evaluated.

    Raises:
      UserError: If there is none.
    """
    path = Path(path)
    if (path / "params").is_dir():
        return path.absolute()
    if not (path / FOLDER).is_dir():
        raise errors.UserError(
            f"{path} holds no checkpoint: give a workdir of train.py, or a folder "
            f"WORKDIR/{FOLDER}/STEP"
        )
    steps = folders(path / FOLDER)
    if not steps:
        raise errors.UserError(f"{path / FOLDER} is empty: train.py has not saved there yet")
    # Of those that are equally good, and of those without any mAP, the last.
    return max(reversed(steps), key=lambda folder: quality(metrics(folder))).absolute()


def checksums(items: Any) -> dict[str, int]:
    """CRC-32 of the bytes of each array of a tree, by its path."""
    return {
        name: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        for name, leaf in named(jax.device_get(items)).items()
    }


def verify(items: Any, facts: Mapping[str, Any]) -> None:
    """Compares what was read with the checksums that were written.

    Raises:
      DamagedError: If an array differs.
    """
    for name, value in checksums(items).items():
        if facts["checksums"].get(name) != value:
            raise DamagedError(f"{name} has another checksum than when it was written")


class _RaisedToo(std_logging.Filter):
    """Drops log records of Orbax's threads about machine trouble, which its manager raises."""

    def filter(self, record: std_logging.LogRecord) -> bool:
        """Whether a record is of something else."""
        error = record.exc_info[1] if record.exc_info else None
        return error is None or errors.in_words(str(error)) is None


_RAISED_TOO = _RaisedToo()


@functools.cache
def quieten() -> None:
    """Reduces the errors of many threads to one line when a checkpoint cannot be written.

    When one array fails, Orbax cancels the reads and writes of the others after their loop ended.
    """
    for logger in (logging.get_absl_logger(), std_logging.getLogger("asyncio")):
        logger.addFilter(_RAISED_TOO)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize_from_host", RuntimeWarning)
    earlier = sys.unraisablehook

    def hook(found: Any) -> None:
        late = "Event loop is closed" in str(found.exc_value)
        if not late and "_read_array_index_and_device_put" not in repr(found.object):
            earlier(found)

    sys.unraisablehook = hook


@contextlib.contextmanager
def room_for(folder: str | Path) -> Iterator[None]:
    """Converts machine trouble, possibly of the background thread, to a one-line error.

    Raises:
      MachineError: If the `with` block runs out of disk space or lacks the permission to write.
    """
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:
        check_machine(folder, error)
        raise


def check_machine(folder: str | Path, error: Exception) -> None:
    """Distinguishes trouble of the machine from damaged files.

    Raises:
      MachineError: If the error or its cause is trouble of the machine, by its number or message.
    """
    for each in filter(None, (error, error.__cause__, error.__context__)):
        if errors.is_of_machine(each):
            raise errors.of_machine(each, getattr(each, "filename", None) or folder) from error
        if (found := errors.in_words(str(each))) is not None:
            raise errors.of_machine(found, folder) from error


def in_one_line(error: Exception) -> str:
    """The beginning of an error's text, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def folders(directory: Path) -> list[Path]:
    """Of the checkpoints that are committed, by step."""
    return sorted(
        (each for each in directory.glob("*") if each.name.isascii() and each.name.isdigit()),
        key=lambda folder: int(folder.name),
    )


def metrics(folder: Path) -> Mapping[str, float | None] | None:
    """Returns the metrics of a checkpoint; None if they are missing or malformed.

    Raises:
      MachineError: If the machine can't read it at the moment.
    """
    path = folder / "metrics" / "metrics"
    try:
        found = json.loads(files.read(path, at_most=_LARGEST_METRICS))
        return found if quality(found) < math.inf else None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
        return None


def check_files(folder: Path) -> None:
    """Checks that a third-party checkpoint contains only files, and no huge texts.

    Raises:
      UserError: If there is a pipe or device, for which Orbax would wait, or such a text.
      MachineError: If the machine can't read a file at the moment.
    """
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            try:
                with files.open_regular(path) as file:
                    size = os.fstat(file.fileno()).st_size
            except OSError as error:
                if errors.is_of_machine(error):
                    raise errors.of_machine(error, path) from None
                continue  # Orbax reports it
            if path.name in _TEXTS and size > _LARGEST_TEXT:
                raise errors.UserError(
                    f"{path}: larger than {_LARGEST_TEXT} bytes, the most that is read"
                )


def quality(metrics: Mapping[str, float | None] | None) -> float:
    """Returns the mAP of a checkpoint; less than any other if it was not evaluated."""
    value = metrics[METRIC] if metrics else None
    return -math.inf if value is None or math.isnan(value) else float(value)


def abstract(tree: Any) -> Any:
    """Shapes, types and shardings, which Orbax needs to place restored arrays."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(
            jax.devices()[0]
        )
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


def check_shapes(folder: Path, like: Any) -> None:
    """Compares names and shapes before Orbax does, because its message names no file."""
    saved = ocp.StandardCheckpointHandler().metadata(folder / "params").tree
    there, wanted = shapes(saved), shapes(like)
    for name, shape in wanted.items():
        if there.get(name) != shape:
            raise errors.UserError(
                f"{folder} does not fit this network: {name} has shape {there.get(name)} there and "
                f"{shape} here; take the run's own config (classes, image size, width)"
            )


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a tree's arrays, by path."""
    return {name: tuple(leaf.shape) for name, leaf in named(tree).items()}


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
