"""Work of the host beside the devices: metrics, watchdog, traces and stopping."""

import collections
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from ssd_jax import config as config_lib
from ssd_jax import distributed, files
from ssd_jax.training import guard, logs, progress, signals, watchdog
from ssd_jax.training import step as step_lib


class Stopping:
    """Agreement of all processes to stop at the same step.

    A process informs the others through the batch of a step and is informed through its metrics.
    """

    def __init__(self, stop: signals.Stop, mesh: jax.sharding.Mesh):
        """Takes the signals of this process and the devices of all."""
        self._stop, self._mesh = stop, mesh
        self._alone = jax.process_count() == 1
        self._heard = False

    def tell(self, batch: step_lib.Batch) -> step_lib.Batch:
        """The batch with the word of this process to all."""
        if self._alone:
            return batch
        told = np.full(len(self._mesh.local_devices), bool(self._stop.name), np.float32)
        return {**batch, **step_lib.shard_batch({"stop": told}, self._mesh)}

    def hear(self, values: dict[str, float]) -> None:
        """Takes the word of all processes out of the metrics of a step."""
        self._heard |= values.pop("stop", 0.0) > 0

    def agreed(self) -> bool:
        """Whether every process knows, after the same step, that the run is to stop."""
        return bool(self._stop.name) if self._alone else self._heard

    def ask(self) -> bool:
        """Whether any process received a stop signal; all processes have to call it together."""
        return distributed.any_true(bool(self._stop.name))


class Host:
    """Handles the metrics of steps on the host, one step behind the devices.

    Attributes:
      log: Log of the run's metrics.
      display: The live line.
      dog: Told of every step.
      guard: Guard of skipped steps.
      stopping: Whether the run is to stop.
    """

    def __init__(
        self,
        log: logs.MetricsLog,
        display: progress.Progress,
        dog: watchdog.Watchdog,
        keeper: guard.Guard,
        stopping: Stopping,
        options: config_lib.TrainConfig,
        schedule: optax.Schedule,
        updates: Any,
    ):
        """Stores its outputs.

        Args:
          log: See the attributes, like the next four.
          display: The live line.
          dog: The watchdog.
          keeper: The guard.
          stopping: The word to stop.
          options: Options of the training.
          schedule: The learning rate as a function of the updates.
          updates: Updates that the schedule has counted; a skipped step is none.
        """
        self.log, self.display, self.dog, self.guard = log, display, dog, keeper
        self.stopping = stopping
        self._options, self._schedule, self._updates = options, schedule, int(updates)
        self._pending: collections.deque[tuple[int, step_lib.Metrics]] = collections.deque()

    def follow(self, number: int, metrics: step_lib.Metrics) -> None:
        """Takes note of a step that was just started, and of the figures of the one before."""
        self._pending.append((number, metrics))
        while len(self._pending) > 1:
            self._take(*self._pending.popleft())

    def catch_up(self) -> None:
        """Waits for the last step that was started."""
        while self._pending:
            self._take(*self._pending.popleft())

    def _take(self, number: int, metrics: step_lib.Metrics) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.dog.beat()
        self.stopping.hear(values)
        self.guard.check(number, values)
        if number % self._options.log_every == 0 or number == self._options.steps:
            speed = self.display.update(number, loss=values["loss"])
            rate = float(self._schedule(self._updates))
            self.log.write(step=number, **values, learning_rate=rate, images_per_second=speed)
        self._updates += not values["skipped"]


class Profile:
    """Traces some steps, for TensorBoard or Perfetto."""

    def __init__(self, steps: range, folder: Path):
        self._steps, self._folder, self._on = steps, folder, False

    def __enter__(self) -> "Profile":
        return self

    def at(self, number: int, host: Host) -> None:
        """Called before a step starts."""
        if number == self._steps.stop:
            host.catch_up()
            self.__exit__()
        if number in self._steps and not self._on:
            with logs.best_effort(self._folder):
                for place in ("", "plugins", "plugins/profile"):  # which JAX writes through
                    files.make_folder(self._folder / place)
                jax.profiler.start_trace(str(self._folder))
                self._on = True

    def __exit__(self, *error: object) -> None:
        if self._on:
            self._on = False
            with logs.best_effort(self._folder):
                jax.profiler.stop_trace()
