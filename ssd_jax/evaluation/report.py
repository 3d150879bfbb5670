r"""Runs on one page, which holds its pictures and curves itself and needs no network.

  python -m ssd_jax.evaluation.report compare RUN_A RUN_B [--output comparison.html] [--overwrite]

shows two evaluations side by side. RUN is the folder of train.py, or the --output of evaluate.py.
The pictures are those of the prepared dataset; where it is not prepared, boxes are shown alone.
"""

import argparse
import functools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ssd_jax import config as config_lib
from ssd_jax import console, errors
from ssd_jax.data import annotations, coverage
from ssd_jax.evaluation import analysis, compare, evaluated, gallery, page, tide, voc

_SHOTS = 12  # pictures in each gallery
_CONFUSIONS = 10  # the most frequent, in words
_COVERAGE_BINS = 10

_MEANINGS = {
    "classification": "box right, class wrong",
    "localisation": "class right, box wrong (IoU 0.1 to 0.5)",
    "both": "class and box wrong",
    "duplicate": "object found already",
    "background": "nothing there (IoU up to 0.1)",
    "missed": "object without detection",
}


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    settings: Mapping[str, str],
    voc07: voc.Result,
    area: voc.Result,
    coco: Mapping[str, float],
    source: evaluated.Evaluated,
    priors_cxcywh: np.ndarray | None = None,
    metrics: Sequence[Mapping[str, float | None]] = (),
    pictures: Sequence[np.ndarray] = (),
    read_picture: gallery.ReadPicture = lambda name: None,
) -> None:
    """Writes the report of a run; a file that is there is replaced.

    Args:
      path: Where to, such as `report.html`; its folder is there.
      title: Of the page.
      settings: What was run, name -> value.
      voc07: The evaluation by VOC2007's 11 points.
      area: The same detections by the area under the curve.
      coco: COCO's numbers in [0, 1]; negative where there is no such object.
      source: The detections and objects that all this was computed from.
      priors_cxcywh: `[P, 4]` default boxes of the network; None: their coverage isn't shown.
      metrics: Rows of a training log with `step` and any of `loss`, `learning_rate` and `mean_ap`.
      pictures: `[H, W, 3]` uint8 each, with detections, the last of the galleries.
      read_picture: Gives the pictures of mistakes; without, their boxes are shown alone.

    Raises:
      UserError: The file can't be written.
    """
    matches = voc.match(source.detections, source.ground_truth, class_names=source.class_names)
    labels = tide.label(matches)
    point = analysis.operating_point(matches)
    album = gallery.Album(source, matches, point.score, read_picture)
    opening = _headline(voc07, area, coco) + _reported(point) + page.settings(settings)
    sections = {
        "Average precision of each class": _classes(voc07, area),
        "Errors by kind": _errors(tide.costs(matches, labels), source.class_names),
        "Size and shape": _groups(matches),
        "Confusion": _confusion(matches, point),
        "Worst misses": gallery.misses(album, count=_SHOTS),
        "Most confident mistakes": gallery.mistakes(album, labels, count=_SHOTS),
        "Detections": page.sheet(pictures),
        "Precision by recall": _curves(area.curves),
        "Calibration": _calibration(analysis.calibration(matches)),
        "Default boxes": _coverage(source, matches, priors_cxcywh),
        "Training": _training(metrics),
        "COCO": page.tiles({name: page.share(value) for name, value in coco.items()}),
    }
    page.write(path, title, opening, sections)


def _headline(voc07: voc.Result, area: voc.Result, coco: Mapping[str, float]) -> str:
    return page.tiles(
        {
            "mAP, VOC07 (11 points)": page.share(voc07.mean_ap),
            "mAP, VOC10+ (area)": page.share(area.mean_ap),
            "AP, COCO (IoU 0.5 to 0.95)": page.share(coco["AP"]),
        }
    )


def _reported(point: analysis.OperatingPoint) -> str:
    if not point.f1:
        return page.note("No detection is right at any score.")
    return page.note(
        f"The score of the best F1 is {point.score:.2f}: from there on {point.precision:.0%} of "
        f"the detections are right, and {point.recall:.0%} of the objects are found (IoU over "
        "0.5). Where this page speaks of reported detections, it means those."
    )


def _classes(voc07: voc.Result, area: voc.Result) -> str:
    rows = [
        (
            name,
            str(area.curves[name].num_objects),
            page.share(ap),
            page.bar(ap),
            page.share(area.ap[name]),
        )
        for name, ap in voc07.ap.items()
    ]
    table = page.table(("class", "objects", "VOC07", "", "VOC10+"), rows)
    return table + page.note(
        "Objects marked difficult are not counted. Classes without objects are left out of the "
        "mean."
    )


