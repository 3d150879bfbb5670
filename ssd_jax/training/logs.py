"""Figures of a run, kept as CSV, JSONL and TensorBoard events, and shown to Weights & Biases."""

import contextlib
import csv
import importlib
import io
import json
import math
import re
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX
from tensorboardX.proto import event_pb2, summary_pb2

from ssd_jax import errors, files

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

    def __init__(
        self,
        workdir: Path,
        *,
        step: int,
        active: bool = True,
        wandb: str = "",
        settings: Mapping[str, Any] | None = None,
    ):
        """Opens the log of a run.

        Args:
          workdir: Of the run.
          step: After which it goes on.
          active: If not, nothing is written.
          wandb: Project of Weights & Biases that is shown the rows too; empty: none.
          settings: What is shown there as the run's config.

        Raises:
          UserError: If Weights & Biases is wanted, and is not installed or does not start.
        """
        self._active = active
        if not active:
            return
        self._wandb = _open_wandb(wandb, workdir, settings or {}) if wandb else None
        self._jsonl, self._csv = workdir / "metrics.jsonl", workdir / "metrics.csv"
        self.rows = [row for row in read(self._jsonl) if row["step"] <= step]
        self._rewrite()
        self._events = _Events(workdir, step=step)

    def write(self, **row: float) -> None:
        """Appends a row: `step`, and any of the other columns."""
        if not self._active:
            return
        plain = {name: _plain(value) for name, value in row.items()}
        self.rows.append(plain)
        with files.appending(self._jsonl) as file:
            file.write(json.dumps(plain) + "\n")
        with files.appending(self._csv) as file:
            csv.DictWriter(file, _COLUMNS).writerow(plain)
        values = {name: value for name, value in plain.items() if name != "step"}
        self._events.write(int(row["step"]), values)
        if self._wandb:
            self._wandb.log(values, step=int(row["step"]))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(failed=kind is not None)

    def close(self, *, failed: bool = False) -> None:
        """Ends the TensorBoard file, and the run of Weights & Biases with its status."""
        if self._active:
            self._events.close()
        if self._active and self._wandb:
            self._wandb.finish(exit_code=int(failed))

    def _rewrite(self) -> None:
        lines = [json.dumps(row) + "\n" for row in self.rows]
        files.write(self._jsonl, "".join(lines))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, _COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        files.write(self._csv, table.getvalue())


class _Events:
    """TensorBoard's file, written at once: tensorboardX's writer meets a full disk in a thread."""

    def __init__(self, workdir: Path, *, step: int):
        """Begins a file, before which TensorBoard forgets what was written after a step."""
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = tensorboardX.RecordWriter(str(workdir / name))
        self._append(event_pb2.Event(file_version="brain.Event:2"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(event_pb2.Event(step=step + 1, session_log=start))
        self._flush()

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        shown = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        self._append(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=shown)))
        self._flush()

    def close(self) -> None:
        self._file.close()

    def _append(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError:
            with contextlib.suppress(OSError):  # or Python tries again, and complains, at its end
                self._file.close()
            raise


def check_wandb(project: str) -> None:
    """Makes sure that Weights & Biases is there if a run wants it.

    Args:
      project: `config.train.wandb`; empty: it does not.

    Raises:
      UserError: If it is not installed.
    """
    if not project:
        return
    try:
        module = importlib.import_module("wandb")
        problem = "" if hasattr(module, "init") else f"{_place(module)} is not it"
    except ImportError as error:
        problem = str(error)
    if problem:
        raise errors.UserError(
            f"config.train.wandb is {project!r} and wandb cannot be imported ({problem}): "
            "pip install 'ssd-jax[wandb]', or leave the field empty"
        )


def _place(module: Any) -> str:
    """Where a module lies; a mere folder on the path is one too, without a file."""
    return module.__file__ or next(iter(module.__path__))


def _open_wandb(project: str, workdir: Path, settings: Mapping[str, Any]) -> Any:
    """The run of Weights & Biases of a workdir: the same one when the training goes on.

    Raises:
      UserError: If it is not installed, or does not start.
    """
    check_wandb(project)
    number = _wandb_id(workdir / "wandb_id.txt")
    files.make_folder(workdir / "wandb")
    try:
        return importlib.import_module("wandb").init(
            project=project,
            id=number,
            name=workdir.name,
            dir=str(workdir),
            config=dict(settings),
            resume="allow",
        )
    except Exception as error:  # of many kinds: no account, no network, a refusal
        raise errors.UserError(
            f"config.train.wandb is {project!r} and wandb does not start ({error}): give it your "
            "account by wandb login, set WANDB_MODE=offline to keep the figures in the workdir "
            "alone, or leave the field empty"
        ) from None


def _wandb_id(place: Path) -> str:
    """The id in a file, which is written anew where it is none."""
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError, errors.UserError):
        known = files.read(place, at_most=100).decode().strip()
        if re.fullmatch(r"[\w-]{1,64}", known, re.ASCII):
            return known
    made = uuid.uuid4().hex[:12]
    files.write(place, made + "\n")
    return made


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
