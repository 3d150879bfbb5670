"""What the benchmarks share: functions to be timed, and how they take turns."""

import time
from collections.abc import Callable

import jax
import optax

from ssd_jax.models import ssd
from ssd_jax.training import optimizer as optimizers
from ssd_jax.training import step as step_lib


def compiled(function: Callable, *arguments: object) -> Callable[[], object]:
    """Runs a function; the first call is behind it."""
    run = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(run(*arguments))
    return lambda: jax.block_until_ready(run(*arguments))


def train_step(batch: step_lib.Batch) -> Callable[[], object]:
    """The whole train step of SSD300 with 21 classes, on a batch in host memory."""
    size = (300, 300)
    model = ssd.SSD(num_classes=21)
    optimizer = optimizers.make_optimizer(optax.constant_schedule(1e-6))
    mesh = step_lib.make_mesh(jax.devices()[:1])
    priors = ssd.default_boxes(model, size)
    step = step_lib.make_train_step(model, optimizer, priors, mesh=mesh, image_size=size)
    state = jax.device_put(
        step_lib.init_state(model, optimizer, size, 0), step_lib.replicated(mesh)
    )
    placed = step_lib.shard_batch(batch, mesh)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, placed)
        jax.block_until_ready((state, metrics))

    return run


def measure(ways: list[Callable[[], object]], runs: int) -> list[list[float]]:
    """Milliseconds of each way; they take turns."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(runs):
        for run, own in zip(ways, times, strict=True):
            start = time.perf_counter()
            run()
            own.append(1e3 * (time.perf_counter() - start))
    return times
