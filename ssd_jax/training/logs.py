"""Figures of a run, kept as CSV, JSONL and TensorBoard events, and shown to Weights & Biases."""

import contextlib
import csv
import importlib
import io
import json
import math
import os
import re
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorboardX
from absl import logging
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
_LONGEST_LINE = 2**20  # bytes; one of a post-mortem names all images of a batch
_LARGEST_STEP = 2**53  # of a float, in which curves are drawn
_WANDB_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


@contextlib.contextmanager
def best_effort(what: object) -> Iterator[None]:
    """Turns any error in its `with` block into a warning.

    For outputs that are only informative, such as curves and samples: a failure never costs a run
    or its result. An error of the code is logged with its traceback.

    Args:
      what: What is missing after a failure: a path, or a description.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        logging.warning("%s is left out: %s", what, reason)
        if not (isinstance(error, errors.UserError | OSError) or errors.is_of_machine(error)):
            logging.error("%s", traceback.format_exc())


class MetricsLog:
    """Appends rows to `metrics.jsonl`, `metrics.csv` and TensorBoard's events in a workdir.

    Rows of later steps than `step`, written by a run that was stopped after its last checkpoint,
    are dropped when the log is opened, so that each step is logged once. A failure to write
    is a warning; all rows are written again as soon as possible.

    Attributes:
      rows: All rows of the run, those of an earlier process too.
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
          workdir: Workdir of the run.
          step: Step that the run resumes after.
          active: If not, nothing is written.
          wandb: Project of Weights & Biases that is shown the rows too; empty: none.
          settings: Config of the run shown there.

        Raises:
          UserError: If Weights & Biases is wanted, and is not installed or does not start; where
            that happens after step 0, it is a warning.
        """
        self._active = active
        self.rows: list[dict[str, Any]] = []
        if not active:
            return
        self._shown = _Shown(wandb, workdir, settings or {}, step=step)
        self.rows = [row for row in read(workdir / "metrics.jsonl") if row["step"] <= step]
        self._files = [
            Lines(workdir / "metrics.jsonl", as_json),
            Lines(workdir / "metrics.csv", _as_csv, first=_csv_line(_COLUMNS)),
        ]
        for file in self._files:
            file.write_all(self.rows)
        self._events = _Events(workdir, step=step)

    def write(self, **row: float) -> None:
        """Appends a row: `step`, and any of the other columns."""
        if not self._active:
            return
        plain = {name: _plain(value) for name, value in row.items()}
        self.rows.append(plain)
        for file in self._files:
            file.append(self.rows)
        values = {name: value for name, value in plain.items() if name != "step"}
        self._events.write(int(row["step"]), values)
        self._shown.write(int(row["step"]), values)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(failed=kind is not None)

    def close(self, *, failed: bool = False) -> None:
        """Ends the TensorBoard file, and the run of Weights & Biases with its status."""
        if self._active:
            self._events.close()
            self._shown.close(failed=failed)


class Lines:
    """A text file of records that are only for looking at: one line each, appended.

    A failure to write is one warning; everything is written again with the next record.
    """

    def __init__(
        self, path: Path, render: Callable[[Mapping[str, Any]], str], *, first: str = ""
    ) -> None:
        """Does not touch the file.

        Args:
          path: Path of the file.
          render: A record as its line, with the line's end.
          first: First line of the file.
        """
        self._path, self._render, self._first = path, render, first
        self._whole = self._warned = False

    def write_all(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the file by one of these records."""
        with self._tried():
            _check_no_device(self._path)
            files.write(self._path, self._first + "".join(map(self._render, records)))
            self._whole = True

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Appends the last record, or all of them after a failed write."""
        if not self._whole:
            self.write_all(records)
            return
        self._whole = False
        with self._tried():
            with files.appending(self._path) as file:
                file.write(self._render(records[-1]))
            self._whole = True

    @contextlib.contextmanager
    def _tried(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._warned:
                with best_effort(self._path):
                    raise error
            self._warned = True


def _check_no_device(path: Path) -> None:
    """A pipe in the place of a file would hold up who opens it; a link to one is replaced."""
    if path.exists() and not path.is_symlink() and not (path.is_file() or path.is_dir()):
        raise errors.UserError(f"{path} is a pipe or device; remove it")


class _Events:
    """Writes TensorBoard's file directly: tensorboardX fails in a thread on a full disk.

    After a failure the file is left alone: TensorBoard stops at an incomplete event.
    """

    def __init__(self, workdir: Path, *, step: int):
        """Starts a file that makes TensorBoard forget everything after a step."""
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._path = workdir / name.replace(os.sep, "_")
        self._file: Any = None
        with self._tried():
            self._file = tensorboardX.RecordWriter(str(self._path))
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._append(event_pb2.Event(file_version="brain.Event:2"))
            self._append(event_pb2.Event(step=step + 1, session_log=start))
            self._file.flush()

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        if self._file is None:
            return
        shown = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        with self._tried():
            self._append(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=shown)))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with best_effort(self._path):
                file.close()

    def _append(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())

    @contextlib.contextmanager
    def _tried(self) -> Iterator[None]:
        with best_effort(self._path):
            try:
                yield
            except Exception:
                file, self._file = self._file, None
                with contextlib.suppress(OSError):  # or Python tries again, and complains
                    file.close()
                raise


class _Shown:
    """A run of Weights & Biases, if any; it is disabled after a failure."""

    def __init__(self, project: str, workdir: Path, settings: Mapping[str, Any], *, step: int):
        self._run: Any = None
        self._works = bool(project)
        if not project:
            return
        try:
            self._run = _open_wandb(project, workdir, settings)
        except errors.UserError as error:
            if not step:  # nothing is lost yet: the user decides
                raise
            logging.warning("the run continues without Weights & Biases: %s", error)
            self._works = False

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        if self._works:
            self._works = False
            with best_effort("the run's curves in Weights & Biases"):
                self._run.log(values, step=step)
                self._works = True

    def close(self, *, failed: bool) -> None:
        if self._run is not None:
            with best_effort("the run's end in Weights & Biases"):
                self._run.finish(exit_code=int(failed))


def check_wandb(project: str) -> None:
    """Checks that Weights & Biases is installed if a run uses it.

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
    """Returns the file of a module; a plain folder on the path is a module without one."""
    return module.__file__ or next(iter(module.__path__))


