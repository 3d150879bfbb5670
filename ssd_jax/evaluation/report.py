r"""The report of an evaluation, one page; and the command that compares two evaluations.

  python -m ssd_jax.evaluation.report compare RUN_A RUN_B [--output comparison.html] [--overwrite]

shows two evaluations side by side. RUN is the folder of train.py, or the --output of evaluate.py.
The images are those of the prepared dataset; where it is not prepared, boxes are shown alone.
"""

import argparse
import functools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax import build, config_files, console, errors
from ssd_jax import config as config_lib
from ssd_jax.data import annotations, coverage
from ssd_jax.evaluation import (
    analysis,
    charts,
    compare,
    evaluated,
    gallery,
    page,
    tide,
    voc,
)

_SHOTS = 12  # images in each gallery
_CONFUSIONS = 10  # the most frequent, in words
_COVERAGE_BINS = 10


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    settings: Mapping[str, str],
    source: evaluated.Evaluated,
    coco: Mapping[str, float],
    priors_cxcywh: np.ndarray | None = None,
    metrics: Sequence[Mapping[str, float | None]] = (),
    samples: Sequence[np.ndarray] = (),
    read_image: gallery.ReadImage = lambda name: None,
) -> None:
    """Writes the report of a run; an existing file is replaced.

    Args:
      path: Path of the page, such as `report.html`; its folder exists.
      title: The title of the page.
      settings: Settings of the run by name.
      source: The detections and objects that the figures are computed from.
      coco: COCO's numbers in [0, 1]; negative where there is no such object.
      priors_cxcywh: `[P, 4]` default boxes of the network; None: their coverage isn't shown.
      metrics: Rows of a training log with `step` and any of `loss`, `learning_rate` and `mean_ap`.
      samples: Images with detections drawn on them, `[H, W, 3]` uint8 each.
      read_image: Gives the images of the galleries; without, their boxes are shown alone.

    Raises:
      UserError: If the file can't be written.
    """
    one = analysis.analyze(source)
    matches = one.matches
    values = {
        "title": title,
        "settings": settings,
        "one": one,
        "kinds": tide.KINDS,
        "class_costs": compare.class_costs(source.class_names, one.errors.class_cost),
        "groups": {
            "size": list(zip(*analysis.by_size(matches), strict=True)),
            "width : height": list(zip(*analysis.by_shape(matches), strict=True)),
        },
        "confusion": _confusion(matches, one.point),
        "false_negatives": gallery.false_negatives(one, read_image, count=_SHOTS),
        "false_positives": gallery.false_positives(one, read_image, count=_SHOTS),
        "samples": [page.embed(image) for image in samples],
        "curves": [
            charts.Plot(name, lines=[charts.points(curve.recall, curve.precision)])
            for name, curve in one.area.curves.items()
            if curve.num_objects
        ],
        "calibration": _calibration(analysis.calibration(matches)),
        "coverage": _coverage(source, matches, priors_cxcywh),
        "training": list(_training(metrics)),
        "coco": coco,
    }
    page.write(path, "report.html.j2", values)


def _confusion(matches: voc.Assignment, point: analysis.OperatingPoint) -> dict[str, Any] | None:
    """Returns the confusion matrix and its most frequent confusions; None if it is empty."""
    counts = analysis.confusion(matches, score_threshold=point.score)
    if not counts.any():
        return None
    rows, columns = (*matches.class_names, "background"), (*matches.class_names, "not detected")
    confused = counts * (1 - np.eye(len(counts), dtype=int))
    confused[-1], confused[:, -1] = 0, 0
    frequent = np.argsort(-confused, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(k), len(counts)) for k in frequent if confused.flat[k]]
    return {
        "rows": rows,
        "columns": columns,
        "counts": counts.tolist(),
        "frequent": [(rows[i], columns[k], counts[i, k]) for i, k in pairs],
    }


def _calibration(found: analysis.Calibration) -> dict[str, Any] | None:
    if not found.counts.sum():
        return None
    spans = [f"{k / 10:.1f} to {(k + 1) / 10:.1f}" for k in range(len(found.counts))]
    rows = list(zip(spans, found.counts, found.scores, found.precision, strict=True))
    bars = [
        (precision, f"score {span}: {100 * precision:.0f} % of {count} are correct")
        for span, count, _, precision in rows
    ]
    name = "precision by score; the line is perfect calibration"
    return {
        "plot": charts.Plot(name, bars=bars, diagonal=True),
        "rows": [row for row in rows if row[1]],
        "error": found.error,
    }


