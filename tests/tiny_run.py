"""Runs of a tiny network in processes of their own, and what they leave.

They only flip the images: to compile all of the paper's augmentation takes longer than the rest.
"""

import dataclasses
import os
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import scripts
import tiny_backbone

from ssd_jax import config as config_lib

ROOT = Path(__file__).parent.parent

_CONFIG = """
import sys

sys.path.append({tests!r})
import tiny_backbone
from ssd_jax import config
from ssd_jax.data import prepared

prepared.SYNTHETIC = {{"train": 12, "test": 7, "seed": 0}}


def get_config():
    cfg = config.Config()
    cfg.model, cfg.data.augment = config.ModelConfig(**{model!r}), {augment!r}
    cfg.data.dataset, cfg.data.train_split, cfg.data.eval_split = "synthetic", "train", "test"
    cfg.data.canvas, cfg.data.cache_dir = 160, {cache!r}
    cfg.train.steps, cfg.train.batch_size, cfg.train.cpu_devices = {steps}, 4, {devices}
    cfg.train.learning_rate, cfg.train.scratch_warmup_steps = 1e-4, 0
    cfg.train.ema_decay = 0.9
    cfg.train.log_every = cfg.train.checkpoint_every = 1
    cfg.train.eval_every, cfg.eval.batch_size = 1_000_000, 4
    return cfg
"""


# A VGG an eighth as wide, with all of the paper's augmentation, for one case of each kind.
NARROW = {"model": {"width": 0.125}, "augment": "ssd"}
_SMALL = {"model": tiny_backbone.SMALL, "augment": "flip"}


def write_config(folder, *, steps, devices, network=_SMALL):
    """A config file for `train.py`; what runs share is cached in its folder."""
    path = Path(folder) / "tiny.py"
    fields = {"tests": str(Path(__file__).parent), "cache": str(path.parent / "cache"), **network}
    path.write_text(_CONFIG.format(steps=steps, devices=devices, **fields))
    return path


def config(cache, *, network=_SMALL):
    """Four steps of a tiny network on built-in images, to train in this process."""
    made = config_lib.Config()
    made.model = config_lib.ModelConfig(**network["model"])
    made.data = config_lib.DataConfig(
        dataset="synthetic",
        train_split="train",
        eval_split="test",
        augment=network["augment"],
        canvas=160,
        cache_dir=str(cache),
    )
    made.train = dataclasses.replace(
        made.train,
        steps=4,
        batch_size=8,
        learning_rate=1e-4,
        scratch_warmup_steps=0,
        log_every=1,
        eval_every=4,
        checkpoint_every=2,
    )
    made.eval = dataclasses.replace(made.eval, batch_size=8)
    return made


def start(*command, cwd=ROOT, **options):
    """A Python process, without the devices that conftest.py gives to the tests."""
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return scripts.start(*command, cwd=cwd, env={**own, "PYTHONPATH": str(ROOT)}, **options)


def start_training(config_file, workdir, *arguments, **options):
    return start("train.py", "--config", config_file, "--workdir", workdir, *arguments, **options)


def ends(processes, timeout=300):
    """Exit status and stderr of each."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [(one.returncode, err) for one, (_, err) in zip(processes, outputs, strict=True)]


def steps_saved(workdir):
    """Numbers of the checkpoints that are committed."""
    folder = Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def wait_for_checkpoint(workdir, step, processes):
    """Until one of that step or later is committed; the processes have to live until then."""
    while max(steps_saved(workdir), default=0) < step:
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.02)


def arrays_of(workdir, step):
    """All of a checkpoint's state, by file and name."""
    folder = (Path(workdir) / "checkpoints" / str(step)).absolute()
    items = [name for name in ("params", "ema", "training") if (folder / name).is_dir()]
    trees = {name: _restored(folder / name) for name in items}
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _restored(folder):
    """Whatever devices it was saved from, on the first of this process."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.StandardCheckpointHandler().metadata(folder).tree,
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, like)


def assert_same(result, expected):
    """Bitwise, in every leaf."""
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(result[name], values, err_msg=name)
