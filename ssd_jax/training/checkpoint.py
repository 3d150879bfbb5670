"""Checkpoints of a run: the latest and the best, written in the background by Orbax.

A workdir holds `config.json` and `checkpoints/STEP/`, each with the items `params` and, if the run
keeps one, `ema` (one of them is all that detection needs), `training` (step and optimiser) and
`run` (config, classes, position in the data, a checksum of every array). A checkpoint is there
whole or not at all: Orbax renames it when all is written.
"""

import contextlib
import dataclasses
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

from ssd_jax import config_files, distributed, errors, files
from ssd_jax.training import step as step_lib

FOLDER = "checkpoints"
DAMAGED = "damaged"  # where checkpoints go that do not load
_ITEMS = ("params", "ema", "training", "run")
_METRIC = "mean_ap"
_LARGEST_METRICS = 2**20  # bytes of the file of a checkpoint's mAP


_TEXTS = ("_CHECKPOINT_METADATA", "_METADATA", "_sharding", "metadata", "metrics")
_LARGEST_TEXT = 64 * 2**20  # bytes of each of these, which Orbax reads whole


class _DamagedError(Exception):
    """A checkpoint that does not hold what was written."""


def open_manager(
    workdir: str | Path, *, keep: int = 2, clean: bool = False
) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints: keeps the latest and the best by mAP.

    Args:
      workdir: Of the run.
      keep: How many of the latest; the best stays beside them.
      clean: Remove what an earlier process left half-written, and take a checkpoint whose mAP
        can't be read as not evaluated. For the training alone: others would remove what it is
        writing.

    Raises:
      UserError: If a training would write or delete through a link, or a checkpoint has a pipe or
        device for a file.
    """
    policy = ocp.checkpoint_managers.AnyPreservationPolicy(
        [
            ocp.checkpoint_managers.LatestN(keep),
            ocp.checkpoint_managers.BestN(
                get_metric_fn=_quality,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    # Without best_fn, Orbax writes no metrics, and the best is forgotten with the process.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_quality,
        cleanup_tmp_directories=clean,
    )
    _quieten()
    directory = (Path(workdir) / FOLDER).absolute()
    if clean:
        _check_no_links(directory)
        _mend_metrics(directory)
        for folder in _folders(directory):
            _check_files(folder)
    return ocp.CheckpointManager(directory, options=options, item_names=_ITEMS)


def save(
    manager: ocp.CheckpointManager,
    state: step_lib.TrainState,
    *,
    run: Mapping[str, Any],
    mean_ap: float | None = None,
) -> None:
    """Starts to write a checkpoint; a run that ends has to call `wait`.

    Args:
      manager: From `open_manager`.
      state: What to keep.
      run: What else a run needs to go on, as JSON: config, class names, position in the data.
      mean_ap: Of an evaluation at this step, if there was one; NaN counts as the worst.

    Raises:
      UserError: If there is no room for it, or was none for the one before.
    """
    known = mean_ap is not None and not math.isnan(mean_ap)
    items = _items(state)
    facts = {"version": config_files.VERSION, **run, "checksums": checksums(items)}
    with room_for(manager.directory):
        manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                run=ocp.args.JsonSave(facts),
            ),
            metrics={_METRIC: mean_ap if known else None},  # without any, Orbax warns at each step
            force=True,
        )


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is written.

    Raises:
      UserError: If there was no room for it.
    """
    with room_for(manager.directory):
        manager.wait_until_finished()