def _coverage(
    source: evaluated.Evaluated, matches: voc.Assignment, priors_cxcywh: np.ndarray | None
) -> dict[str, Any] | None:
    """Returns how well the default boxes cover the objects; None without either."""
    objects = matches.objects
    counted = ~objects.values
    if priors_cxcywh is None or not counted.any():
        return None
    sides = np.array(list(source.sizes.values()), np.float32)[:, ::-1]
    edges = annotations.from_voc_pixels(objects.boxes) / np.tile(sides[objects.image], 2)
    best = coverage.best_iou(edges[counted].astype(np.float32), priors_cxcywh)
    boxes, labels = objects.boxes[counted], objects.labels[counted]
    counts = np.histogram(best, _COVERAGE_BINS, (0, 1))[0]
    bars = [
        (count / len(best), f"IoU {k / 10:.1f} to {(k + 1) / 10:.1f}: {count} objects")
        for k, count in enumerate(counts)
    ]
    name = "share of the objects by the IoU of their best default box"
    groups = {
        "all": (("all objects",), np.zeros(len(best), int)),
        "size": (coverage.SIZES, coverage.size_of(voc.area(boxes))),
        "width : height": (analysis.SHAPES, analysis.shape_of(boxes)),
        "class": (matches.class_names, labels - 1),
    }
    return {
        "plot": charts.Plot(name, top=max(bars)[0], bars=bars),
        "groups": {heading: _covered(*group, best) for heading, group in groups.items()},
    }


def _covered(
    names: Sequence[str], member: np.ndarray, best: np.ndarray
) -> list[tuple[str, int, float]]:
    """(name, objects, share of them that is covered) of each group; NaN without objects."""
    groups = [best[member == index] for index in range(len(names))]
    return [
        (name, mine.size, float(np.mean(mine >= coverage.COVERED)) if mine.size else math.nan)
        for name, mine in zip(names, groups, strict=True)
    ]


def _training(metrics: Sequence[Mapping[str, float | None]]) -> Iterator[charts.Plot]:
    for key, name in (("loss", "loss"), ("learning_rate", "learning rate"), ("mean_ap", "mAP")):
        pairs = [(row["step"], row.get(key)) for row in metrics]
        known = [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(y)]
        if known:
            steps, values = np.array(known, np.float64).T
            top = 1.0 if key == "mean_ap" else max(values.max(), 1e-12)
            right = max(steps.max(), 1.0)
            line = charts.points(steps, values, right=right, top=top)
            yield charts.Plot(f"{name} by step", right, top, lines=[line])


def main(argv: Sequence[str]) -> int:
    """Writes the page that the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ssd_jax.evaluation.report", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("compare", help="two evaluations side by side")
    command.add_argument("runs", nargs=2, metavar="RUN", type=Path, help="folder of an evaluation")
    command.add_argument("--output", type=Path, default=Path("comparison.html"))
    command.add_argument("--overwrite", action="store_true", help="replace an --output")
    command.add_argument(
        "--no_images", "--no_images", action="store_true", help="don't open the dataset"
    )
    command.add_argument(
        "--cache_dir",
        default=config_lib.DataConfig().cache_dir,
        help="where the dataset is prepared; by default SSD_JAX_CACHE, or ~/.cache/ssd_jax",
    )
    return console.run(functools.partial(_compare, parser.parse_args(argv)))


def _compare(arguments: argparse.Namespace) -> None:
    names, output = tuple(map(str, arguments.runs)), arguments.output.resolve()
    if os.path.lexists(arguments.output) and not arguments.overwrite:
        raise errors.UserError(f"{arguments.output} exists; give another --output, or --overwrite")
    a, b = (evaluated.load(folder) for folder in arguments.runs)
    compare.check(a, b, names=names)
    read = _no_image if arguments.no_images else _images_of(b, arguments.cache_dir)
    compare.write(output, a, b, names=names, read_image=read)
    console.stdout.print(console.plain(arguments.output))


def _images_of(source: evaluated.Evaluated, cache_dir: str) -> gallery.ReadImage:
    """Reads the images of an evaluation; if they are unavailable, a warning gives the reason.

    Args:
      source: The evaluation, with the config of the dataset.
      cache_dir: Folder that it is prepared in.
    """
    try:
        config = config_files.from_mapping(source.config, where=evaluated.NAME)
        config.data.cache_dir = cache_dir
        split = build.split(config.data, config.data.eval_split, prepare=False)
        return gallery.image_reader(split, list(source.sizes), config.data)
    except Exception as error:  # the config may be that of another version
        reason = " ".join(str(error).split())
        console.warn(f"the page shows boxes without images: {reason}")
        return _no_image


def _no_image(name: str) -> None:
    """Shows boxes alone."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
