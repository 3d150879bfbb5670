"""Weights of others in the scripts: detect, evaluate, and what a training starts from."""

import json

import numpy as np
import pytest
import scripts
import voc_tree
import weight_files
from golden import make_other_networks
from PIL import Image

from ssd_jax import config as config_lib
from ssd_jax import config_files, errors, load, third_party
from ssd_jax.conventions import Conventions
from ssd_jax.data import classes
from ssd_jax.training import start as start_lib
from ssd_jax.weights import loading


@pytest.fixture(scope="module")
def ssd_file(tmp_path_factory):
    """amdegroot's SSD300 that sees a cat in the large square in the middle, and nothing else."""
    shapes = make_other_networks.ssd_shapes("amdegroot", 300)
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for level, boxes in enumerate(make_other_networks.BOXES[300]):
        logits = np.zeros((boxes, 21), np.float32)
        logits[:, 0] = 20
        if level == 5:
            logits[0, classes.VOC.index("cat") + 1] = 24
        state[f"conf.{level}.bias"] = logits.reshape(-1)
    path = tmp_path_factory.mktemp("weights") / "theirs.pth"
    weight_files.torch_zip(path, state)
    yield path
    path.unlink()


@pytest.mark.slow
def test_detect_needs_nothing_but_weights(ssd_file, tmp_path):
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((150, 300, 3), np.uint8)).save(image)
    done = scripts.run("detect.py", "--weights", ssd_file, image, "--output", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads((tmp_path / "out/detections.json").read_text()).values()
    assert found["labels"] == ["cat"]
    # 264 of 300 pixels is the side of the last map's square (SPEC, section 2), in the middle.
    np.testing.assert_allclose(found["boxes"], [[18, 9, 282, 141]], atol=0.01)
    np.testing.assert_allclose(found["scores"], 1 / (1 + np.exp(-4)), atol=1e-4)


@pytest.mark.slow
def test_evaluate_needs_nothing_but_weights_and_data(ssd_file, tmp_path):
    objects = "".join(voc_tree.box(name, (3, 4, 20, 18)) for name in classes.VOC)
    voc_tree.write(
        tmp_path / "data",
        images={"a.jpg": voc_tree.jpeg()},
        annotations={"a": voc_tree.xml(objects)},
        splits={"val": ["a"]},
    )
    data = (
        "dataset=folder",
        f"path={tmp_path / 'data'}",
        "eval_split=val",
        f"cache_dir={tmp_path}",
    )
    done = scripts.run(
        "evaluate.py", "--weights", ssd_file, "--output", tmp_path / "out",
        "--config.eval.batch_size=1",
        *(f"--config.data.{field}" for field in data),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert figures["images"] == 1
    assert list(figures["ap_voc07"]) == list(classes.VOC)


@pytest.mark.parametrize("name", ["ssd300-coc", "a.png"])
def test_weights_that_are_none_are_one_line(tmp_path, name):
    done = scripts.run("detect.py", "--weights", name, "a.png")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name}: file not found")
    assert done.stderr.count("\n") == 1


def test_the_mean_comes_with_the_weights_and_stays_with_the_run(tmp_path):
    config = config_lib.Config()
    config.model.pretrained = "gone.pth"

    def read():
        raise errors.UserError("gone.pth: there is no such file")

    def reads(mean):
        return lambda: load.Pretrained(None, None, Conventions(mean=mean, prior_sizes="voc"))

    settled = start_lib.settled(config, tmp_path, reads((1.0, 2.0, 3.0)))
    assert settled.model.mean == (1, 2, 3)
    assert config.model.mean == ()
    config_files.save(tmp_path / "config.json", settled, ("a",))
    assert start_lib.settled(config, tmp_path, read) == settled  # a resumed run reads no weights
    config.model.mean = (4.0, 5.0, 6.0)
    assert start_lib.settled(config, tmp_path, read) == config


@pytest.mark.slow
def test_mean_and_gaps_are_fields_like_others(ssd_file):
    config, _ = third_party.describe(loading.read(ssd_file))
    assert config.model.mean == (123, 117, 104)
    assert config.model.unused_logits == ()  # VOC's 21 logits are the background and its classes
    done = scripts.run(
        "train.py", "--config", "configs/ssd300.py", "--summary", "--config.model.mean=1,2,3",
        "--config.model.unused_logits=2,5",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "38 x 38 x 92" in done.stdout  # 4 boxes of 21 + 2 logits
    done = scripts.run(
        "train.py", "--config", "configs/ssd300.py", "--summary", "--config.model.mean=1,2"
    )
    assert "config.model.mean" in done.stderr
    assert done.returncode == 2