def restore(
    manager: ocp.CheckpointManager, like: step_lib.TrainState
) -> tuple[step_lib.TrainState, dict[str, Any]] | None:
    """Reads the latest checkpoint that is whole into a state of the shapes and shardings of `like`.

    Newer ones that are damaged are reported and put aside into `WORKDIR/damaged`. Where the
    optimiser of `like` is another one, its state begins anew, but for the schedule's count.

    Returns:
      The state, and what `save` was given as `run`; None where there are no checkpoints.

    Raises:
      UserError: If a parameter has another shape or is missing, if the checkpoint is of a newer
        version or the machine can't read it, or if all of them are damaged, which then stay.
    """
    damaged: dict[Path, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        folder = Path(manager.directory) / str(step)
        restored, reason = None, "another process cannot read it"
        with distributed.together():
            try:
                restored = _restore(manager, step, like)
            except errors.UserError:
                raise
            except Exception as error:  # Orbax and TensorStore have a dozen for broken files
                _check_machine(folder, error)
                reason = _line(error)
        if distributed.all_true(restored is not None):
            for place, why in damaged.items():
                logging.warning("the checkpoint %s is damaged and put aside: %s", place, why)
                _put_aside(manager, place)
            return restored
        damaged[folder] = reason
    if damaged:
        newest, reason = next(iter(damaged.items()))
        raise errors.UserError(
            f"every checkpoint in {manager.directory} is damaged ({newest.name}: {reason}) and "
            f"stays there: give another --workdir, or move that folder away to begin anew"
        )
    return None


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
    _check_files(folder)
    _quieten()
    item = "ema" if ema and (folder / "ema").is_dir() else "params"
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            facts = checkpointer.restore(folder / "run")
        config_files.check_version(folder, facts["version"])
        _check_shapes(folder, like)
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(folder / item, _abstract(like))
        _verify({item: params}, facts)
    except errors.UserError:
        raise
    except Exception as error:
        _check_machine(folder, error)
        raise errors.UserError(
            f"{folder} is damaged ({_line(error)}): take another checkpoint"
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
    folders = _folders(path / FOLDER)
    if not folders:
        raise errors.UserError(f"{path / FOLDER} is empty: train.py has not saved there yet")
    # Of those that are equally good, and of those without any mAP, the last.
    return max(reversed(folders), key=lambda folder: _quality(_metrics(folder))).absolute()


def checksums(items: Any) -> dict[str, int]:
    """CRC-32 of the bytes of each array of a tree, by its path."""
    return {
        name: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        for name, leaf in _named(jax.device_get(items)).items()
    }


def _items(state: step_lib.TrainState) -> dict[str, Any]:
    items = {
        "params": state.params,
        "training": {"step": state.step, "opt_state": state.opt_state},
    }
    return items if state.ema is None else {**items, "ema": state.ema}


def _restore(
    manager: ocp.CheckpointManager, step: int, like: step_lib.TrainState
) -> tuple[step_lib.TrainState, dict[str, Any]]:
    folder = Path(manager.directory) / str(step)
    facts = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
    config_files.check_version(folder, facts["version"])
    _check_shapes(folder, like.params)
    wanted = _items(like)
    saved = ocp.StandardCheckpointHandler().metadata(folder / "training").tree
    same_optimizer = _shapes(saved) == _shapes(wanted["training"])
    if not same_optimizer:
        wanted["training"] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.step.sharding), saved
        )
    if like.ema is not None and not (folder / "ema").is_dir():  # the average begins here
        del wanted["ema"]
    items = manager.restore(
        step,
        args=ocp.args.Composite(
            **{name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in wanted.items()}
        ),
    )
    _verify({name: items[name] for name in wanted}, facts)
    average = like.ema
    if average is not None:
        average = items["ema"] if "ema" in wanted else jax.tree.map(np.copy, items["params"])
        average = jax.device_put(average, jax.tree.map(lambda x: x.sharding, like.ema))
    training = items["training"]
    if not same_optimizer:
        logging.warning(
            "the optimiser of %s is another one: parameters, step and rate go on from there, its "
            "moments begin anew",
            folder,
        )
        training["opt_state"] = _fresh(like.opt_state, training)
    state = dataclasses.replace(
        like,
        step=training["step"],
        params=items["params"],
        opt_state=training["opt_state"],
        ema=average,
    )
    return state, facts


def _fresh(opt_state: Any, saved: Any) -> Any:
    """An optimiser's first state, whose schedule goes on from what was saved of another one."""
    # The schedule stands at the top of `optimizer.make_optimizer`'s chain, Adam's count deeper.
    counts = (
        leaf
        for name, leaf in _named(saved["opt_state"]).items()
        if name.endswith("/count") and name.count("/") == 1
    )
    return step_lib.with_updates_done(opt_state, next(counts, saved["step"]))


def _verify(items: Any, facts: Mapping[str, Any]) -> None:
    for name, value in checksums(items).items():
        if facts["checksums"].get(name) != value:
            raise _DamagedError(f"{name} has another checksum than when it was written")


class _RaisedToo(std_logging.Filter):
    """Leaves out what a thread of Orbax logs of the machine's trouble: its manager raises that."""

    def filter(self, record: std_logging.LogRecord) -> bool:
        """Whether a record is of something else."""
        error = record.exc_info[1] if record.exc_info else None
        return error is None or errors.in_words(str(error)) is None


_RAISED_TOO = _RaisedToo()


