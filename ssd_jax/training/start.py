"""The start of a run: its completed config and its initial state."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ssd_jax import build, config_files, distributed, files, load
from ssd_jax import config as config_lib
from ssd_jax.conventions import Conventions
from ssd_jax.models import calibration, ssd
from ssd_jax.training import checkpoint, logs, workdir
from ssd_jax.training import data as data_lib
from ssd_jax.training import step as step_lib
from ssd_jax.weights import loading, transfer

# The unused logits are not among them: a training has the classes of its own dataset.
SETTLED = tuple(name for name in Conventions._fields if name != "unused_logits")
"""Fields of `config.model` that come with the weights where a config leaves them as they are."""

ReadPretrained = Callable[[], load.Pretrained]  # reads the weights of `config.model.pretrained`


class Run(NamedTuple):
    """Everything that stays constant during a run.

    Attributes:
      config: The config, settled.
      workdir: Output folder of the run.
      model: The network.
      data: Both splits.
      mesh: The devices.
    """

    config: config_lib.Config
    workdir: Path
    model: ssd.SSD
    data: data_lib.Data
    mesh: Mesh


class Start(NamedTuple):
    """The state and position at which a process starts or resumes.

    Attributes:
      state: The state of the training.
      position: In the data stream, in images.
      origin: Description of where the state comes from.
    """

    state: step_lib.TrainState
    position: int
    origin: str


def settled(config: config_lib.Config, folder: Path, source: ReadPretrained) -> config_lib.Config:
    """Completes a config with the conventions of its pretrained weights.

    In this order, for each field of `SETTLED`:

    1. the value in the config, if it is not the default;
    2. the value in the `config.json` of the workdir: a run that resumes does not need the weights;
    3. the value that belongs to the weights.
    """
    if not config.model.pretrained:
        return config
    saved = folder / "config.json"
    there: config_lib.ModelConfig | Conventions
    there = config_files.load(saved)[0].model if saved.exists() else source().conventions
    default = config_lib.ModelConfig()
    taken = {
        field: getattr(there, field)
        for field in SETTLED
        if getattr(config.model, field) == getattr(default, field)
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **taken))


def start(
    run: Run,
    manager: ocp.CheckpointManager,
    state: step_lib.TrainState,
    source: ReadPretrained,
    *,
    change_config: bool,
) -> Start:
    """Decides on the state that a run starts with.

    1. The latest checkpoint in the workdir that is whole.
    2. The weights named by `config.model.pretrained`; `weights.txt` reports on each array.
    3. Freshly initialized parameters.

    Args:
      run: The run.
      manager: The manager of its checkpoints.
      state: The freshly initialized state on the devices.
      source: Reads the weights.
      change_config: Whether the training split may have another size than before.
    """
    if (restored := checkpoint.restore(manager, state)) is not None:
        state, saved = restored
        workdir.check_same_images(run.workdir, saved, run.data.train, change_config=change_config)
        position = workdir.position(run.workdir, saved)
        return Start(state, position, f"checkpoint of step {int(state.step)}")
    if run.config.model.pretrained:
        return _from_weights(run, state, source())
    return Start(state, 0, "fresh parameters")


def _from_weights(run: Run, state: step_lib.TrainState, source: load.Pretrained) -> Start:
    """Returns the state with all parameters that the weights contain."""
    options, classes = run.config.model, run.data.train.class_names
    weights = loading.with_mean(source.weights, build.mean(options))
    lines = list(source.assumed) if options.prior_sizes == source.conventions.prior_sizes else []
    if source.classes is not None:
        weights, kept = transfer.with_classes(
            weights,
            state.params,
            theirs=source.classes,
            ours=transfer.Classes(classes, options.unused_logits),
            share=options.shared_classes,
        )
        lines += [f"{len(kept)} of {len(classes)} classes kept: {', '.join(kept) or 'none'}"]
    loaded, report = loading.fit(jax.device_get(state.params), weights)
    if any(path.startswith(f"{options.backbone}/") for path in report.fresh):
        shown = data_lib.first_images(run.config, run.data.train)
        loaded, factors = calibration.calibrate(run.model, loaded, shown, fresh=report.fresh)
        lines += [f"{path} scaled by {factor:.2g}" for path, factor in factors.items()]
    params = jax.device_put(loaded, jax.tree.map(lambda x: x.sharding, state.params))
    average = None if state.ema is None else jax.tree.map(jnp.copy, params)
    place = run.workdir / "weights.txt"
    if distributed.is_primary():
        with logs.best_effort(place):
            files.write(place, report.whole())
    lines += [*report.lines(), f"each by name and shape in {place}"]
    origin = "\n           ".join([report.title, *lines])
    return Start(dataclasses.replace(state, params=params, ema=average), 0, origin)
