"""Overhead of the training loop over its steps.

  python benchmarks/loop.py [--steps 60] [--runs 3]
  python benchmarks/loop.py --config configs/ssd300.py --set data.archives=FOLDER \
    --set data.eval_split=2007/val --set model.dtype=bfloat16 --set train.batch_size=64

Five ways take turns in one process, with a config, configs/quickstart.py if none is given, and the
same compiled step:

- steps alone: on a batch that lies on the devices, with one step in flight, as the loop has;
- loop: all of `loop.train`;
- loop, one batch: with a batch from host memory, again and again, in the loader's place;
- loop, no step: with a step that does nothing, so it goes at the loader's pace;
- neither: with one batch and no step, what remains is the loop's own.

They are measured after WARM_UP steps, without evaluation and checkpoints. The table shows medians,
and the medians of the ratios to the steps alone in the same turn. CPU is what all threads of the
process used: on a CPU the loader's threads take cores from the step. Busy neighbors show less
there.
"""

import argparse
import itertools
import runpy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import cli, console
from ssd_jax import config as config_lib
from ssd_jax.data import loader
from ssd_jax.training import loop
from ssd_jax.training import step as step_lib

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.py"
WARM_UP = 10  # steps, until which the batches that the loader had ready are used up
REST = 1.0  # seconds for its threads to finish prefetching
NEVER = 1_000_000
WAYS = ("steps alone", "loop", "loop, one batch", "loop, no step", "neither")


class Measured(NamedTuple):
    """Seconds by the clock and of CPU, and what the next step would get."""

    seconds: np.ndarray
    state: step_lib.TrainState
    batch: step_lib.Batch


class DoneError(Exception):
    """Ends the loop and carries its results."""


def clocks() -> np.ndarray:
    """Seconds by the clock, and of CPU of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(step: Callable, count: int) -> Callable:
    """A train step that measures so many of its calls, and then ends the loop."""
    calls, began = 0, np.zeros(2)

    def run(state: step_lib.TrainState, batch: step_lib.Batch) -> object:
        nonlocal calls, began
        if calls == WARM_UP:
            began = clocks()
        if calls == WARM_UP + count:
            raise DoneError(Measured(clocks() - began, state, batch))
        calls += 1
        return step(state, batch)

    return run


def run_loop(config: config_lib.Config, **make: Any) -> Any:
    """Runs `loop.train` in a new workdir to its end; `make` makes its step."""
    with (
        tempfile.TemporaryDirectory() as workdir,
        mock.patch.object(step_lib, "make_train_step", **make),
    ):
        try:
            loop.train(config, Path(workdir))
        except DoneError as done:
            return done.args[0]
    raise AssertionError("the loop ended by itself")


def run_alone(
    step: Callable, state: step_lib.TrainState, batch: step_lib.Batch, count: int
) -> np.ndarray:
    """Seconds of so many steps, each of which waits for the one before the last."""
    state, before = jax.block_until_ready(step(state, batch))
    began = clocks()
    for _ in range(count):
        state, metrics = step(state, batch)
        jax.block_until_ready(before)
        before = metrics
    jax.block_until_ready(before)
    return clocks() - began


def no_step(step: Callable, state: step_lib.TrainState, batch: step_lib.Batch) -> Callable:
    """A step that does nothing and returns zero metrics."""
    figures = jax.eval_shape(step, state, batch)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), figures)
    return lambda state, batch: (state, zeros)


def turn(config: config_lib.Config, step: Callable, count: int) -> list[np.ndarray]:
    """Seconds of each of WAYS."""
    whole = run_loop(config, return_value=timed(step, count))
    idle = no_step(step, whole.state, whole.batch)
    unstepped = run_loop(config, return_value=timed(idle, count))
    time.sleep(REST)
    repeated = itertools.repeat(jax.device_get(whole.batch))
    with mock.patch.object(loader, "training_batches", return_value=repeated):
        unloaded = run_loop(config, return_value=timed(step, count))
        neither = run_loop(config, return_value=timed(idle, count))
    alone = run_alone(step, whole.state, whole.batch, count)
    return [alone, *(way.seconds for way in (whole, unloaded, unstepped, neither))]


def make_config(file: str, values: list[str], count: int) -> config_lib.Config:
    """A file's config for a loop that neither evaluates nor saves, with `part.field=value`.

    Raises:
      TypeError: If a field is neither a text nor a number.
    """
    config = runpy.run_path(file)["get_config"]()
    for text in values:
        name, value = text.split("=", 1)
        part, field = name.split(".")
        kind = type(getattr(getattr(config, part), field))
        if kind not in (str, int, float):
            raise TypeError(f"--set {text}: {name} is neither a text nor a number")
        setattr(getattr(config, part), field, kind(value))
    config.train.steps = WARM_UP + count + 1
    config.train.eval_every = config.train.checkpoint_every = NEVER
    return config


def real_step(config: config_lib.Config) -> Callable:
    """Makes the step of `loop.train` for a config; all turns share its compilation."""
    make = step_lib.make_train_step

    def stop(*arguments: Any, **options: Any) -> None:
        raise DoneError(make(*arguments, **options))

    return run_loop(config, side_effect=stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--config", default=str(QUICKSTART), help="file in configs/")
    parser.add_argument(
        "--set", action="append", default=[], help="part.field=value, a text or a number"
    )
    options = parser.parse_args()
    config = make_config(options.config, options.set, options.steps)
    console.stdout.quiet = True
    cli.split_cpu(config.train.cpu_devices)
    cli.keep_compiled(config.data.cache_dir)
    step = real_step(config)
    turns = np.array([turn(config, step, options.steps) for _ in range(options.runs)])
    milliseconds = np.median(1e3 * turns / options.steps, axis=0)
    ratios = np.median(turns / turns[:, :1], axis=0)
    print(
        f"{options.config} {' '.join(options.set)}; jax {jax.__version__} on "
        f"{jax.devices()[0].device_kind}; {options.steps} steps, {options.runs} runs\n"
    )
    print("| way | a step, ms | ratio | CPU of a step, ms | ratio |\n|---|---|---|---|---|")
    for way, (wall, cpu), (longer, more) in zip(WAYS, milliseconds, ratios, strict=True):
        print(f"| {way} | {wall:.1f} | {longer:.3f} | {cpu:.1f} | {more:.3f} |")


if __name__ == "__main__":
    main()
