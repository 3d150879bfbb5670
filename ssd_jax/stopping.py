"""Records signals that stop a script, so that it can keep its results so far."""

import signal
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_APART_S = 0.5  # between two Ctrl-C; closer ones are one, sent to a group and passed on by a parent
_clock = time.monotonic


class Stop:
    """Within its `with`, SIGINT (Ctrl-C), SIGTERM and SIGHUP are noted; whoever works asks for it.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored. Those that follow the first
    change nothing, as who ends a session sends several; but a second Ctrl-C raises
    KeyboardInterrupt.

    Attributes:
      signal: The first received signal; None: none yet.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._when = 0.0
        self._earlier: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # no other has handlers
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._when = signal.Signals(number), _clock()
        elif number == signal.SIGINT and _clock() - self._when > _APART_S:
            raise KeyboardInterrupt
