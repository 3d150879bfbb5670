"""The figures of a run in a log: CSV, JSONL, and Weights & Biases where it is wanted."""

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
    """What was given to a stand-in for wandb, which needs an account or a server."""
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
