"""The figures of a run in a log: CSV, JSONL, and Weights & Biases where it is wanted."""

import importlib.util
import os
import struct
import subprocess
import sys
import types

import pytest
import tiny_run
from tensorboardX.proto import event_pb2

from ssd_jax import errors
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
    with pytest.raises(KeyError), logs.MetricsLog(tmp_path, step=0, wandb="boxes") as log:
        raise KeyError
    assert runs[0].finished is False
    with pytest.raises(ValueError, match="closed file"):
        log.write(step=1, loss=2.5)


def test_a_run_that_goes_on_is_the_same_run_there(runs, tmp_path):
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


# A run whose files may grow to 1,000 bytes each: TensorBoard's is the first to be so long.
_FULL = """
import pathlib, resource, sys

from ssd_jax import cli
from ssd_jax.training import checkpoint, logs

def main(argv):
    workdir = pathlib.Path(argv[1])
    log = logs.MetricsLog(workdir, step=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with checkpoint.room_for(workdir):
        for step in range(99):
            log.write(step=step, loss=1.0, loc_loss=1.0, conf_loss=1.0, grad_norm=1.0)

cli.run(main)
"""


def test_a_disk_that_is_full_for_tensorboard_is_one_line(tmp_path):
    process = tiny_run.start("-c", _FULL, tmp_path)
    ((status, stderr),) = tiny_run.ends([process])
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert events.stat().st_size == 1000  # it came first
    assert (status, stderr.count("\n")) == (2, 1)
    assert stderr.startswith(
        f"error: the run cannot write to {tmp_path} ([Errno 27] File too large"
    )


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
    return [row["step"] for row in logs.read(workdir / "skipped.jsonl")]
