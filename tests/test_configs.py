import importlib.util
from pathlib import Path

import pytest

from ssd_jax import config as config_lib
from ssd_jax import config_checks

FOLDER = Path(__file__).parent.parent / "configs"


def get(name: str) -> config_lib.Config:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_is_valid(path):
    config_checks.validate(get(path.stem))


@pytest.mark.parametrize(
    ("name", "side", "priors", "drops", "steps"),
    [
        # The authors' release: COCO's stages; the paper, sections 3.3 and 3.6: 2 x (60k + 20k).
        ("ssd300_coco", 300, "coco", (280_000, 360_000), 400_000),
        ("ssd512_coco", 512, "coco", (280_000, 360_000), 400_000),
        ("ssd300_voc07pp12", 300, "voc", (120_000,), 160_000),
        ("ssd300", 300, "voc", (80_000, 100_000), 120_000),
    ],
)
def test_recipes_are_the_papers(name, side, priors, drops, steps):
    config = get(name)
    assert (config.model.image_size, config.model.prior_sizes) == (side, priors)
    assert (config.train.milestones, config.train.steps) == (drops, steps)
    assert (config.train.learning_rate, config.train.batch_size) == (1e-3, 32)
    assert (config.train.momentum, config.train.weight_decay) == (0.9, 5e-4)


def test_splits_do_not_leak_but_where_no_other_is_annotated():
    for name in ("ssd300", "ssd300_coco", "ssd512_coco"):
        data = get(name).data
        assert data.eval_split not in data.train_split.split("+")
    assert get("ssd300_voc07pp12").data.train_split == "2007/trainval+2007/test+2012/trainval"
