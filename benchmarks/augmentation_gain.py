"""What the paper's augmentation is worth: the quickstart with "ssd" and with "flip", equal steps.

  python benchmarks/augmentation_gain.py --workdir runs/gain [--seeds 0 1 2] [--steps 500]

Both are tested on built-in pictures with small and cropped objects (`HARD`), which the training
pictures seldom have, and on the usual ones. Finished runs in the workdir are not trained again.
"""

import argparse
import json
import statistics
from pathlib import Path
from unittest import mock

from configs import quickstart
from ssd_jax import cli, config, detector
from ssd_jax.data import datasets, synthetic
from ssd_jax.evaluation import run as evaluation
from ssd_jax.training import loop

# Objects of half the usual size, most of which may reach over the picture's edge.
HARD = {"SIZE_MEDIAN": 0.15, "CUT_SHARE": 0.7}
PICTURES = 200


def hard_pictures(folder: Path) -> datasets.Split:
    """The test set, made at first use."""
    if not folder.exists():
        with mock.patch.multiple(synthetic, **HARD):
            for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
                (folder / part).mkdir(parents=True)
            synthetic._write_share(str(folder), (0, PICTURES), seed=9, first=0, step=1)
            names = "".join(f"{synthetic._name('test', n)}\n" for n in range(PICTURES))
            (folder / "ImageSets/Main/test.txt").write_text(names)
    cache = config.DataConfig().cache_dir
    return datasets.load("folder", "test", path=str(folder), cache_dir=cache)


def trained(policy: str, seed: int, steps: int, workdir: Path) -> detector.Detector:
    cfg = quickstart.get_config()
    cfg.seed, cfg.data.augment, cfg.train.steps = seed, policy, steps
    place = workdir / f"{policy}-{seed}-{steps}"
    if not (place / "evaluation.json").exists():
        loop.train(cfg, place)
    return detector.load_detector(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=quickstart.get_config().train.steps)
    options = parser.parse_args()
    cli.split_cpu(quickstart.get_config().train.cpu_devices)
    hard = hard_pictures(options.workdir / "hard")
    rows = []
    for seed in options.seeds:
        row = {"seed": seed}
        for policy in ("ssd", "flip"):
            found = trained(policy, seed, options.steps, options.workdir)
            place = options.workdir / f"{policy}-{seed}-{options.steps}" / "evaluation.json"
            row[f"{policy}, usual"] = json.loads(place.read_text())["mean_ap_voc07"]
            row[f"{policy}, hard"] = evaluation.evaluate(found, hard).voc07.mean_ap
        rows.append(row)
        print(row, flush=True)
    print(f"\n{options.steps} steps; mAP (VOC07)\n\n| {' | '.join(rows[0])} |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")
    gains = [row["ssd, hard"] - row["flip, hard"] for row in rows]
    print(f"\nssd less flip, hard: {statistics.mean(gains):+.4f} ({min(gains):+.4f} at least)")


if __name__ == "__main__":
    main()
