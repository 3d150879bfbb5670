"""Two evaluations of the same pictures side by side, on one page."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssd_jax import errors
from ssd_jax.evaluation import analysis, evaluated, gallery, page, tide, voc

_SHOTS = 8  # pictures that flipped, in either direction


class Side(NamedTuple):
    """One of the two.

    Attributes:
      name: What the page calls it.
      source: The evaluation.
      matches: Of its detections.
      point: The score from which on a detection counts as reported: that of its best F1.
      errors: By kind.
      voc07: AP by VOC2007's 11 points.
      area: AP by the area under the curve.
      wrong: `[I]` errors of each picture: wrong reports and objects that are not found.
    """

    name: str
    source: evaluated.Evaluated
    matches: voc.Matches
    point: analysis.OperatingPoint
    errors: tide.Errors
    voc07: voc.Result
    area: voc.Result
    wrong: np.ndarray


def side(name: str, source: evaluated.Evaluated) -> Side:
    """Computes all that the page shows of one evaluation."""
    truth = source.ground_truth
    matches = voc.match(source.detections, truth, class_names=source.class_names)
    point = analysis.operating_point(matches)
    curves = voc.curves_of(matches)
    return Side(
        name=name,
        source=source,
        matches=matches,
        point=point,
        errors=tide.costs(matches, tide.label(matches)),
        voc07=voc.summarize(curves, use_07_metric=True),
        area=voc.summarize(curves, use_07_metric=False),
        wrong=analysis.errors_of_pictures(
            matches, score_threshold=point.score, num_pictures=len(truth)
        ),
    )


def check(a: evaluated.Evaluated, b: evaluated.Evaluated, *, names: tuple[str, ...]) -> None:
    """Makes sure that two evaluations can be compared.

    Raises:
      UserError: Their classes, pictures or objects differ.
    """
    both = f"{names[0]} and {names[1]}"
    if a.class_names != b.class_names:
        raise errors.UserError(f"{both} have different classes: compare runs of one dataset")
    if list(a.sizes) != list(b.sizes):
        raise errors.UserError(
            f"{both} were evaluated on different pictures ({len(a.sizes)} and {len(b.sizes)}): "
            "evaluate both on one split, with the same config.eval.max_images"
        )
    for name, theirs in a.ground_truth.items():
        if not all(map(np.array_equal, theirs, b.ground_truth[name])):
            raise errors.UserError(
                f"{both} were evaluated with different objects in {name}: evaluate both again"
            )


def flipped(a: Side, b: Side) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the pictures that are right in one and wrong in the other, most errors first.

    A picture is right if all its objects are found and nothing wrong is reported, each at its own
    side's threshold.

    Returns:
      Those that are right in `a` alone, and those that are right in `b` alone.
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
    """Fields that differ: dotted name -> both values, "absent" where one doesn't have it."""
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
    read_picture: gallery.ReadPicture = lambda name: None,
) -> None:
    """Writes the page that compares two evaluations, which `check` accepts.

    Args:
      path: Where to; a file that is there is replaced.
      a: The first.
      b: The second; differences are `b` less `a`.
      names: What the page calls them.
      read_picture: Gives the pictures; without, their boxes are shown alone.

    Raises:
      UserError: The file can't be written.
    """
    first, second = side(names[0], a), side(names[1], b)
    opening = _headline(first, second) + page.note(
        f"A is {first.name}, B is {second.name}, both on {len(a.sizes)} pictures; changes are B "
        "less A, in points. mAP at the top is by VOC07's 11 points; all AP below is the area under "
        "the curve, VOC's metric from 2010 on. Detections count as reported from the score of the "
        f"best F1 on: {first.point.score:.2f} in A, {second.point.score:.2f} in B."
    )
    only_a, only_b = flipped(first, second)
    sections = {
        "What differs in the config": _configs(a, b),
        "Classes": _classes(first, second),
        "Errors by kind": _errors(first, second),
        "Size and shape": _groups(first, second),
        f"Right in A alone: {len(only_a)}": _flips(first, second, only_a, read_picture),
        f"Right in B alone: {len(only_b)}": _flips(first, second, only_b, read_picture),
        "Precision by recall": _curves(first, second),
    }
    page.write(path, f"{first.name} and {second.name}", opening, sections)


def kinds_table(class_names: Sequence[str], values: np.ndarray, *, sign: bool = False) -> str:
    """Points of AP by class and kind of error, `[C, 6]`; classes without objects are left out."""
    rows = [
        (name, *(page.points(value, sign=sign) for value in row))
        for name, row in zip(class_names, values, strict=True)
        if not np.isnan(row).all()
    ]
    return page.table(("class", *tide.KINDS), rows)


