"""Ends a process that makes no step: a stuck one would hold up all the others for ever."""

import faulthandler
import os
import sys
import threading
import time

from ssd_jax import console, errors


class Watchdog:
    """Within its `with`, ends the process if `beat` is not called for so long.

    It says what every thread was doing and exits with `errors.TRY_AGAIN`.
    """

    def __init__(self, minutes: float):
        """Is not yet on watch.

        Args:
          minutes: Without a beat, after which the process ends; 0: never.
        """
        self._seconds = minutes * 60
        self._last = time.monotonic()
        self._over = threading.Event()

    def beat(self) -> None:
        """Something was done."""
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(max(self._last + self._seconds - time.monotonic(), 0.01)):
            if time.monotonic() - self._last > self._seconds:
                console.error(
                    f"no step in {self._seconds / 60:g} minutes "
                    f"(config.train.watchdog_minutes): this process ends; the same command goes on "
                    f"from the last checkpoint. What its threads were doing:"
                )
                sys.stderr.flush()
                faulthandler.dump_traceback()
                os._exit(errors.TRY_AGAIN)
