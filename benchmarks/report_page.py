"""The report of a large evaluation: how long it takes to write, its size, and its first screen.

  apt-get install chromium
  python benchmarks/report_page.py [--images 5000] [--detections 200] [--opened 5]

The objects and detections are made up: about seven objects of 80 classes in an image, most of them
found by several detections, and the rest at random. CPU seconds say what the page costs where the
machine is shared; the first screen is the browser's first contentful paint, the page opened anew
each time.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

from ssd_jax import priors
from ssd_jax.data import classes
from ssd_jax.evaluation import coco, evaluated, report

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
import browser

HEIGHT, WIDTH = 480, 640


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """`[count, 4]` in VOC's pixels."""
    sides = np.exp(rng.uniform(np.log(10), np.log(400), (count, 2)))
    corners = rng.uniform(1, np.array([WIDTH, HEIGHT]) - sides, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def make_image(
    rng: np.random.Generator, detections: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Detections and objects of one image."""
    count = rng.poisson(7)
    truth, labels = boxes(rng, count), rng.integers(1, 81, count).astype(np.int32)
    found, scores = boxes(rng, detections), rng.beta(0.3, 3, detections).astype(np.float32)
    names = rng.integers(1, 81, detections).astype(np.int32)
    for k in range(min(3 * count, detections)):  # near an object, most of its class
        sides = np.tile(truth[k % count, 2:] - truth[k % count, :2], 2)
        found[k] = truth[k % count] + rng.normal(0, 0.08, 4) * sides
        scores[k] = rng.beta(2, 2)
        names[k] = labels[k % count] if rng.random() < 0.8 else names[k]
    return (found, scores, names), (truth, labels, rng.random(count) < 0.02)


def evaluation(images: int, detections: int) -> evaluated.Evaluated:
    rng = np.random.default_rng(0)
    rows = {f"{k:06d}": make_image(rng, detections) for k in range(images)}
    return evaluated.Evaluated(
        config={},
        class_names=classes.COCO,
        sizes=dict.fromkeys(rows, (HEIGHT, WIDTH)),
        detections={name: found for name, (found, _) in rows.items()},
        ground_truth={name: truth for name, (_, truth) in rows.items()},
    )


def photo(name: str) -> np.ndarray:
    """Colors and some noise, which as JPEG is as large as a photograph."""
    rng = np.random.default_rng(int(name))
    coarse = rng.integers(0, 256, (HEIGHT // 40, WIDTH // 40, 3)).repeat(40, 0).repeat(40, 1)
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def write(path: pathlib.Path, source: evaluated.Evaluated) -> None:
    """The work of `evaluate.py` after the detections, without COCO's metrics."""
    evaluated.save(path.parent, source)
    report.write(
        path,
        title="A large evaluation",
        settings={"images": str(len(source.sizes))},
        coco=dict.fromkeys(coco.METRICS, 0.0),
        source=source,
        priors_cxcywh=priors.default_boxes(priors.SSD300_COCO),
        metrics=[{"step": k, "loss": 9 / (1 + k / 500)} for k in range(0, 120_000, 10)],
        samples=[photo(name) for name in list(source.sizes)[:16]],
        read_image=photo,
    )


def first_screens(path: pathlib.Path, count: int) -> list[float]:
    """Milliseconds to the first contentful paint of each opening; none without Chromium."""
    chromium = browser.find()
    if chromium is None:
        return []
    times = []
    with browser.start(chromium) as tab:
        for _ in range(count):
            tab.open(path)
            times.append(tab.first_paint())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=200)
    parser.add_argument("--opened", type=int, default=5)
    options = parser.parse_args()
    source = evaluation(options.images, options.detections)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "report.html"
        began, began_cpu = time.perf_counter(), time.process_time()
        write(path, source)
        wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        size, archive = (p.stat().st_size / 1e6 for p in (path, path.parent / evaluated.NAME))
        load = os.getloadavg()[0]
        times = first_screens(path, options.opened)
    print(
        f"{os.cpu_count()} cores, load {load:.1f} while writing, {os.getloadavg()[0]:.1f} after\n"
    )
    print("| images | detections | CPU, s | wall, s | page, MB | detections.npz, MB |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {options.images} | {options.images * options.detections} | {cpu:.1f} | {wall:.1f} "
        f"| {size:.1f} | {archive:.1f} |\n"
    )
    if times:
        print(
            f"first screen of {len(times)} openings: median {statistics.median(times):.0f} ms, "
            f"least {min(times):.0f} ms"
        )


if __name__ == "__main__":
    main()
