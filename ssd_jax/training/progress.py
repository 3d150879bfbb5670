"""The live line of a training run: step, loss, images a second, time left."""

import contextlib
import datetime
import time
from collections.abc import Iterator

from rich import progress

from ssd_jax import console


class Progress:
    """A progress bar on a terminal; elsewhere a line at each update.

    The clock for the speed stops during `pause`, when the run is not training.
    """

    def __init__(self, first: int, last: int, batch_size: int):
        self._first, self._last, self._batch_size = first, last, batch_size
        self._done, self._since = first, time.perf_counter()
        self._bar = progress.Progress(
            progress.TextColumn("[bold]step {task.completed:.0f}/{task.total:.0f}"),
            progress.BarColumn(),
            progress.TextColumn("{task.description}"),
            console=console.stdout,
            disable=not console.stdout.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=last, completed=first)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, step: int, *, loss: float) -> float:
        """Shows a step's loss; returns the images a second since the last update."""
        now = time.perf_counter()
        seconds = (now - self._since) / max(step - self._done, 1)
        compiled = self._done > self._first
        self._done, self._since = step, now
        speed = self._batch_size / seconds
        left = datetime.timedelta(seconds=round(seconds * (self._last - step)))
        text = f"loss {loss:.3f}, {speed:.1f} images/s" + (f", {left} left" if compiled else "")
        self._bar.update(self._task, completed=step, description=text)
        if not console.stdout.is_terminal:
            console.stdout.print(f"step {step}/{self._last}: {text}")
        return speed

    def evaluating(self, done: int) -> None:
        """Shows how many images have been evaluated."""
        self._bar.update(self._task, description=f"evaluating, {done} images")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock of the speed while something else is done."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began