def _errors(found: tide.Errors, class_names: Sequence[str]) -> str:
    if math.isnan(found.mean_ap):
        return page.note("There are no objects.")
    largest = max(found.cost.max(), 1e-12)
    rows = [
        (
            kind,
            f"{found.counts[k]:,}",
            page.points(found.cost[k]),
            page.bar(found.cost[k], largest=largest),
            page.points(found.step[k]),
        )
        for k, kind in enumerate(tide.KINDS)
    ]
    total = found.cost.sum(), found.step.sum()
    rows.append(
        ("all", f"{found.counts.sum():,}", page.points(total[0]), "", page.points(total[1]))
    )
    return (
        page.table(("error", "count", "costs", "", "in turn"), rows)
        + page.note("; ".join(f"{kind}: {meaning}" for kind, meaning in _MEANINGS.items()) + ".")
        + page.note(
            "Costs are points of mAP (area, IoU 0.5): what mAP would gain if that kind were "
            f"mended and all others stayed. These parts do not add up to the "
            f"{page.points(1 - found.mean_ap)} points that mAP lacks, since each is measured among "
            "the other errors: precision at a recall depends on all detections above it, so "
            "mending a miss gains little while wrong detections stand before it, and several "
            "errors about one object are mended by any one of them. In turn: what each adds after "
            "those above it are mended, which does add up, but would be shared out otherwise in "
            "another order. "
            f"Without any wrong detection mAP would gain {page.points(found.false_positives)}, "
            f"without any object that is not found {page.points(found.false_negatives)}. "
            "After TIDE (Bolya et al. 2020)."
        )
        + "<h3>What each kind costs a class alone</h3>\n"
        + compare.kinds_table(class_names, found.class_cost)
    )


def _groups(matches: voc.Matches) -> str:
    parts = []
    for heading, groups in (
        ("size", analysis.by_size(matches)),
        ("width : height", analysis.by_shape(matches)),
    ):
        rows = [
            (name, str(count), page.share(ap), page.bar(ap), page.share(recall))
            for name, count, ap, recall in zip(*groups, strict=True)
        ]
        parts.append(page.table((heading, "objects", "AP", "", "found"), rows))
    return "".join(parts) + page.note(
        "AP is the area under the curve (IoU 0.5), found is at any score. Small objects have an "
        "area of less than 32² pixels, large ones of 96² and more; an object has the shape of the "
        "nearest of these ratios, which are those of the default boxes."
    )


def _confusion(matches: voc.Matches, point: analysis.OperatingPoint) -> str:
    values = analysis.confusion(matches, score_threshold=point.score)
    if not values.any():
        return ""
    names = matches.class_names
    rows, columns = (*names, "background"), (*names, "not found")
    off = values * (1 - np.eye(len(values), dtype=int))
    off[-1], off[:, -1] = 0, 0
    frequent = np.argsort(-off, axis=None, kind="stable")[:_CONFUSIONS]
    words = [
        (f"{rows[k // len(values)]} taken for {columns[k % len(values)]}", str(off.flat[k]))
        for k in frequent
        if off.flat[k]
    ]
    return (
        page.heat_table(values, rows=rows, columns=columns, name="confusion")
        + page.note(
            "Rows are what is there, and add up to the objects; columns what is reported. The "
            "darker, the larger the share of its row. A reported detection takes the free object "
            "of any class that it overlaps most (IoU over 0.5), the best score first; what takes "
            "none, be it the second of an object, is of background."
        )
        + (page.table(("most frequent", "objects"), words) if words else "")
    )


def _curves(curves: Mapping[str, voc.Curve]) -> str:
    figures = [
        page.line_plot(name, [(one.recall, one.precision)], right=1.0, top=1.0)
        for name, one in curves.items()
        if one.num_objects
    ]
    return page.plots(figures, "10rem")


def _calibration(found: analysis.Calibration) -> str:
    if not found.counts.sum():
        return ""
    spans = [f"{k / 10:.1f} to {(k + 1) / 10:.1f}" for k in range(len(found.counts))]
    titles = [
        f"score {span}: {100 * precision:.0f} % of {count} right"
        for span, precision, count in zip(spans, found.precision, found.counts, strict=True)
    ]
    figures = [
        page.bar_plot(
            "share that is right, by score; the line is perfect calibration",
            found.precision,
            titles,
            diagonal=True,
        )
    ]
    rows = [
        (span, f"{count:,}", page.share(score), page.share(precision))
        for span, count, score, precision in zip(
            spans, found.counts, found.scores, found.precision, strict=True
        )
        if count
    ]
    return (
        page.plots(figures, "18rem")
        + page.table(("score", "detections", "mean score", "right"), rows)
        + page.note(
            f"Expected calibration error: {page.points(found.error)} points, the mean distance of "
            "score and share, weighted by the detections."
        )
    )


