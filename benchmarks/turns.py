"""What the benchmarks share: compiled functions that take turns."""

import time
from collections.abc import Callable

import jax


def compiled(function: Callable, *arguments: object) -> Callable[[], object]:
    """Runs a function; the first call is behind it."""
    run = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(run(*arguments))
    return lambda: jax.block_until_ready(run(*arguments))


def measure(ways: list[Callable[[], object]], runs: int) -> list[list[float]]:
    """Milliseconds of each way; they take turns."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(runs):
        for run, own in zip(ways, times, strict=True):
            start = time.perf_counter()
            run()
            own.append(1e3 * (time.perf_counter() - start))
    return times
