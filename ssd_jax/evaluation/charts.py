"""Data of the plots on the pages, which templates draw as SVG."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_POINTS = 200  # of a line, at most: more than a small plot has pixels


class Plot(NamedTuple):
    """A plot over [0, right] x [0, top].

    Attributes:
      name: Its caption.
      right: End of the x axis.
      top: End of the y axis.
      lines: `points` of each line.
      bars: (height, tooltip) of each bar, side by side; NaN draws none.
      diagonal: Whether a line leads from the lower left to the upper right.
    """

    name: str
    right: float = 1.0
    top: float = 1.0
    lines: Sequence[str] = ()
    bars: Sequence[tuple[float, str]] = ()
    diagonal: bool = False


def points(x: np.ndarray, y: np.ndarray, *, right: float = 1.0, top: float = 1.0) -> str:
    """Points of a line as SVG has them, "x,y x,y ...", in thousandths of the axes, y upward.

    Args:
      x: `[N]` in [0, right], never falling; of many points some are chosen, the last among them.
      y: `[N]` in [0, top].
      right: End of the x axis.
      top: End of the y axis.
    """
    chosen = np.searchsorted(x, np.linspace(0, right, _POINTS - 1))
    rows = np.unique(np.append(chosen[chosen < len(x)], np.arange(len(x))[-1:]))
    thousandths = np.rint(1000 * np.stack([x[rows] / right, y[rows] / top], axis=1)).astype(int)
    return " ".join(f"{across},{up}" for across, up in thousandths.tolist())