def _coverage(
    source: evaluated.Evaluated, matches: voc.Matches, priors_cxcywh: np.ndarray | None
) -> str:
    """How well the default boxes fit the objects."""
    objects = matches.objects
    counted = ~objects.values
    if priors_cxcywh is None or not counted.any():
        return ""
    sides = np.array(list(source.sizes.values()), np.float32)[:, ::-1]
    edges = annotations.from_voc_pixels(objects.boxes) / np.tile(sides[objects.image], 2)
    best = coverage.best_iou(edges[counted].astype(np.float32), priors_cxcywh)
    counts = np.histogram(best, _COVERAGE_BINS, (0, 1))[0]
    titles = [
        f"IoU {k / 10:.1f} to {(k + 1) / 10:.1f}: {count} objects" for k, count in enumerate(counts)
    ]
    histogram = page.bar_plot(
        "share of the objects by the IoU of their best default box",
        counts / counts.sum(),
        titles,
        top=max(counts.max() / counts.sum(), 1e-12),
    )
    boxes, labels = objects.boxes[counted], objects.labels[counted]
    groups = (
        ("all", ("all objects",), np.zeros(len(best), int)),
        ("size", coverage.SIZES, coverage.size_of(voc.area(boxes))),
        ("width : height", analysis.SHAPES, analysis.shape_of(boxes)),
        ("class", matches.class_names, labels - 1),
    )
    tables = [_covered_table(heading, names, member, best) for heading, names, member in groups]
    return page.plots([histogram], "18rem") + "".join(tables)


def _covered_table(heading: str, names: Sequence[str], member: np.ndarray, best: np.ndarray) -> str:
    rows = []
    for index, name in enumerate(names):
        mine = best[member == index]
        covered = float(np.mean(mine >= coverage.COVERED)) if mine.size else math.nan
        rows.append((name, str(mine.size), page.share(covered), page.bar(covered)))
    return page.table((heading, "objects", "with a box of IoU 0.5", ""), rows)


def _training(metrics: Sequence[Mapping[str, float | None]]) -> str:
    figures = []
    for key, name in (("loss", "loss"), ("learning_rate", "learning rate"), ("mean_ap", "mAP")):
        pairs = [(row["step"], row.get(key)) for row in metrics]
        known = [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(y)]
        if known:
            steps, values = np.array(known, np.float64).T
            top = 1.0 if key == "mean_ap" else max(values.max(), 1e-12)
            right = max(steps.max(), 1.0)
            figures.append(
                page.line_plot(f"{name} by step", [(steps, values)], right=right, top=top)
            )
    return page.plots(figures, "18rem")


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
    command.add_argument("--no_pictures", action="store_true", help="don't open the dataset")
    command.add_argument(
        "--cache_dir",
        default=config_lib.DataConfig().cache_dir,
        help="where the dataset is prepared; by default SSD_JAX_CACHE, or ~/.cache/ssd_jax",
    )
    return console.run(functools.partial(_compare, parser.parse_args(argv)))


def _compare(arguments: argparse.Namespace) -> None:
    names, output = tuple(map(str, arguments.runs)), arguments.output.resolve()
    if os.path.lexists(arguments.output) and not arguments.overwrite:
        raise errors.UserError(
            f"{arguments.output} is there already; give another --output, or --overwrite"
        )
    a, b = (evaluated.load(folder) for folder in arguments.runs)
    compare.check(a, b, names=names)
    read = _no_picture if arguments.no_pictures else _pictures_of(b, arguments.cache_dir)
    compare.write(output, a, b, names=names, read_picture=read)
    console.stdout.print(console.plain(arguments.output))


def _pictures_of(source: evaluated.Evaluated, cache_dir: str) -> gallery.ReadPicture:
    """The way to the pictures of an evaluation; where there is none, it is said why.

    Args:
      source: The evaluation, whose config says which dataset.
      cache_dir: Where that is prepared.
    """
    from ssd_jax.evaluation import run  # which imports this module

    try:
        config = config_lib.from_mapping(source.config, where=evaluated.NAME)
        config.data.cache_dir = cache_dir
        split = run.open_split(config.data, config.data.eval_split, prepare=False)
        return run.picture_reader(split, list(source.sizes))
    except Exception as error:  # the config may be that of another version
        reason = " ".join(str(error).split())
        console.warn(f"the page shows boxes without pictures: {reason}")
        return _no_picture


def _no_picture(name: str) -> None:
    """Where the pictures can't be had, their boxes are shown alone."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
