"""A few steps of a tiny network, by one process or as one of several.

  python tests/train_worker.py PORT PROCESSES PROCESS_ID DEVICES PARALLEL OUT.npz

The rate is so small that no layer leaves the neighborhood where its gradient is smooth: at the
quickstart's own, rounding doubles with each step, whatever splits the batch.
"""

import functools
import itertools
import sys

import jax
import numpy as np
import optax
import tiny_backbone

from ssd_jax import augment, distributed, optimizer
from ssd_jax.data import loader
from ssd_jax.models import ssd
from ssd_jax.training import step

STEPS, BATCH, SIZE = 20, 8, (tiny_backbone.SIDE, tiny_backbone.SIDE)
RATE = 1e-7


def records():
    """Blots of color with up to three objects, as the loader takes them."""
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    made = []
    for index in range(24):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(small).resize((160, 120)).save(data, "PNG")
        low = rng.uniform(0, 0.5, (index % 4, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, low.shape)], 1)
        made.append(
            {
                "image": data.getvalue(),
                "name": f"{index}.png",
                "boxes": boxes.astype(np.float32),
                "labels": rng.integers(1, 6, len(boxes)).astype(np.int32),
                "difficult": np.zeros(len(boxes), bool),
                "crowd": np.zeros(len(boxes), bool),
                "degenerate": np.zeros(len(boxes), bool),
            }
        )
    return made


def run(devices, parallel="shard_map", steps=STEPS):
    """Parameters before and after, by name."""
    mesh = step.make_mesh(devices)
    model = tiny_backbone.network(num_classes=6)
    opt = optimizer.make_optimizer(optax.constant_schedule(RATE))
    train_step = step.make_train_step(
        model,
        opt,
        prepare=functools.partial(
            step.prepare,
            priors_cxcywh=ssd.default_boxes(model, SIZE),
            transform=functools.partial(augment.augment, size=SIZE, policy="flip"),
        ),
        over_devices=functools.partial(getattr(step, f"by_{parallel}"), mesh=mesh),
    )
    state = step.init_state(model, opt, SIZE, 0)
    before = flat(state.params)
    state = jax.device_put(state, step.replicated(mesh))
    batches = loader.training_batches(
        records(),
        batch_size=BATCH,
        max_objects=4,
        seed=0,
        decoding=loader.Decoding(160),
        shard=loader.Shard(jax.process_index(), jax.process_count()),
    )
    for batch in itertools.islice(batches, steps):
        state, metrics = train_step(state, step.shard_batch(batch, mesh))
        assert float(metrics["skipped"]) == 0
    return before, flat(state.params)


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def main(port, processes, process_id, devices, parallel, out):
    jax.config.update("jax_num_cpu_devices", int(devices))
    distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process_id), timeout=120)
    _, after = run(jax.devices(), parallel)
    if distributed.is_primary():
        np.savez(out, **after)


if __name__ == "__main__":
    main(*sys.argv[1:])