def _headline(a: Side, b: Side) -> str:
    right = a.wrong == 0, b.wrong == 0
    return page.tiles(
        {
            "mAP (VOC07) of A": page.share(a.voc07.mean_ap),
            "mAP (VOC07) of B": page.share(b.voc07.mean_ap),
            "change of mAP (VOC07), points": page.points(
                b.voc07.mean_ap - a.voc07.mean_ap, sign=True
            ),
            "pictures right in both": str(np.sum(right[0] & right[1])),
            "in A alone": str(np.sum(right[0] & ~right[1])),
            "in B alone": str(np.sum(~right[0] & right[1])),
            "in neither": str(np.sum(~right[0] & ~right[1])),
        }
    )


def _configs(a: evaluated.Evaluated, b: evaluated.Evaluated) -> str:
    differences = config_differences(a, b)
    if not differences:
        return page.note("Nothing.")
    return page.texts(("field", "A", "B"), [(name, *both) for name, both in differences.items()])


def _classes(a: Side, b: Side) -> str:
    rows = [
        (name, a.area.curves[name].num_objects, a.area.ap[name], b.area.ap[name])
        for name in a.source.class_names
    ]
    known = [row for row in rows if row[1]]
    known.sort(key=lambda row: -abs(row[3] - row[2]))
    rows = [("mAP", sum(row[1] for row in known), a.area.mean_ap, b.area.mean_ap), *known]
    return _changes("class", rows) + page.note(
        "The largest change comes first. Classes without objects are left out."
    )


def _errors(a: Side, b: Side) -> str:
    change = b.errors.cost - a.errors.cost
    if np.isnan(change).all():
        return page.note("There are no objects.")
    largest = np.abs(change).max()
    rows = [
        (
            kind,
            f"{a.errors.counts[k]:,}",
            f"{b.errors.counts[k]:,}",
            page.points(a.errors.cost[k]),
            page.points(b.errors.cost[k]),
            page.points(change[k], sign=True),
            page.bar(change[k], largest=largest),
        )
        for k, kind in enumerate(tide.KINDS)
    ]
    headings = ("error", "count, A", "count, B", "costs in A", "costs in B", "change", "")
    return (
        page.table(headings, rows)
        + page.note(
            "A cost is what mAP (area) would gain if that kind alone were mended; costs do not add "
            "up. Less is better. After TIDE (Bolya et al. 2020)."
        )
        + "<h3>Change of what each kind costs a class</h3>\n"
        + kinds_table(a.source.class_names, b.errors.class_cost - a.errors.class_cost, sign=True)
    )


def _groups(a: Side, b: Side) -> str:
    parts = []
    for heading, figures in (("size", analysis.by_size), ("width : height", analysis.by_shape)):
        theirs, ours = figures(a.matches), figures(b.matches)
        rows = zip(theirs.names, theirs.objects, theirs.mean_ap, ours.mean_ap, strict=True)
        parts.append(_changes(heading, list(rows)))
    return "".join(parts)


def _changes(heading: str, rows: Sequence[tuple[str, int, float, float]]) -> str:
    """A table of AP in both, from (name, objects, AP in A, AP in B)."""
    changes = [after - before for _, _, before, after in rows]
    largest = max((abs(c) for c in changes if not math.isnan(c)), default=0.0)
    lines = [
        (
            name,
            str(count),
            page.share(before),
            page.share(after),
            page.points(change, sign=True),
            page.bar(change, largest=largest),
        )
        for (name, count, before, after), change in zip(rows, changes, strict=True)
    ]
    headings = heading, "objects", "AP (area) in A", "AP (area) in B", "change", ""
    return page.table(headings, lines)


def _curves(a: Side, b: Side) -> str:
    figures = []
    for name, theirs in a.area.curves.items():
        ours = b.area.curves[name]
        if theirs.num_objects:
            lines = [(theirs.recall, theirs.precision), (ours.recall, ours.precision)]
            figures.append(page.line_plot(name, lines, right=1.0, top=1.0))
    note = page.note("A: whole line, B: dashed.") if figures else ""
    return note + page.plots(figures, "10rem")


def _flips(a: Side, b: Side, pictures: np.ndarray, read: gallery.ReadPicture) -> str:
    """The same pictures as either side sees them."""
    figures = []
    for image in pictures[:_SHOTS]:
        for letter, one in (("A", a), ("B", b)):
            album = gallery.Album(one.source, one.matches, one.point.score, read)
            count = int(one.wrong[image])
            says = (
                f"{letter}: {count} error{'' if count == 1 else 's'}"
                if count
                else f"{letter}: right"
            )
            figures.append(gallery.shot(album, image, says))
    return page.shots(figures)
