"""A run's checkpoints: the latest and the best, written in the background by Orbax."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from ssd_jax import checkpoints, config_files, distributed, errors, files
from ssd_jax.training import step as step_lib

DAMAGED = "damaged"  # where checkpoints go that do not load
_ITEMS = ("params", "ema", "training", "run")


def open_manager(
    workdir: str | Path, *, keep: int = 2, clean: bool = False
) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints: keeps the latest and the best by mAP.

    Args:
      workdir: Workdir of the run.
      keep: How many of the latest; the best stays beside them.
      clean: Remove incomplete files of an earlier process, and treat a checkpoint with unreadable
        mAP as not evaluated. For the training only: others would remove what it is
        writing.

    Raises:
      UserError: If a training would write or delete through a link, or a checkpoint has a pipe or
        device for a file.
    """
    policy = ocp.checkpoint_managers.AnyPreservationPolicy(
        [
            ocp.checkpoint_managers.LatestN(keep),
            ocp.checkpoint_managers.BestN(
                get_metric_fn=checkpoints.quality,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    # Without best_fn, Orbax writes no metrics, and the best is forgotten with the process.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=checkpoints.quality,
        cleanup_tmp_directories=clean,
    )
    checkpoints.quieten()
    directory = (Path(workdir) / checkpoints.FOLDER).absolute()
    if clean:
        _check_no_links(directory)
        _mend_metrics(directory)
        for folder in checkpoints.folders(directory):
            checkpoints.check_files(folder)
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
      state: State to save.
      run: Everything else that a run needs to resume, as JSON: config, class names, position in the
        data.
      mean_ap: mAP of the evaluation at this step, if any; NaN counts as the worst.

    Raises:
      UserError: If there is no room for it, or was none for the one before.
    """
    known = mean_ap is not None and not math.isnan(mean_ap)
    items = _items(state)
    facts = {"version": config_files.VERSION, **run, "checksums": checkpoints.checksums(items)}
    with checkpoints.room_for(manager.directory):
        manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                run=ocp.args.JsonSave(facts),
            ),
            # Without any, Orbax warns at each step.
            metrics={checkpoints.METRIC: mean_ap if known else None},
            force=True,
        )


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is written.

    Raises:
      UserError: If there was no room for it.
    """
    with checkpoints.room_for(manager.directory):
        manager.wait_until_finished()


def restore(
    manager: ocp.CheckpointManager, like: step_lib.TrainState
) -> tuple[step_lib.TrainState, dict[str, Any]] | None:
    """Reads the latest checkpoint that is whole into a state of the shapes and shardings of `like`.

    Newer ones that are damaged are reported and put aside into `WORKDIR/damaged`. Where the
    optimizer of `like` is another one, its state restarts, except for the count of the schedule.

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
                checkpoints.check_machine(folder, error)
                reason = checkpoints.in_one_line(error)
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
            f"stays there: give another --workdir, or move that folder away to restart"
        )
    return None


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
    checkpoints.check_shapes(folder, like.params)
    wanted = _items(like)
    saved = ocp.StandardCheckpointHandler().metadata(folder / "training").tree
    same_optimizer = checkpoints.shapes(saved) == checkpoints.shapes(wanted["training"])
    if not same_optimizer:
        wanted["training"] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.step.sharding), saved
        )
    if like.ema is not None and not (folder / "ema").is_dir():  # the average starts here
        del wanted["ema"]
    items = manager.restore(
        step,
        args=ocp.args.Composite(
            **{
                name: ocp.args.StandardRestore(checkpoints.abstract(tree))
                for name, tree in wanted.items()
            }
        ),
    )
    checkpoints.verify({name: items[name] for name in wanted}, facts)
    average = like.ema
    if average is not None:
        average = items["ema"] if "ema" in wanted else jax.tree.map(np.copy, items["params"])
        average = jax.device_put(average, jax.tree.map(lambda x: x.sharding, like.ema))
    training = items["training"]
    if not same_optimizer:
        logging.warning(
            "the optimizer of %s is another one: parameters, step and learning rate resume, its "
            "moments restart",
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
    """Returns an initial optimizer state with the schedule count of a saved one."""
    # The schedule is at the top of `optimizer.make_optimizer`'s chain, Adam's count deeper.
    counts = (
        leaf
        for name, leaf in checkpoints.named(saved["opt_state"]).items()
        if name.endswith("/count") and name.count("/") == 1
    )
    return step_lib.with_updates_done(opt_state, next(counts, saved["step"]))


def _put_aside(manager: ocp.CheckpointManager, folder: Path) -> None:
    """Moves a checkpoint aside, out of Orbax's folder, without deleting it."""
    if distributed.is_primary():
        place = files.make_folder(folder.parent.parent / DAMAGED)
        number = sum(1 for _ in place.glob(f"{folder.name}*"))
        folder.rename(place / (f"{folder.name}.{number}" if number else folder.name))
    distributed.wait_for_all(f"put aside {folder.name}")
    manager.reload()


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


def _mend_metrics(directory: Path) -> None:
    """Treats checkpoints with unreadable mAP as not evaluated: Orbax would fail to open any."""
    if distributed.is_primary():
        for folder in checkpoints.folders(directory):
            if (folder / "metrics").is_dir() and checkpoints.metrics(folder) is None:
                logging.warning("%s has no mAP that can be read: it is as if not evaluated", folder)
                path = folder / "metrics" / "metrics"
                if not path.is_file():
                    path.unlink(missing_ok=True)
                files.write(path, json.dumps({checkpoints.METRIC: None}))
    distributed.wait_for_all("metrics are read")