def _open_wandb(project: str, workdir: Path, settings: Mapping[str, Any]) -> Any:
    """The run of Weights & Biases of a workdir: the same one when the training resumes.

    Raises:
      UserError: If it is not installed, or does not start.
    """
    check_wandb(project)
    name = _wandb_id(workdir / "wandb_id.txt")
    files.make_folder(workdir / "wandb")
    try:
        return importlib.import_module("wandb").init(
            project=project,
            id=name,
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
    """Reads the run's id from a file, or makes a new one if it is unreadable."""
    with contextlib.suppress(OSError, ValueError):
        name = files.read(place, at_most=100).decode().strip()
        if _WANDB_ID.fullmatch(name):
            return name
    name = uuid.uuid4().hex[:12]
    with best_effort(place):
        _check_no_device(place)
        files.write(place, name + "\n")
    return name


def _plain(value: Any) -> float | None:
    """Converts a number to JSON: NaN, infinities and numbers beyond a float become null."""
    try:
        number = value if isinstance(value, int) else float(value)
        return number if math.isfinite(number) else None
    except OverflowError:
        return None


def as_json(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON."""
    return json.dumps(record) + "\n"


def _as_csv(row: Mapping[str, Any]) -> str:
    return _csv_line([row.get(name) for name in _COLUMNS])


def _csv_line(values: Sequence[Any]) -> str:
    line = io.StringIO(newline="")
    csv.writer(line).writerow(values)
    return line.getvalue()


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a `metrics.jsonl`; known columns contain numbers or None.

    Skips what `records` skips and rows with other values than numbers; a number that
    JSON does not know is None.
    """
    return [
        {name: _plain(value) if _is_number(value) else value for name, value in row.items()}
        for row in records(path, is_row=_is_row)
    ]


def _is_row(record: Mapping[str, Any]) -> bool:
    return all(record.get(name) is None or _is_number(record[name]) for name in _COLUMNS)


def records(
    path: Path, *, is_row: Callable[[Mapping[str, Any]], bool] = lambda record: True
) -> list[dict[str, Any]]:
    """Reads the records with a `step` from a file with one JSON object per line.

    Damaged lines are skipped with one warning, except for a last line that a stopped process left
    unfinished; an unreadable file has no records.

    Args:
      path: Path of the file; where there is none, there are no records.
      is_row: Whether an object is a record of its kind.
    """
    found, damaged = [], []
    with (
        best_effort(path),
        contextlib.suppress(FileNotFoundError),
        files.open_regular(path) as file,
    ):
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            record = _parsed(line)
            if record is not None and is_row(record):
                found.append(record)
            elif line.strip() and line.endswith(b"\n"):  # or a process was stopped in it
                damaged.append(number)
    if damaged:
        logging.warning(
            "%s: skipping %d damaged lines: line %s", path, len(damaged), _some(damaged)
        )
    return found


def _some(names: Sequence[object]) -> str:
    """The first of some names."""
    return ", ".join(f"{name!s:.40}" for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Parses an object with a step, or returns None."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    known = _is_number(step) and isinstance(step, int) and 0 <= step < _LARGEST_STEP
    return record if known else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
