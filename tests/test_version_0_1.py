"""Files written by version 0.1, before fields were renamed: they load and give the same.

`golden/version_0_1.zip` holds a run of two steps (SSD300, width 1/64, with renamed fields set), its
exports, and its detections in an image, all written by the code of that version.
"""

import dataclasses
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

import ssd_jax
from ssd_jax import config_files, errors
from ssd_jax.data import prepared
from ssd_jax.evaluation import evaluated
from ssd_jax.training import loop

GOLDEN = Path(__file__).parent / "golden/version_0_1.zip"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("version_0_1")
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extractall(folder)
    return folder


def test_the_config_of_a_run_is_read_by_its_new_names(files):
    config, names = config_files.load(files / "run/config.json")
    assert names == ("ball", "cross", "cube", "ring", "star")
    assert config.model.unused_logits == (3,)
    assert config.data.max_unreadable_fraction == 0.02
    train = config.train
    assert (train.bias_lr_multiplier, train.lr_multipliers) == (1.5, ("conf*=2",))
    assert (train.milestones, train.lr_decay_factor) == ((7,), 0.5)
    assert (train.base_batch_size, train.scratch_warmup_steps) == (8, 3)


@pytest.mark.parametrize(
    "name", ["run", "detector.onnx", "detector.stablehlo", "detector.safetensors"]
)
def test_a_detector_finds_the_same(files, name):
    detector = ssd_jax.load_detector(files / name)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    (found,) = detector([image], score_threshold=0.05)
    with np.load(files / "expected.npz") as expected:
        assert len(found.scores) == len(expected["scores"]) == 200
        np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-5)
        # Scores of an untrained network are so close that rounding may exchange neighbors.
        here, there = (
            np.column_stack([labels, boxes])
            for labels, boxes in (
                (found.labels, found.boxes),
                (expected["labels"], expected["boxes"]),
            )
        )
        distances = np.abs(here[:, None] - there).max(axis=-1)
        assert (distances.min(axis=1) < 0.05).mean() > 0.95


def test_its_detections_can_be_compared(files):
    there = evaluated.load(files / "run")
    assert there.class_names == ("ball", "cross", "cube", "ring", "star")


@pytest.mark.slow
def test_a_run_resumes(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepared, "SYNTHETIC", {"train": 12, "test": 6, "seed": 0})
    four = jax.devices()[:4]  # for a batch of 4
    monkeypatch.setattr(jax, "devices", lambda: four)
    config, _ = config_files.load(files / "run/config.json")
    config.data.cache_dir = str(tmp_path)
    config.train = dataclasses.replace(config.train, steps=3, eval_every=100, checkpoint_every=1)
    loop.train(config, files / "run")
    assert tiny_run.steps_saved(files / "run") == [2, 3]
    assert "checkpoint of step 2" in capsys.readouterr().out


def test_what_is_written_now_tells_version_0_1_to_update(files, tmp_path, monkeypatch):
    """The message that the code of version 0.1 gives, whose format was 1."""
    config, names = config_files.load(files / "run/config.json")
    config_files.save(tmp_path / "config.json", config, names)
    monkeypatch.setattr(config_files, "VERSION", 1)
    with pytest.raises(errors.UserError, match=r"newer ssd_jax \(format 2.*update ssd_jax"):
        config_files.load(tmp_path / "config.json")
