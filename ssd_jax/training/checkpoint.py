"""Checkpoints of a run: the latest and the best, written in the background by Orbax.

A workdir holds `config.json` and `checkpoints/STEP/`, each with the items `params` (all that
detection needs) and `training` (step and optimiser).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ssd_jax import errors
from ssd_jax.training import step as step_lib

FOLDER = "checkpoints"
_METRIC = "mean_ap"


def open_manager(workdir: str | Path) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints: keeps the two latest and the best by mAP."""
    policy = ocp.checkpoint_managers.AnyPreservationPolicy(
        [
            ocp.checkpoint_managers.LatestN(2),
            ocp.checkpoint_managers.BestN(
                get_metric_fn=_quality,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    # Without best_fn, Orbax writes no metrics, and the best is forgotten with the process.
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=_quality)
    return ocp.CheckpointManager(
        (Path(workdir) / FOLDER).absolute(),
        options=options,
        item_names=("params", "training"),
    )


def save(
    manager: ocp.CheckpointManager, state: step_lib.TrainState, *, mean_ap: float | None
) -> None:
    """Starts to write a checkpoint; a run that ends has to call `manager.wait_until_finished`.

    Args:
      manager: From `open_manager`.
      state: What to keep.
      mean_ap: Of an evaluation at this step, if there was one; NaN counts as the worst.
    """
    known = mean_ap is not None and not math.isnan(mean_ap)
    training = {"step": state.step, "opt_state": state.opt_state}
    manager.save(
        int(state.step),
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params), training=ocp.args.StandardSave(training)
        ),
        metrics={_METRIC: mean_ap if known else None},  # without any, Orbax warns at each step
        force=True,
    )


def restore(manager: ocp.CheckpointManager, like: step_lib.TrainState) -> step_lib.TrainState:
    """Reads the latest checkpoint into a state of the shapes, types and shardings of `like`.

    Raises:
      UserError: If a parameter of the checkpoint has another shape, or is missing.
    """
    step = manager.latest_step()
    folder = Path(manager.directory) / str(step)
    _check_shapes(folder, like.params)
    training = {"step": like.step, "opt_state": like.opt_state}
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(_abstract(like.params)),
            training=ocp.args.StandardRestore(_abstract(training)),
        ),
    )
    training = restored["training"]
    return step_lib.TrainState(training["step"], restored["params"], training["opt_state"])


def restore_params(folder: str | Path, like: Any) -> Any:
    """Reads the parameters of one checkpoint.

    Args:
      folder: `WORKDIR/checkpoints/STEP`.
      like: Parameters, or their `jax.ShapeDtypeStruct`s, of the network that they are for.

    Raises:
      UserError: If there is no such checkpoint, or it is that of another network.
    """
    folder = Path(folder).absolute()
    _check_shapes(folder, like)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "params", _abstract(like))


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
    with open_manager(path) as manager:
        metrics = {step: manager.metrics(step) for step in manager.all_steps()}
        evaluated = {step: _quality(of) for step, of in metrics.items() if _quality(of) >= 0}
        step = max(evaluated, key=evaluated.__getitem__) if evaluated else manager.latest_step()
    if step is None:
        raise errors.UserError(f"{path / FOLDER} is empty: train.py has not saved there yet")
    return (path / FOLDER / str(step)).absolute()


def _quality(metrics: Mapping[str, float | None] | None) -> float:
    """The mAP of a checkpoint; less than any where it was not evaluated."""
    value = metrics[_METRIC] if metrics else None
    return -math.inf if value is None else value


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
    if not (folder / "params").is_dir():
        raise errors.UserError(f"{folder} is not a checkpoint: it has no folder 'params'")
    saved = ocp.StandardCheckpointHandler().metadata(folder / "params").tree
    there, wanted = _shapes(saved), _shapes(like)
    for name, shape in wanted.items():
        if there.get(name) != shape:
            raise errors.UserError(
                f"{folder} does not fit this network: {name} has shape {there.get(name)} there and "
                f"{shape} here; take the run's own config (classes, image size, width)"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}
