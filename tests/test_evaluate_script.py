import re
from pathlib import Path

import jax
import pytest
import tiny_run
import voc_tree

from ssd_jax import build, export
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.models import ssd

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of one class, and detections in it as VOC's server takes them."""
    place = tmp_path_factory.mktemp("evaluate")
    voc_tree.write_plain(place / "data", 1, splits={"val": ["000001"]})
    (place / "quickstart").mkdir()
    (place / "quickstart/comp4_det_val_dog.txt").write_text("000001 0.5 3 4 20 18\n")
    return place


def evaluate(folder, cwd, *arguments, what="--results", name="quickstart"):
    """Status, stdout and stderr of evaluate.py of the detections, started in a folder."""
    process = tiny_run.start(
        ROOT / "evaluate.py", what, folder / name, *arguments,
        "--config.data.dataset=folder", "--config.data.eval_split=val",
        f"--config.data.path={folder / 'data'}", f"--config.data.cache_dir={folder / 'cache'}",
        cwd=cwd,
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "more", "why"),
    [
        ("file", (), "no folder there: File exists"),
        ("full", (), "there are files in it; give another folder, or --overwrite"),
        ("/proc", ("--overwrite",), "it cannot be written to: No such file or directory"),
    ],
)
def test_an_output_that_is_none_is_one_line(folder, tmp_path, output, more, why):
    if output == "/proc" and not Path(output).exists():
        pytest.skip("no /proc, in which nobody can make a file")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/report.html").write_text("mine")
    status, _, err = evaluate(folder, tmp_path, "--output", tmp_path / output, *more)
    assert (status, err) == (2, f"error: --output {tmp_path / output}: {why}\n")
    assert (tmp_path / "full/report.html").read_text() == "mine"


def beside_a_run(folder, tmp_path, **options):
    """The page and its settings of what has the name of a run, of which it has nothing."""
    there = tmp_path / "runs/quickstart"
    there.mkdir(parents=True)
    (there / "report.html").write_text("of a training")
    (there / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    status, out, err = evaluate(folder, tmp_path, **options)
    assert (status, err) == (0, "")
    assert "runs/quickstart-2/report.html" in out
    assert (there / "report.html").read_text() == "of a training"
    assert len(list(there.iterdir())) == 2
    text = (tmp_path / "runs/quickstart-2/report.html").read_text()
    assert "Training" not in text
    return text, dict(re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", text))


@pytest.mark.slow
def test_results_leave_a_run_of_their_name_alone(folder, tmp_path):
    """The page has nothing of a network either."""
    text, settings = beside_a_run(folder, tmp_path)
    assert settings["detections"] == str(folder / "quickstart")
    assert settings["images"] == "1"
    assert "model.backbone" not in settings
    assert "Default boxes" not in text


@pytest.mark.slow
def test_weights_leave_a_run_of_their_name_alone(folder, tmp_path):
    config = config_lib.Config()
    config.model.width, config.eval.batch_size = 0.125, 1
    config.data.canvas = 64
    model = build.model(config.model, 1)
    params = ssd.init(jax.random.key(0), model, build.input_size(config.model))
    file = folder / "quickstart.safetensors"
    export.write(detector_lib.Detector(config, ("dog",), params), file)
    text, settings = beside_a_run(folder, tmp_path, what="--weights", name=file.name)
    assert settings["detections"] == str(file)
    assert settings["model.width"] == "0.125"
    assert "Default boxes" in text


@pytest.mark.slow
def test_output_is_replaced_where_asked_to(folder, tmp_path):
    """In a folder whose name rich would take for markup."""
    place = tmp_path / "my[" / "run]"
    place.mkdir(parents=True)
    (place / "report.html").write_text("mine")
    status, out, err = evaluate(folder, tmp_path, "--output", place, "--overwrite")
    assert (status, err) == (0, "")
    assert f"     report  {place}/report.html\n" in out
    assert "<h1>Detections on folder, val</h1>" in (place / "report.html").read_text()
