"""The figures of a run in a log: CSV, JSONL, and Weights & Biases where it is wanted."""

import importlib.util
import os
import subprocess
import sys
import types

import pytest
import tiny_run

from ssd_jax import errors
from ssd_jax.training import logs, loop


class FakeRun:
    def __init__(self, **options):
        self.options, self.rows, self.finished = options, [], False

    def log(self, values, *, step):
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


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
