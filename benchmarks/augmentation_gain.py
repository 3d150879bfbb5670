r"""Gain of the paper's augmentation: the quickstart with "ssd" and with "flip", equal steps.

  python benchmarks/augmentation_gain.py --workdir runs/gain [--seeds 0 1 2] [--steps 1000] \
    [--images 100] [--test-images 200] [--test-seed 9]

Augmentation is for those who see each image often: the paper's 120,000 steps of 32 show each of
its 16,551 some 230 times, the quickstart's 500 of 8 each of its 2,000 twice. So both train on the
first `--images` of them alone, each of which 1,000 steps show 80 times. They are tested on the
usual built-in images and on others with small and cropped objects, which the training images
seldom have: of a half to a sixth of the usual size, and most may reach over the image's edge.
Finished runs in the workdir are not trained again, so other test images cost their tests alone.
"""

import argparse
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np

from configs import quickstart
from ssd_jax import cli, config, load
from ssd_jax import detector as detectors
from ssd_jax.data import datasets, synthetic, synthetic_scenes
from ssd_jax.evaluation import run as evaluation
from ssd_jax.training import loop

SIZES = (0.15, 0.1, 0.075, 0.05)  # medians, of the image's shorter side; the usual one is 0.3
CUT_SHARE = 0.7  # of the objects may reach over the edge; usually 0.15


def small_and_cropped(size: float, images: int, seed: int, folder: Path) -> datasets.Split:
    """A test set of objects of a size, made at first use."""
    if not folder.exists():
        with mock.patch.multiple(synthetic_scenes, SIZE_MEDIAN=size, CUT_SHARE=CUT_SHARE):
            for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
                (folder / part).mkdir(parents=True)
            share = {"first": 0, "step": 1, "parent": os.getppid()}
            synthetic._write_share(str(folder), (0, images), seed=seed, **share)
            names = "".join(f"{synthetic._name('test', n)}\n" for n in range(images))
            (folder / "ImageSets/Main/test.txt").write_text(names)
    cache = config.DataConfig().cache_dir
    return datasets.load("folder", "test", path=str(folder), cache_dir=cache)


def trained(policy: str, seed: int, steps: int, images: int, place: Path) -> detectors.Detector:
    cfg = quickstart.get_config()
    cfg.seed, cfg.data.augment, cfg.train.steps = seed, policy, steps
    cfg.data.train_split = f"train[:{images}]"
    if not (place / "evaluation.json").exists():
        loop.train(cfg, place)
    return load.load_detector(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--test-images", type=int, default=200)
    parser.add_argument("--test-seed", type=int, default=9)
    options = parser.parse_args()
    cli.split_cpu(quickstart.get_config().train.cpu_devices)
    hard = {}
    for size in SIZES:
        folder = options.workdir / f"size{size}-{options.test_images}-{options.test_seed}"
        hard[size] = small_and_cropped(size, options.test_images, options.test_seed, folder)
    found: dict[str, list[list[float]]] = {"ssd": [], "flip": []}
    tests = ("usual", *map(str, SIZES))
    print(f"{options.steps} steps on {options.images} images; mAP (VOC07) by the objects' size\n")
    print(f"| seed | augmentation | {' | '.join(tests)} |\n|{'---|' * (2 + len(tests))}")
    for seed in options.seeds:
        for policy, rows in found.items():
            place = options.workdir / f"{policy}-{seed}-{options.steps}-{options.images}"
            detector = trained(policy, seed, options.steps, options.images, place)
            usual = json.loads((place / "evaluation.json").read_text())["mean_ap_voc07"]
            others = [evaluation.evaluate(detector, split).voc07.mean_ap for split in hard.values()]
            rows.append([usual, *others])
            numbers = " | ".join(f"{value:.4f}" for value in rows[-1])
            print(f"| {seed} | {policy} | {numbers} |", flush=True)
    print("\nssd less flip, mean and least:")
    gains = np.subtract(found["ssd"], found["flip"])  # [seeds, tests]
    for test, mean, least in zip(tests, gains.mean(0), gains.min(0), strict=True):
        print(f"  {test}: {mean:+.4f}, {least:+.4f}")


if __name__ == "__main__":
    main()
