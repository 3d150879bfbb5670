"""SIGTERM and SIGINT, as a scheduler or a user sends them: finish the step, save, go."""

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2  # written to without a buffer: a handler may interrupt any other write


class Stop:
    """Within its `with`, the first signal is only noted and the second ends the process at once.

    Attributes:
      name: Of the signal that came, or empty.
    """

    def __init__(self) -> None:
        self.name = ""
        self._earlier: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        for number in _SIGNALS:
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            os.write(_STDERR, b"stopped at once: the last checkpoint counts\n")
            os._exit(128 + number)
        self.name = signal.Signals(number).name
        text = f"{self.name}: the run saves and ends after this step; again ends it at once\n"
        os.write(_STDERR, text.encode())
