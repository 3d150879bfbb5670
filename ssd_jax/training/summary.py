"""Summary that a run prints before its first step."""

import jax

from ssd_jax import build, console
from ssd_jax import config as config_lib
from ssd_jax.training import start
from ssd_jax.training import step as step_lib


def announce(run: start.Run, state: step_lib.TrainState, origin: str) -> None:
    """Prints a summary of a run before its first step is compiled.

    Args:
      run: The run.
      state: The state that it starts with.
      origin: Description of where the state comes from.
    """
    config, data, mesh = run.config, run.data, run.mesh
    height, width = build.input_size(config.model)
    kind = mesh.devices.flat[0].device_kind
    names = data.train.class_names
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    boxes = len(build.priors(config.model, run.model))
    train_size, eval_size = len(data.train.source), len(data.eval.source)
    for name, value in {
        "devices": f"{mesh.size} x {kind}{_processes(mesh)}, {config.train.parallel}",
        "data": f"{config.data.dataset}: {config.data.train_split} ({train_size} images), "
        f"evaluated on {config.data.eval_split} ({eval_size})",
        "classes": f"{len(names)}: {', '.join(names)}",
        "model": f"{config.model.backbone} SSD, {height} x {width}, width {config.model.width:g}, "
        f"{parameters:,} parameters, {boxes} default boxes, {config.model.dtype}",
        "batch": _batch(config.train, mesh),
        "training": f"steps {int(state.step)} to {config.train.steps}, {config.train.optimizer}, "
        f"learning rate {build.learning_rate(config.train):g} ({config.train.schedule}, "
        f"warm-up {build.warmup_steps(config)} steps)",
        "start": origin,
    }.items():
        console.stdout.print(f"[bold]{name:>9}[/bold] ", console.plain(value))


def _processes(mesh: jax.sharding.Mesh) -> str:
    if jax.process_count() == 1:
        return ""
    return f" in {jax.process_count()} processes of {len(mesh.local_devices)}"


def _batch(options: config_lib.TrainConfig, mesh: jax.sharding.Mesh) -> str:
    """Describes how a batch is divided over processes and devices."""
    size, parts = options.batch_size, []
    if jax.process_count() > 1:
        parts.append(f"{size // jax.process_count()} a process")
    parts.append(f"{size // mesh.size} a device")
    if options.accumulate > 1:
        parts.append(f"{size // mesh.size // options.accumulate} at a time")
    return f"{size}: {', '.join(parts)}"
