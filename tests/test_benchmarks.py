"""The command that runs all benchmarks; what they measure is not a test's business."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest
import tiny_run

from benchmarks import all as all_benchmarks
from benchmarks import memory
from ssd_jax.models import ssd

ROOT = Path(__file__).parent.parent


def run(*arguments):
    (done,) = tiny_run.ends([tiny_run.start(ROOT / "benchmarks" / "all.py", *arguments)])
    return done


def test_what_a_benchmark_prints_becomes_markdown_and_json(tmp_path):
    assert run("--only", "scaling,loader", "--out", tmp_path) == (0, "")
    content = json.loads((tmp_path / "results.json").read_text())
    (scaling,) = content["benchmarks"]  # the loader's needs images
    assert (scaling["name"], scaling["status"]) == ("scaling", 0)
    row = next(row for row in scaling["rows"] if row["devices"] == "64")
    assert float(row["images/s"].replace(",", "")) > 0
    printed = (tmp_path / "results.md").read_text()
    assert scaling["printed"] in printed
    assert content["machine"]["versions"]["jax"] in printed


def test_rows_go_by_the_headings_of_their_own_table():
    markdown = "a\n\n| x | y |\n|---|---|\n| 1 | - |\n\n| z |\n|---|\n| 2 |\n"
    assert all_benchmarks.rows(markdown) == [{"x": "1", "y": "-"}, {"z": "2"}]


def test_the_memory_of_a_step_is_asked_without_making_its_arrays(monkeypatch):
    monkeypatch.setattr(ssd, "_compiled_init", lambda *_: pytest.fail("parameters were made"))
    lowered = memory.lower(4, 0.125, dtype=jnp.bfloat16, accumulate=2)
    state, batch = lowered.args_info[0]
    assert (batch["image"].shape, state.step.shape) == ((4, 500, 500, 3), ())
    assert "bf16" in lowered.as_text()


@pytest.mark.parametrize("name", all_benchmarks.BENCHMARKS)
def test_each_benchmark_is_there(name):
    assert (ROOT / "benchmarks" / f"{name}.py").is_file()


def test_an_unknown_name_is_one_line():
    status, printed = run("--only", "scaling,gone")
    assert status == 2
    names = ", ".join(all_benchmarks.BENCHMARKS)
    assert printed.splitlines()[-1].endswith(f"--only has gone; choose from {names}")