@functools.cache
def _quieten() -> None:
    """Keeps to one line what ends in many threads at once, when a checkpoint can't be written.

    When one array fails, Orbax ends the others' reads and writes after their loop.
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


def _put_aside(manager: ocp.CheckpointManager, folder: Path) -> None:
    """Moves a checkpoint out of Orbax's sight; nothing is deleted."""
    if distributed.is_primary():
        place = files.make_folder(folder.parent.parent / DAMAGED)
        number = sum(1 for _ in place.glob(f"{folder.name}*"))
        folder.rename(place / (f"{folder.name}.{number}" if number else folder.name))
    distributed.wait_for_all(f"put aside {folder.name}")
    manager.reload()


@contextlib.contextmanager
def room_for(folder: str | Path) -> Iterator[None]:
    """Turns trouble of the machine, which the background thread may have met, into one line.

    Raises:
      MachineError: If what is done within its `with` finds no room to write, or may not.
    """
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:
        _check_machine(folder, error)
        raise


def _check_machine(folder: str | Path, error: Exception) -> None:
    """Tells what the machine cannot do at the moment from what is damaged.

    Raises:
      MachineError: If an error, or what it came from, tells of the machine by number or in words.
    """
    for each in filter(None, (error, error.__cause__, error.__context__)):
        if errors.is_of_machine(each):
            raise errors.of_machine(each, getattr(each, "filename", None) or folder) from error
        if (found := errors.in_words(str(each))) is not None:
            raise errors.of_machine(found, folder) from error


def _line(error: Exception) -> str:
    """The beginning of an error's text, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _folders(directory: Path) -> list[Path]:
    """Of the checkpoints that are committed, by step."""
    return sorted(
        (each for each in directory.glob("*") if each.name.isascii() and each.name.isdigit()),
        key=lambda folder: int(folder.name),
    )


def _metrics(folder: Path) -> Mapping[str, float | None] | None:
    """What was measured at a checkpoint; None where that is not there or is none.

    Raises:
      MachineError: If the machine can't read it at the moment.
    """
    path = folder / "metrics" / "metrics"
    try:
        found = json.loads(files.read(path, at_most=_LARGEST_METRICS))
        return found if _quality(found) < math.inf else None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
        return None


def _check_no_links(directory: Path) -> None:
    """Keeps a training inside its workdir: Orbax writes and deletes through links.

    Raises:
      UserError: If the folder of the checkpoints, or something in it or in one of them, is a link.
    """
    if directory.is_symlink():
        raise errors.UserError(
            f"{directory} is a link, through which a training does not write: give the folder that "
            f"holds {os.path.realpath(directory)} as --workdir, or put the folder itself here"
        )
    for place in (*directory.glob("*"), *directory.glob("*/*")):
        if place.is_symlink():
            raise errors.UserError(
                f"{place} is a link, through which a training does not write: copy what it leads "
                f"to, {os.path.realpath(place)}, to its place, or remove it"
            )


def _check_files(folder: Path) -> None:
    """Makes sure that a checkpoint, which may be somebody else's, holds files, and texts no novels.

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
                continue  # Orbax says what is wrong
            if path.name in _TEXTS and size > _LARGEST_TEXT:
                raise errors.UserError(
                    f"{path}: larger than {_LARGEST_TEXT} bytes, the most that is read"
                )


def _mend_metrics(directory: Path) -> None:
    """Takes checkpoints whose mAP can't be read as not evaluated: Orbax would open none at all."""
    if distributed.is_primary():
        for folder in _folders(directory):
            if (folder / "metrics").is_dir() and _metrics(folder) is None:
                logging.warning("%s has no mAP that can be read: it is as if not evaluated", folder)
                path = folder / "metrics" / "metrics"
                if not path.is_file():
                    path.unlink(missing_ok=True)
                files.write(path, json.dumps({_METRIC: None}))
    distributed.wait_for_all("metrics are read")


def _quality(metrics: Mapping[str, float | None] | None) -> float:
    """The mAP of a checkpoint; less than any where it was not evaluated."""
    value = metrics[_METRIC] if metrics else None
    return -math.inf if value is None or math.isnan(value) else float(value)


def _abstract(tree: Any) -> Any:
    """Shapes, types and shardings, which Orbax needs in order to place what it reads."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(
            jax.devices()[0]
        )
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


def _check_shapes(folder: Path, like: Any) -> None:
    """Compares names and shapes before Orbax does, whose message names no file."""
    saved = ocp.StandardCheckpointHandler().metadata(folder / "params").tree
    there, wanted = _shapes(saved), _shapes(like)
    for name, shape in wanted.items():
        if there.get(name) != shape:
            raise errors.UserError(
                f"{folder} does not fit this network: {name} has shape {there.get(name)} there and "
                f"{shape} here; take the run's own config (classes, image size, width)"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _named(tree).items()}


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
