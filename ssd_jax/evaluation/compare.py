"""Two evaluations of the same images side by side, on one page."""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssd_jax import errors
from ssd_jax.evaluation import analysis, charts, evaluated, gallery, page, tide

_SHOTS = 8  # images that are correct on one side alone, for either side


def check(a: evaluated.Evaluated, b: evaluated.Evaluated, *, names: tuple[str, ...]) -> None:
    """Checks that two evaluations can be compared.

    Raises:
      UserError: Their classes, images or objects differ.
    """
    both = f"{names[0]} and {names[1]}"
    if a.class_names != b.class_names:
        raise errors.UserError(f"{both} have different classes: compare runs of one dataset")
    if list(a.sizes) != list(b.sizes):
        raise errors.UserError(
            f"{both} were evaluated on different images ({len(a.sizes)} and {len(b.sizes)}): "
            "evaluate both on one split, with the same config.eval.max_images"
        )
    for name, theirs in a.ground_truth.items():
        if not all(map(np.array_equal, theirs, b.ground_truth[name])):
            raise errors.UserError(
                f"{both} were evaluated with different objects in {name}: evaluate both again"
            )


def flipped(a: analysis.Analysis, b: analysis.Analysis) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images that are correct in one evaluation only, worst first.

    An image is correct if all its objects are detected and nothing wrong is reported, each at its
    own side's threshold.

    Returns:
      Those that are correct in `a` alone, and those that are correct in `b` alone.
    """
    only_a = np.flatnonzero((a.wrong == 0) & (b.wrong > 0))
    only_b = np.flatnonzero((b.wrong == 0) & (a.wrong > 0))
    return (
        only_a[np.argsort(-b.wrong[only_a], kind="stable")],
        only_b[np.argsort(-a.wrong[only_b], kind="stable")],
    )


def config_differences(
    a: evaluated.Evaluated, b: evaluated.Evaluated
) -> dict[str, tuple[str, str]]:
    """Fields that differ: dotted name -> both values, "absent" if one lacks it."""
    theirs, ours = evaluated.settings(a.config), evaluated.settings(b.config)
    absent = dict.fromkeys([*theirs, *ours], "absent")
    theirs, ours = {**absent, **theirs}, {**absent, **ours}
    return {name: (theirs[name], ours[name]) for name in absent if theirs[name] != ours[name]}


def write(
    path: str | os.PathLike[str],
    a: evaluated.Evaluated,
    b: evaluated.Evaluated,
    *,
    names: tuple[str, ...],
    read_image: gallery.ReadImage = lambda name: None,
) -> None:
    """Writes the page that compares two evaluations accepted by `check`.

    Args:
      path: Path of the page; an existing file is replaced.
      a: The first evaluation.
      b: The second; differences are `b` minus `a`.
      names: Their names on the page.
      read_image: Gives the images; without, their boxes are shown alone.

    Raises:
      UserError: If the file can't be written.
    """
    first, second = analysis.analyze(a), analysis.analyze(b)
    only_a, only_b = flipped(first, second)
    both = int(np.sum((first.wrong == 0) & (second.wrong == 0)))
    values = {
        "title": f"{names[0]} and {names[1]}",
        "names": names,
        "a": first,
        "b": second,
        "num_images": len(a.sizes),
        "correct": {
            "both": both,
            "only_a": len(only_a),
            "only_b": len(only_b),
            "neither": len(a.sizes) - both - len(only_a) - len(only_b),
        },
        "differences": config_differences(a, b),
        "classes": _classes(first, second),
        "kinds": tide.KINDS,
        "class_costs": class_costs(
            a.class_names, second.errors.class_cost - first.errors.class_cost
        ),
        "groups": list(_groups(first, second)),
        "only_a": _shots(first, second, only_a, read_image),
        "only_b": _shots(first, second, only_b, read_image),
        "curves": _curves(first, second),
    }
    page.write(path, "comparison.html.j2", values)


def class_costs(class_names: Sequence[str], costs: np.ndarray) -> list[tuple[str, list[float]]]:
    """Points of AP `[C, 6]` by class and kind of error, without classes that have no objects."""
    rows = zip(class_names, costs.tolist(), strict=True)
    return [(name, row) for name, row in rows if not np.isnan(row).all()]


def _classes(a: analysis.Analysis, b: analysis.Analysis) -> dict[str, Any]:
    rows = [
        (name, a.area.curves[name].num_objects, a.area.ap[name], b.area.ap[name])
        for name in a.source.class_names
    ]
    known = [row for row in rows if row[1]]
    known.sort(key=lambda row: -abs(row[3] - row[2]))
    mean = ("mAP", sum(row[1] for row in known), a.area.mean_ap, b.area.mean_ap)
    return _changes("class", [mean, *known])


def _groups(a: analysis.Analysis, b: analysis.Analysis) -> Iterator[dict[str, Any]]:
    for heading, figures in (("size", analysis.by_size), ("width : height", analysis.by_shape)):
        theirs, ours = figures(a.matches), figures(b.matches)
        rows = zip(theirs.names, theirs.objects, theirs.mean_ap, ours.mean_ap, strict=True)
        yield _changes(heading, list(rows))


def _changes(heading: str, rows: Sequence[tuple[str, int, float, float]]) -> dict[str, Any]:
    """A table of AP on both sides, from (name, objects, AP in A, AP in B)."""
    changed = [(*row, row[3] - row[2]) for row in rows]
    sizes = [abs(row[-1]) for row in changed if not math.isnan(row[-1])]
    return {"heading": heading, "rows": changed, "largest": max(sizes, default=0.0)}


def _curves(a: analysis.Analysis, b: analysis.Analysis) -> list[charts.Plot]:
    both = [(name, (one, b.area.curves[name])) for name, one in a.area.curves.items()]
    return [
        charts.Plot(name, lines=[charts.points(one.recall, one.precision) for one in pair])
        for name, pair in both
        if pair[0].num_objects
    ]


def _shots(
    a: analysis.Analysis, b: analysis.Analysis, images: np.ndarray, read: gallery.ReadImage
) -> list[gallery.Shot]:
    """The same images as either side sees them."""
    shots = []
    for image in images[:_SHOTS]:
        for letter, one in (("A", a), ("B", b)):
            count = int(one.wrong[image])
            says = f"{count} error{'' if count == 1 else 's'}" if count else "correct"
            shots.append(gallery.shot(one, read, image, f"{letter}: {says}"))
    return shots
