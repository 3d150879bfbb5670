"""The figures of a run in a log: CSV, JSONL, and Weights & Biases where it is wanted."""

import contextlib
import csv
import importlib.util
import json
import os
import resource
import struct
import subprocess
import sys
import types

import pytest
import tiny_run
from tensorboardX.proto import event_pb2

from ssd_jax import errors
from ssd_jax.evaluation import report
from ssd_jax.training import guard, logs, loop


class FakeRun:
    def __init__(self, **options):
        self.options, self.rows, self.finished = options, [], None

    def log(self, values, *, step):
        self.rows.append((step, values))

    def finish(self, *, exit_code):
        self.finished = exit_code == 0


@pytest.fixture
def runs(monkeypatch):
    """What was given to a stand-in for wandb, which shows it; the last tests have wandb itself."""
    made = []

    def init(**options):
        made.append(FakeRun(**options))
        return made[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return made


def test_weights_and_biases_is_shown_every_row(runs, tmp_path):
    log = logs.MetricsLog(tmp_path, step=0, wandb="boxes", settings={"seed": 3})
    log.write(step=1, loss=2.5)
    log.write(step=2, loss=float("nan"), mean_ap=0.5)
    log.close()
    (run,) = runs
    assert run.options["project"] == "boxes"
    assert run.options["config"] == {"seed": 3}
    assert run.rows == [(1, {"loss": 2.5}), (2, {"loss": None, "mean_ap": 0.5})]
    assert run.finished


def test_a_run_that_ends_by_an_error_is_told_so(runs, tmp_path):
    with pytest.raises(KeyError), logs.MetricsLog(tmp_path, step=0, wandb="boxes"):
        raise KeyError
    assert runs[0].finished is False


def test_a_run_that_resumes_is_the_same_run_there(runs, tmp_path):
    for folder, step in ((tmp_path, 0), (tmp_path, 7), (tmp_path / "other", 0)):
        folder.mkdir(exist_ok=True)
        logs.MetricsLog(folder, step=step, wandb="boxes").close()
    first, again, other = (run.options["id"] for run in runs)
    assert first == again != other
    assert {run.options["resume"] for run in runs} == {"allow"}


def test_without_it_nothing_is_shown(runs, tmp_path):
    logs.MetricsLog(tmp_path, step=0).close()
    logs.MetricsLog(tmp_path, step=0, active=False, wandb="boxes").close()
    assert runs == []
    assert not (tmp_path / "wandb_id.txt").exists()


def test_that_it_is_not_installed_is_one_line_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_run.config(tmp_path / "cache")
    config.train.wandb = "boxes"
    with pytest.raises(errors.UserError, match=r"config.train.wandb is 'boxes'.*pip install"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mere_folder_of_its_name_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    folder = types.ModuleType("wandb")
    folder.__file__, folder.__path__ = None, [str(tmp_path / "wandb")]  # as Python imports it
    monkeypatch.setitem(sys.modules, "wandb", folder)
    with pytest.raises(errors.UserError, match=r"config.train.wandb is 'boxes'.*pip install") as it:
        logs.check_wandb("boxes")
    assert f"{tmp_path / 'wandb'} is not it" in str(it.value)


def test_that_it_does_not_start_is_one_line(monkeypatch, tmp_path):
    def init(**options):
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    message = (
        r"wandb is 'boxes' and wandb does not start \(no network\).*wandb login.*WANDB_MODE=off"
    )
    with pytest.raises(errors.UserError, match=message):
        logs.MetricsLog(tmp_path, step=0, wandb="boxes")


# In a process of its own: what wandb warns of and leaves running is not ours.
_LOG = """
import pathlib, sys
from ssd_jax.training import logs
log = logs.MetricsLog(pathlib.Path(sys.argv[1]), step=0, wandb="boxes", settings={"seed": 3})
log.write(step=1, loss=2.5)
log.close()
"""


def log_with_wandb(folder, **variables):
    """Logs a row with wandb itself, as somebody without an account; errors and the run's folder."""
    if getattr(importlib.util.find_spec("wandb"), "origin", None) is None:
        pytest.skip("wandb is not installed: pip install -e '.[wandb]'")
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    workdir = folder / "run"
    workdir.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _LOG, workdir],
        cwd=folder,
        env={**own, "PYTHONPATH": str(tiny_run.ROOT), "HOME": str(folder), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done, workdir


def test_wandb_itself_keeps_the_rows_without_an_account(tmp_path):
    done, workdir = log_with_wandb(tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    name = (workdir / "wandb_id.txt").read_text().strip()
    (record,) = workdir.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")
    kept = record.read_bytes()
    assert all(text in kept for text in (b"boxes", b"seed", b"loss", b"2.5"))


def test_wandb_itself_without_an_account_says_what_to_do(tmp_path):
    done, _ = log_with_wandb(tmp_path)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ssd_jax.errors.UserError: config.train.wandb is 'boxes' and wandb does")
    assert "API key" in last
    assert "WANDB_MODE=offline" in last


def test_tensorboard_finds_the_figures(tmp_path):
    log = logs.MetricsLog(tmp_path, step=3)
    log.write(step=4, loss=2.5, mean_ap=float("nan"))
    log.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    first, start, row = events_of(path)
    assert first.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, event_pb2.SessionLog.START)
    assert (row.step, [(value.tag, value.simple_value) for value in row.summary.value]) == (
        4,
        [("loss", 2.5)],
    )


def events_of(path):
    """Of a file of TensorFlow's records: length, its checksum, event, its checksum."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    return found


@contextlib.contextmanager
def disk_of(size):
    """Within its `with`, no file grows larger: that stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def table(workdir):
    """Rows of `metrics.csv`."""
    return list(csv.DictReader((workdir / "metrics.csv").read_text().splitlines()))


def test_a_full_disk_costs_one_warning_a_file_and_no_row(tmp_path, warnings_of):
    with logs.MetricsLog(tmp_path, step=0) as log:
        with disk_of(1000):
            for step in range(1, 99):
                log.write(step=step, loss=1.0, loc_loss=1.0, conf_loss=1.0, grad_norm=1.0)
        (events,) = tmp_path.glob("events.out.tfevents.*")
        assert events.stat().st_size == 1000
        assert sorted(line.partition(" is left out: ")[0] for line in warnings_of) == [
            str(events),
            str(tmp_path / "metrics.csv"),
            str(tmp_path / "metrics.jsonl"),
        ]
        log.write(step=99, loss=1.0)
    assert [row["step"] for row in logs.read(tmp_path / "metrics.jsonl")] == list(range(1, 100))
    assert [row["step"] for row in table(tmp_path)] == [str(step) for step in range(1, 100)]
    assert len(warnings_of) == 3


GOOD = b'{"step": 1, "loss": 2.5}\n'
DAMAGED = [
    b"\xff\xfe\n",
    b'{"loss": 1.0}\n',
    b"null\n",
    b"[1, 2]\n",
    b"7\n",
    b'{"step": null}\n',
    b'{"step": "2"}\n',
    b'{"step": 2.5}\n',
    b'{"step": true}\n',
    b'{"step": -1}\n',
    b'{"step": NaN}\n',
    b'{"step": 1' + b"0" * 400 + b"}\n",
    b'{"step": 1' + b"0" * 5000 + b"}\n",
    b'{"step": 2, "loss": "low"}\n',
    b'{"step": 2, "loss": [[1.0]]}\n',
    b'{"step": 2, "loss": true}\n',
    b'{"step": 2, "lo\n',
    b"[" * 100_000 + b"\n",
    b'{"step": 2, "x": ' + b"[" * 100_000 + b"\n",
    b"x" * (logs._LONGEST_LINE + 1) + b"\n",
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_left_out_with_one_warning_and_the_rest_is_kept(
    tmp_path, warnings_of, line
):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + line + b"\n" + b'{"step": 3, "loss": 1.5}\n' + b'{"step": 4, "lo')
    rows = [{"step": 1, "loss": 2.5}, {"step": 3, "loss": 1.5}]
    assert logs.read(path) == rows
    (warning,) = warnings_of
    assert warning.startswith(f"{path}: skipping 1 damaged lines: line ")
    with logs.MetricsLog(tmp_path, step=3) as log:
        log.write(step=4, loss=1.0)
    assert logs.read(path) == [*rows, {"step": 4, "loss": 1.0}]
    assert len(warnings_of) == 2  # it is mended now


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999", b"1" + b"0" * 400, b"null"])
def test_a_number_that_json_does_not_know_is_none_and_its_row_is_kept(tmp_path, number):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2, "loss": ' + number + b"}\n")
    assert logs.read(path) == [{"step": 2, "loss": None}]


def test_a_column_of_another_version_stays_and_is_not_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2, "loss": 1.5, "invention": ["x"]}\n')
    logs.MetricsLog(tmp_path, step=2).close()
    assert json.loads(path.read_text()) == {"step": 2, "loss": 1.5, "invention": ["x"]}
    (row,) = table(tmp_path)
    assert (row["step"], row["loss"], "invention" in row) == ("2", "1.5", False)
    assert len(list(report._training(logs.read(path)))) == 1  # of the loss


RECORDS = ("metrics.jsonl", "metrics.csv", "skipped.jsonl", "wandb_id.txt")


def a_folder(path):
    path.mkdir()


def a_pipe(path):
    os.mkfifo(path)


def a_link_to_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def not_writable(path):
    """As if of another user: root may read all."""
    path.write_bytes(b"\xff")
    path.chmod(0)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("harm", [a_folder, a_pipe, a_link_to_a_pipe, not_writable])
def test_whatever_stands_in_a_records_place_a_run_continues(tmp_path, runs, name, harm):
    harm(tmp_path / name)
    options = {"most": 0, "names_of": lambda step: [f"{step}.jpg"]}
    for step in (0, 2):
        with logs.MetricsLog(tmp_path, step=step, wandb="boxes") as log:
            log.write(step=step + 1, loss=1.0)
            assert log.rows[-1] == {"step": step + 1, "loss": 1.0}
        keeper = guard.Guard(tmp_path, step=step, **options)
        keeper.check(step + 1, {"skipped": True, "loss": float("nan")})
        assert keeper.in_a_row == 1
    others = {"metrics.jsonl", "skipped.jsonl"} - {name}
    for other in others:
        assert [row["step"] for row in logs.records(tmp_path / other)] == [1, 3][-2:]
    assert all(logs._WANDB_ID.fullmatch(run.options["id"]) for run in runs)


def test_a_link_in_a_records_place_is_replaced_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("keep me")
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in RECORDS[:2]:
        (workdir / name).symlink_to(target)
    with logs.MetricsLog(workdir, step=0) as log:
        log.write(step=1, loss=1.0)
    assert target.read_text() == "keep me"
    assert [row["step"] for row in logs.read(workdir / "metrics.jsonl")] == [1]


def test_a_workdir_that_takes_nothing_costs_no_row(tmp_path, warnings_of):
    with logs.MetricsLog(tmp_path / "nowhere", step=0) as log:
        for step in (1, 2):
            log.write(step=step, loss=1.0)
        assert [row["step"] for row in log.rows] == [1, 2]
    assert len(warnings_of) == 3  # of JSONL, CSV and TensorBoard's


class Failing(FakeRun):
    def log(self, values, *, step):
        self.rows.append(step)
        raise ConnectionError("no network")

    def finish(self, *, exit_code):
        raise RuntimeError("nor at the end")


def test_what_weights_and_biases_fails_at_costs_no_run(monkeypatch, tmp_path, warnings_of):
    made = []
    monkeypatch.setitem(
        sys.modules,
        "wandb",
        types.SimpleNamespace(init=lambda **options: made.append(Failing()) or made[-1]),
    )
    with logs.MetricsLog(tmp_path, step=0, wandb="boxes") as log:
        for step in (1, 2):
            log.write(step=step, loss=1.0)
    assert made[0].rows == [1]
    assert [row["step"] for row in logs.read(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [line.partition(": ")[2] for line in warnings_of] == ["no network", "nor at the end"]


def test_a_run_continues_where_weights_and_biases_does_not_start(
    monkeypatch, tmp_path, warnings_of
):
    def init(**options):
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with logs.MetricsLog(tmp_path, step=4, wandb="boxes") as log:
        log.write(step=5, loss=1.0)
    (line,) = warnings_of
    assert line.startswith(
        "the run continues without Weights & Biases: config.train.wandb is 'boxes'"
    )


def test_an_error_of_the_code_costs_no_run_and_keeps_its_traceback(warnings_of, monkeypatch):
    lines = []
    monkeypatch.setattr(logs.logging, "error", lambda text, *args: lines.append(text % args))
    with logs.best_effort("a sheet"):
        raise KeyError("x")
    assert warnings_of == ["a sheet is left out: 'x'"]
    assert "KeyError" in lines[0]
    with pytest.raises(KeyboardInterrupt), logs.best_effort("a sheet"):
        raise KeyboardInterrupt


def test_skipped_steps_that_are_done_again_stand_there_once(tmp_path):
    options = {"most": 0, "names_of": lambda step: [f"{step}.jpg"]}
    keeper = guard.Guard(tmp_path, step=0, **options)
    for step in (1, 2, 3):
        keeper.check(step, {"skipped": step != 2, "loss": float("nan")})
    assert skipped(tmp_path) == [1, 3]
    guard.Guard(tmp_path, step=2, **options).check(3, {"skipped": 1, "loss": float("nan")})
    assert skipped(tmp_path) == [1, 3]
    guard.Guard(tmp_path, step=0, **options)
    assert skipped(tmp_path) == []


def skipped(workdir):
    return [row["step"] for row in logs.records(workdir / "skipped.jsonl")]
