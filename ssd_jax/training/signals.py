"""Signals that a scheduler, a user or a closed terminal sends: finish the step, save, go."""

import contextlib
import os
import signal
import threading
from types import FrameType

from ssd_jax import errors

IMPATIENT = (signal.SIGTERM, signal.SIGINT)
"""Those of which a second one ends the process at once."""

NOTICES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals that announce the end of the time limit. They may arrive several times: a shell that
ends sends SIGHUP again, the system SIGXCPU each second, and SIGTERM follows a scheduler's SIGUSR1.
"""

HANDLED = (*IMPATIENT, *NOTICES)

_STDERR = 2  # written to without a buffer: a handler may interrupt any other write


class Stop:
    """Within its `with`, a signal ends the run by `StoppedError`, or is noted after `defer`.

    A second SIGTERM or SIGINT ends the process at once, also where Python runs no handlers, as in a
    long call of XLA's: a thread counts them. A SIGHUP that is ignored, as under nohup, stays so.

    Attributes:
      name: Name of the received signal, or empty.
    """

    def __init__(self) -> None:
        self.name = ""
        self._deferred = False
        self._earlier: dict[signal.Signals, object] = {}

    def defer(self) -> None:
        """Defers the first signal from now on, because there is a state to save."""
        self._deferred = True

    def __enter__(self) -> "Stop":
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._earlier_writing = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=_count, args=(reading,), name="signals", daemon=True).start()
        for number in HANDLED:
            if _is_free(number):
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._earlier_writing)
        os.close(self._writing)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            return
        self.name = signal.Signals(number).name
        if not self._deferred:
            raise errors.StoppedError(
                f"{self.name} before the first step, nothing is lost: the same command restarts"
            )
        again = "again" if number in IMPATIENT else "SIGTERM, twice,"
        _say(f"{self.name}: the run saves and ends after this step; {again} ends it at once\n")


def _is_free(number: signal.Signals) -> bool:
    """Whether a signal still has its default handling, not changed by nohup or a C library."""
    handler = signal.getsignal(number)
    return handler is not None and (number in IMPATIENT or handler is not signal.SIG_IGN)


def _count(reading: int) -> None:
    """Exits the process when the second urgent signal arrives in a pipe."""
    came = 0
    with open(reading, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            came += number[0] in IMPATIENT
            if came > 1:
                _say("stopped at once: the last checkpoint counts\n")
                os._exit(128 + number[0])


def _say(text: str) -> None:
    """Writes to standard error, which may be a terminal that was closed."""
    with contextlib.suppress(OSError):
        os.write(_STDERR, text.encode())
