"""Figures of a run, kept as CSV, JSONL and TensorBoard events."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX

_COLUMNS = (
    "step",
    "loss",
    "loc_loss",
    "conf_loss",
    "positives",
    "negatives",
    "grad_norm",
    "skipped",
    "learning_rate",
    "images_per_second",
    "mean_ap",
)


class MetricsLog:
    """Appends rows to `metrics.jsonl`, `metrics.csv` and TensorBoard's events in a workdir.

    Rows of later steps than `step`, written by a run that was stopped after its last checkpoint,
    are dropped when the log is opened, so that a step stands there once.
    """

    def __init__(self, workdir: Path, *, step: int, active: bool = True):
        """Opens the log of a run that goes on after `step`; not active, it writes nothing."""
        self._active = active
        if not active:
            return
        self._jsonl, self._csv = workdir / "metrics.jsonl", workdir / "metrics.csv"
        self.rows = [row for row in read(self._jsonl) if row["step"] <= step]
        self._rewrite()
        self._events = tensorboardX.SummaryWriter(str(workdir), purge_step=step)

    def write(self, **row: float) -> None:
        """Appends a row: `step`, and any of the other columns."""
        if not self._active:
            return
        plain = {name: _plain(value) for name, value in row.items()}
        self.rows.append(plain)
        with self._jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")
        with self._csv.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, _COLUMNS).writerow(plain)
        for name, value in plain.items():
            if name != "step" and value is not None:
                self._events.add_scalar(name, value, int(row["step"]))
        self._events.flush()

    def close(self) -> None:
        """Ends the TensorBoard file."""
        if self._active:
            self._events.close()

    def _rewrite(self) -> None:
        lines = [json.dumps(row) + "\n" for row in self.rows]
        self._jsonl.write_text("".join(lines), encoding="utf-8")
        with self._csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def _plain(value: Any) -> float | None:
    """A number that JSON knows: NaN and infinities become null."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def read(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a `metrics.jsonl`; none where there is no file.

    A line that a stopped process left unfinished is ignored.
    """
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
