"""Ends a process that makes no progress: a stuck one would block all the others forever."""

import faulthandler
import os
import sys
import threading

from ssd_jax import console, errors

_LOOKS = 30  # in the time without a step that is allowed


class Watchdog:
    """Within its `with`, ends the process if `beat` is not called for so long.

    It prints the stack of every thread and exits with `errors.TRY_AGAIN`. Time is counted in short
    waits, each as long as it was asked to be: while the process is suspended, or the machine
    sleeps, no time passes here.
    """

    def __init__(self, minutes: float):
        """Is not yet on watch.

        Args:
          minutes: Without a beat, after which the process ends; 0: never.
        """
        self._seconds = minutes * 60
        self._beats = 0
        self._over = threading.Event()

    def beat(self) -> None:
        """Something was done."""
        self._beats += 1

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        seen, waits = self._beats, 0
        while not self._over.wait(self._seconds / _LOOKS):
            waits = waits + 1 if seen == self._beats else 0
            seen = self._beats
            if waits > _LOOKS:
                self._end()

    def _end(self) -> None:
        console.error(
            f"no step in {self._seconds / 60:g} minutes "
            f"(config.train.watchdog_minutes): this process ends; the same command resumes "
            f"from the last checkpoint. The stacks of its threads:"
        )
        try:
            sys.stderr.flush()
            faulthandler.dump_traceback()
        finally:  # standard error may be a terminal that was closed
            os._exit(errors.TRY_AGAIN)
