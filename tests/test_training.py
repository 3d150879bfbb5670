"""Whole runs of a tiny network: their outputs, and that they resume."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
import scripts

from ssd_jax import build, checkpoints, config_files, errors, load
from ssd_jax import config as config_lib
from ssd_jax.evaluation import evaluated
from ssd_jax.training import checkpoint, loop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The workdir of a run that went to its end in one go."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(config, workdir)
    return workdir


def params_of(workdir):
    """Parameters of the latest checkpoint, by name."""
    with checkpoint.open_manager(workdir) as manager:
        folder = workdir / "checkpoints" / str(manager.latest_step())
    config, names = config_files.load(workdir / "config.json")
    detector = load._restore(config, folder)
    assert detector.class_names == names
    leaves = jax.tree_util.tree_leaves_with_path(detector.params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_a_run_leaves_what_the_readme_says(finished, config):
    assert (finished / "samples" / "step_000004.png").stat().st_size > 1000
    assert (finished / "report.html").read_text().startswith("<!")
    assert list(finished.glob("events.out.tfevents.*"))
    saved, names = config_files.load(finished / "config.json")
    mine = dataclasses.replace(config.data, cache_dir=config_lib.DataConfig().cache_dir)
    assert saved == dataclasses.replace(config, data=mine)  # where the cache is, no file says
    assert names == ("ball", "cross", "cube", "ring", "star")
    figures = json.loads((finished / "evaluation.json").read_text())
    assert figures["images"] == len(evaluated.load(finished).sizes) == 6
    assert set(figures["ap_voc07"]) == set(names)


def test_every_step_is_logged_once(finished):
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["loss"]] == ["1", "2", "3", "4"]
    assert all(float(row["learning_rate"]) == pytest.approx(1e-4) for row in rows if row["loss"])
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert 0 <= lines[-1]["mean_ap"] <= 1


def test_a_stopped_run_resumes_bitwise(finished, config, tmp_path):
    """Stopped after step 3, of which the last checkpoint is that of step 2."""
    first_part = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    workdir = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:

        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        patch.setattr(loop, "_evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            loop.train(first_part, workdir)
    with checkpoint.open_manager(workdir) as manager:
        assert manager.latest_step() == 2
    loop.train(config, workdir)
    whole, resumed = params_of(finished), params_of(workdir)
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [1, 2, 3, 4, 4]


def test_a_finished_run_is_only_evaluated_again(finished, config):
    before = params_of(finished)
    loop.train(config, finished)
    for name, values in params_of(finished).items():
        np.testing.assert_array_equal(values, before[name])


def test_the_detector_of_a_workdir_finds_things_in_pixels(finished):
    detector = load.load_detector(finished)
    image = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    (found,) = detector([image], score_threshold=0.0)
    assert found.boxes.shape == (len(found.scores), 4)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [200, 120, 200, 120]).all()
    assert (np.diff(found.scores) <= 0).all()
    assert set(found.labels) <= {1, 2, 3, 4, 5}


def test_best_and_latest_checkpoints_are_kept(config, tmp_path):
    from ssd_jax.training import step as step_lib

    model = build.model(config.model, 5)
    options = config.train
    optimizer = build.optimizer(options, build.schedule(config))
    state = step_lib.init_state(model, optimizer, build.input_size(config.model), 0)
    quality = {1: None, 2: 0.3, 3: float("nan"), 4: 0.2, 5: None, 6: None}
    with checkpoint.open_manager(tmp_path) as manager:
        for number, mean_ap in quality.items():
            at = dataclasses.replace(state, step=state.step + number)
            checkpoint.save(manager, at, run={}, mean_ap=mean_ap)
        manager.wait_until_finished()
        assert sorted(manager.all_steps()) == [2, 5, 6]
    assert checkpoints.find(tmp_path).name == "2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 12}, r"batch_size \(12\) must be divisible by the 8 devices; 8 is"),
        ({"learning_rate": 1e30, "max_skipped": 2}, "not finite in 2 steps in a row, to step"),
    ],
)
def test_what_cannot_train_is_one_line(config, tmp_path, change, message):
    wrong = dataclasses.replace(config, train=dataclasses.replace(config.train, **change))
    with pytest.raises(errors.UserError, match=message):
        loop.train(wrong, tmp_path / "run")


def test_a_workdir_of_another_model_is_refused(finished, config):
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, width=0.25))
    with pytest.raises(
        errors.UserError,
        match=r"model\.width 1\.0 in the run, 0\.25 in the config\. Give another --workdir$",
    ):
        loop.train(other, finished)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config", "configs/nowhere.py"], "configs/nowhere.py: file not found"),
        (["--config", "README.md"], "README.md"),
        (["--config", "configs/quickstart.py", "--config.train.stepz=3"], "stepz"),
        (["--config", "configs/quickstart.py", "--config.train.steps=many"], "train.steps=many"),
        (["--config", "configs/quickstart.py", "--config.train.batch_size=0"], "batch_size is 0"),
        (["--config", "configs/quickstart.py", "--config.model.dtype=int8"], "dtype is 'int8'"),
        (["--config", "configs/quickstart.py", "--config.model.image_size=100"], "image_size"),
        (["--config", "configs/quickstart.py", "--config.model.backbone=vgg99"], "vgg99"),
        (["--config", "configs/quickstart.py", "--confg=x"], "confg"),
        (["--config", "configs/ssd300.py", "--config.data.archives=nowhere"], "nowhere"),
        (
            ["--config", "configs/ssd300.py", "--config.data.dataset=folder"],
            "config.data.path",
        ),
    ],
)
def test_train_names_the_mistake(arguments, message, tmp_path):
    done = scripts.run("train.py", *arguments, "--workdir", tmp_path / "run")
    assert scripts.refused(done, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir"),
        (["--workdir", "nowhere"], "nowhere"),
        (["--checkpoint", "nowhere/checkpoints/3"], "nowhere"),
    ],
)
def test_evaluate_names_the_mistake(arguments, message):
    assert scripts.refused(scripts.run("evaluate.py", *arguments), message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.model.image_size=512", "image_size is 512, but"),
        ("--config.data.dataset=voc", "VOC's splits start with 2007/"),
        ("--config.data.eval_split=val", "val"),
    ],
)
def test_evaluate_refuses_what_does_not_fit_the_checkpoint(finished, override, message):
    done = scripts.run("evaluate.py", "--workdir", finished, override, imports="tiny_backbone")
    assert scripts.refused(done, message)


def test_the_learning_rate_warms_up_only_from_scratch():
    config = config_lib.Config()
    assert float(build.schedule(config)(0)) == pytest.approx(1e-3 / 500)
    config.model.pretrained = "vgg16.npz"
    assert float(build.schedule(config)(0)) == pytest.approx(1e-3)
    config.train.warmup_steps = 10
    assert float(build.schedule(config)(0)) == pytest.approx(1e-4)


def test_summary_prints_the_layers():
    done = scripts.run("train.py", "--config", "configs/ssd300.py", "--summary", fresh=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "vgg16/conv1_1" in done.stdout
    assert "26,285,486" in done.stdout  # SSD300 with 21 classes
