"""Gain of pretrained early layers for SSD300, frozen, over training from scratch.

  python benchmarks/frozen_backbone.py --archives FOLDER --weights vgg16_conv1_to_conv3.npz \
      --workdir runs/frozen [--steps 300] [--batch-size 4]

Trains both for the same steps with the same rates on VOC 2007 train and compares their losses; then
times the step with those layers frozen and trainable, in turns. A stopped run resumes.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax

from configs import ssd300_voc07
from ssd_jax import augment, build, optimizer
from ssd_jax import config as config_lib
from ssd_jax.training import data as data_lib
from ssd_jax.training import loop
from ssd_jax.training import step as step_lib

FROZEN = ("vgg16/conv[123]_*",)


def configured(options: argparse.Namespace, *, real: bool) -> config_lib.Config:
    """Of one of the two runs, which differ in the weights alone."""
    cfg = ssd300_voc07.get_config()
    cfg.data.archives = options.archives
    cfg.data.train_split, cfg.data.eval_split = "2007/train", "2007/val"
    cfg.train.steps, cfg.train.batch_size = options.steps, options.batch_size
    # SGD at the paper's learning rate hardly moves in so few steps, and diverges from scratch.
    cfg.train.optimizer, cfg.train.learning_rate, cfg.train.clip_norm = "adam", 1e-4, 10.0
    cfg.train.warmup_steps = cfg.train.scratch_warmup_steps = options.steps // 6
    cfg.train.log_every, cfg.train.checkpoint_every = 1, 25
    cfg.eval.max_images = cfg.eval.batch_size = options.batch_size
    if real:
        cfg.model.pretrained = options.weights
        cfg.train.freeze = FROZEN
    return cfg


def losses(workdir: Path) -> list[float]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def step_of(cfg: config_lib.Config, freeze: tuple[str, ...]) -> Callable[[], float]:
    """Seconds of one step on a batch of the data, compiled before."""
    data = data_lib.open_splits(cfg.data)
    mesh = step_lib.make_mesh()
    model = build.model(cfg.model, len(data.train.class_names))
    opt = optimizer.make_optimizer(lambda _: 1e-4)
    side = build.input_size(cfg.model)
    state = step_lib.init_state(model, opt, side, cfg.seed, freeze=freeze)
    box = [jax.device_put(state, step_lib.replicated(mesh))]
    step = step_lib.make_train_step(
        model,
        opt,
        prepare=functools.partial(
            step_lib.prepare,
            priors_cxcywh=build.priors(cfg.model, model),
            transform=functools.partial(augment.augment, size=side),
        ),
        over_devices=functools.partial(step_lib.by_shard_map, mesh=mesh),
        freeze=freeze,
    )
    batch = step_lib.shard_batch(next(data_lib.batches(cfg, data.train, 0)), mesh)

    def run() -> float:
        start = time.perf_counter()
        box[0], metrics = step(box[0], batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archives", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    frozen, learning = (step_of(configured(options, real=False), f) for f in (FROZEN, ()))
    pairs = [(frozen(), learning()) for _ in range(options.runs)]
    ratio = statistics.median(one / other for one, other in pairs)
    seconds = [statistics.median(values) for values in zip(*pairs, strict=True)]
    print(
        f"\nbatch {options.batch_size}: conv1_1 to conv3_3 frozen {seconds[0]:.2f} s a step, ",
        end="",
    )
    print(f"learning {seconds[1]:.2f} s; median of ratios {ratio:.2f}", flush=True)
    print(f"\n| {options.steps} steps | first 20 | last 50 |\n|---|---|---|")
    for name, real in (("real conv1_1 to conv3_3, frozen", True), ("from nothing", False)):
        place = options.workdir / ("real" if real else "nothing")
        if len(losses(place) if place.exists() else []) < options.steps:
            loop.train(configured(options, real=real), place)
        found = losses(place)
        means = [statistics.mean(part) for part in (found[:20], found[-50:])]
        print(f"| {name} | {means[0]:.2f} | {means[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
