"""Names of version 0.1: they are read, and the answer names the new ones."""

import dataclasses

import pytest
import scripts

from ssd_jax import config as config_lib
from ssd_jax import config_files, errors, renamed


def field(dotted):
    part, name = dotted.split(".")
    parts = {each.name: each.default_factory for each in dataclasses.fields(config_lib.Config)[1:]}
    return {each.name for each in dataclasses.fields(parts[part])}, name


@pytest.mark.parametrize(("old", "new"), renamed.FIELDS.items())
def test_every_new_name_is_a_field_and_no_old_one_is(old, new):
    fields, name = field(new)
    assert name in fields
    fields, name = field(old)
    assert name not in fields


def test_a_saved_config_of_version_0_1_is_read():
    old = {
        "model": {"gaps": [2, 5]},
        "data": {"max_bad_share": 0.2},
        "train": {
            **{"scale_rate_from": 16, "bias_rate": 1.5, "rates": ["conf*=2"], "drops": [10, 20]},
            **{"drop_factor": 0.5, "fresh_warmup_steps": 7},
        },
        "eval": {"flip": True, "sizes": [300, 400]},
    }
    config = config_files.from_mapping(old, where="config.json")
    assert config.model.unused_logits == (2, 5)
    assert config.data.max_unreadable_fraction == 0.2
    train = config.train
    assert (train.base_batch_size, train.bias_lr_multiplier) == (16, 1.5)
    assert (train.lr_multipliers, train.milestones) == (("conf*=2",), (10, 20))
    assert (train.lr_decay_factor, train.scratch_warmup_steps) == (0.5, 7)
    assert (config.eval.tta_flip, config.eval.tta_sizes) == (True, (300, 400))


def test_the_new_name_counts_where_both_are_given():
    both = {"train": {"drops": [1], "milestones": [2]}}
    assert config_files.from_mapping(both, where="config.json").train.milestones == (2,)


def test_a_wrong_value_under_an_old_name_is_one_line():
    with pytest.raises(errors.UserError, match=r"config\.train\.bias_lr_multiplier is 'x'"):
        config_files.from_mapping({"train": {"bias_rate": "x"}}, where="config.json")


@pytest.mark.parametrize(
    ("argument", "new", "note"),
    [
        ("--config.eval.flip", "--config.eval.tta_flip", "flip is now --config.eval.tta_flip"),
        ("--config.train.drops=(3,)", "--config.train.milestones=(3,)", "drops is now --config"),
        ("--onnx=a.onnx", "--weights=a.onnx", "--onnx is now --weights"),
        ("--pictures", "--images", "--pictures is now --images"),
        ("onnx", "onnx", ""),
        ("--weights=pictures", "--weights=pictures", ""),
    ],
)
def test_an_old_flag_is_taken_and_its_new_name_said(argument, new, note):
    got, said = renamed.flag(argument)
    assert got == new
    assert note in said
    assert bool(said) == bool(note)


def test_a_script_takes_an_old_flag_and_says_the_new_name():
    done = scripts.run(
        *("train.py", "--config", "configs/ssd300.py", "--config.train.drops=(3,)"),
        *("--noconfig.eval.flip", "--summary"),
    )
    assert done.returncode == 0, done.stderr
    assert "--config.train.drops is now --config.train.milestones" in done.stderr
    assert "--noconfig.eval.flip is now --noconfig.eval.tta_flip" in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [("drops", "it is now config.train.milestones"), ("batchsize", "ssd_jax/config.py lists")],
)
def test_a_config_file_that_sets_no_field_is_one_line(tmp_path, name, message):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssd_jax import config\n\n\ndef get_config():\n    cfg = config.Config()\n"
        f"    cfg.train.{name} = 3\n    return cfg\n"
    )
    assert scripts.refused(scripts.run("train.py", "--config", file, "--summary"), name, message)
