"""Correct detections and errors of a detector by class, size, shape, score and image.

Most functions take what `voc.match` gives. Difficult objects count neither way in any of them.
"""

from typing import NamedTuple

import numpy as np

from ssd_jax.data import coverage
from ssd_jax.evaluation import evaluated, tide, voc

SHAPES = ("1 : 3", "1 : 2", "1 : 1", "2 : 1", "3 : 1")
"""Width to height, those of SSD's default boxes; an object belongs to the nearest."""

_RATIOS = np.array([1 / 3, 1 / 2, 1, 2, 3])
_RATIO_BOUNDS = np.sqrt(_RATIOS[:-1] * _RATIOS[1:])  # halfway, on a scale of ratios
_OVERLAP = 0.5  # IoU over which a detection and an object belong together
_BINS = 10  # of scores
_ANY_THRESHOLD = 0.5  # where nothing is right, no threshold is better than another
_BACKGROUND, _LEFT_OUT = -1, -2  # what a detection takes that takes no object


class OperatingPoint(NamedTuple):
    """A score threshold with precision, recall and F1 over all classes.

    Attributes:
      score: Detections of at least this score are reported.
      precision: Share of them that is right, in [0, 1].
      recall: Share of the objects that is found.
      f1: Their harmonic mean.
    """

    score: float
    precision: float
    recall: float
    f1: float


class Groups(NamedTuple):
    """Figures of groups of objects; G groups.

    Attributes:
      names: Names of the groups.
      objects: `[G]` how many there are.
      mean_ap: `[G]` the mean of AP (area, IoU 0.5) over classes that have such objects; NaN: none.
      recall: `[G]` share of the objects that is found at any score; NaN where there is none.
    """

    names: tuple[str, ...]
    objects: np.ndarray
    mean_ap: np.ndarray
    recall: np.ndarray


class Calibration(NamedTuple):
    """How often detections of a score are right, in ten bins of the score.

    Attributes:
      counts: `[10]` detections.
      scores: `[10]` their mean score; NaN in an empty bin.
      precision: `[10]` the share that is right; NaN in an empty bin.
      error: Expected calibration error: the mean of |scores - precision|, weighted by the counts;
        NaN without detections.
    """

    counts: np.ndarray
    scores: np.ndarray
    precision: np.ndarray
    error: float


class Analysis(NamedTuple):
    """Everything that the pages show of one evaluation.

    Attributes:
      source: The evaluation.
      matches: The matches of its detections.
      labels: The kind of error of each detection and object.
      errors: Counts and costs of the errors by kind.
      point: The operating point of the best F1; detections from its score on count as reported.
      voc07: AP by VOC2007's 11 points.
      area: AP by the area under the curve.
      wrong: `[I]` errors in each image: wrong reported detections, and objects that none finds.
    """

    source: evaluated.Evaluated
    matches: voc.Assignment
    labels: tide.Labels
    errors: tide.Errors
    point: OperatingPoint
    voc07: voc.Result
    area: voc.Result
    wrong: np.ndarray


def analyze(source: evaluated.Evaluated) -> Analysis:
    """Computes everything that the pages show of one evaluation.

    Raises:
      UserError: If a detection's image has no ground truth, or a label has no name.
    """
    matches = voc.match(source.detections, source.ground_truth, class_names=source.class_names)
    labels, point, curves = tide.label(matches), operating_point(matches), voc.curves_of(matches)
    return Analysis(
        source=source,
        matches=matches,
        labels=labels,
        errors=tide.costs(matches, labels),
        point=point,
        voc07=voc.summarize(curves, use_07_metric=True),
        area=voc.summarize(curves, use_07_metric=False),
        wrong=errors_by_image(
            matches, score_threshold=point.score, num_images=len(source.ground_truth)
        ),
    )


def operating_point(matches: voc.Assignment) -> OperatingPoint:
    """Finds the threshold with the best F1; 0.5 if no detection is correct."""
    ranked = matches.order[~matches.excused[matches.order]]
    scores, right = matches.found.values[ranked], np.cumsum(matches.hit[ranked])
    if not right.size or not right[-1]:
        return OperatingPoint(_ANY_THRESHOLD, 0.0, 0.0, 0.0)
    num_objects = np.sum(~matches.objects.values)
    reported = np.arange(1, len(ranked) + 1)
    f1 = np.where(np.diff(scores, append=-np.inf) < 0, 2 * right / (reported + num_objects), 0)
    best = int(np.argmax(f1))
    return OperatingPoint(
        score=float(scores[best]),
        precision=float(right[best] / reported[best]),
        recall=float(right[best] / num_objects),
        f1=float(f1[best]),
    )


def by_size(matches: voc.Assignment) -> Groups:
    """Metrics of small, medium and large objects, divided at areas of 32^2 and 96^2 pixels."""
    return _by_group(matches, coverage.SIZES, lambda boxes: coverage.size_of(voc.area(boxes)))


def by_shape(matches: voc.Assignment) -> Groups:
    """Figures of objects by the ratio of width to height."""
    return _by_group(matches, SHAPES, shape_of)


def shape_of(boxes: np.ndarray) -> np.ndarray:
    """`[N]` index into `SHAPES` of boxes `[N, 4]` in VOC's pixels."""
    extent = boxes[:, 2:] - boxes[:, :2] + 1
    ratio = np.maximum(extent[:, 0], 1e-6) / np.maximum(extent[:, 1], 1e-6)
    return np.searchsorted(_RATIO_BOUNDS, ratio)


def confusion(matches: voc.Assignment, *, score_threshold: float) -> np.ndarray:
    """Computes the confusion matrix of the classes.

    Detections, best score first, each take the free object of any class that they overlap most, by
    an IoU over 0.5. One that overlaps a difficult object most is left out; one that takes no object
    is of background, be it the second of an object.

    Args:
      matches: Matches from `voc.match`.
      score_threshold: Detections of at least this score.

    Returns:
      `[C + 1, C + 1]` int: rows are the objects' classes and background last, columns the
      detections' classes and "not found" last. A row adds up to the objects of the class, a column
      to the detections that are not left out.
    """
    found, objects = matches.found, matches.objects
    shown = matches.order[found.values[matches.order] >= score_threshold]
    rows = voc.Rows(*(column[shown] for column in found))
    num_classes = len(matches.class_names)
    takes = _take_objects(rows, objects)
    counted = takes != _LEFT_OUT
    free = ~objects.values
    free[takes[takes >= 0]] = False

    table = np.zeros((num_classes + 1, num_classes + 1), int)
    truth = np.where(takes >= 0, np.append(objects.labels, 0)[takes] - 1, num_classes)
    np.add.at(table, (truth[counted], rows.labels[counted] - 1), 1)
    np.add.at(table[:, num_classes], objects.labels[free] - 1, 1)
    return table


def calibration(matches: voc.Assignment) -> Calibration:
    """How far scores are from the share of detections that is right.

    Source: Guo et al. 2017, section 2, with "right" as in `voc.match`.
    """
    counted = ~matches.excused
    scores, hits = matches.found.values[counted], matches.hit[counted]
    bins = np.clip((scores * _BINS).astype(int), 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    whole = np.where(counts, counts, np.nan)
    mean_scores = np.bincount(bins, weights=scores, minlength=_BINS) / whole
    precision = np.bincount(bins, weights=hits, minlength=_BINS) / whole
    gaps = np.nansum(counts * np.abs(mean_scores - precision))
    error = float(gaps / counts.sum()) if counts.sum() else float("nan")
    return Calibration(counts, mean_scores, precision, error)


def found_at(matches: voc.Assignment) -> np.ndarray:
    """`[M]` score of the detection that matches each object; -inf if none does."""
    scores = np.full(len(matches.objects.image), -np.inf)
    scores[matches.matched[matches.hit]] = matches.found.values[matches.hit]
    return scores


def worst_false_negatives(
    matches: voc.Assignment, *, score_threshold: float, count: int
) -> np.ndarray:
    """Objects that are not found, at most one of an image.

    Those that are found at no score at all come first, then those of the lowest score; of equals,
    the largest.

    Args:
      matches: Matches from `voc.match`.
      score_threshold: Objects that a detection of this score finds are found.
      count: The most to return.

    Returns:
      Rows of `matches.objects`.
    """
    scores = found_at(matches)
    rows = np.lexsort((-voc.area(matches.objects.boxes), scores))
    lost = ~matches.objects.values & (scores < score_threshold)
    return _one_of_each(rows[lost[rows]], matches.objects.image, count)


def confident_false_positives(matches: voc.Assignment, *, count: int) -> np.ndarray:
    """Rows of wrong detections of the best scores, at most `count` and one of an image."""
    wrong = ~matches.hit & ~matches.excused
    return _one_of_each(matches.order[wrong[matches.order]], matches.found.image, count)


def errors_by_image(
    matches: voc.Assignment, *, score_threshold: float, num_images: int
) -> np.ndarray:
    """`[num_images]` false positives of at least this score, and false negatives."""
    wrong = ~matches.hit & ~matches.excused & (matches.found.values >= score_threshold)
    lost = ~matches.objects.values & (found_at(matches) < score_threshold)
    return np.bincount(matches.found.image[wrong], minlength=num_images) + np.bincount(
        matches.objects.image[lost], minlength=num_images
    )


def _take_objects(rows: voc.Rows, objects: voc.Rows) -> np.ndarray:
    """`[D]` row of the object that each detection matches, best first."""
    detection, candidate, iou = voc.overlapping(rows, objects, iou_threshold=_OVERLAP)
    takes = np.full(len(rows.image), _BACKGROUND)
    taken = np.zeros(len(objects.image), bool)
    for k in np.lexsort((-iou, detection)):
        mine, theirs = detection[k], candidate[k]
        if takes[mine] != _BACKGROUND or taken[theirs]:
            continue
        takes[mine] = _LEFT_OUT if objects.values[theirs] else theirs
        taken[theirs] = not objects.values[theirs]
    return takes


def _by_group(matches: voc.Assignment, names: tuple[str, ...], group_of) -> Groups:
    """Figures of the objects of each group.

    Objects of other groups count as difficult ones do; a wrong detection of no object counts in the
    group that its own box belongs to. COCO does the same.
    """
    found, objects = matches.found, matches.objects
    object_group, found_group = group_of(objects.boxes), group_of(found.boxes)
    belongs = np.where(
        matches.matched >= 0, np.append(object_group, -1)[matches.matched], found_group
    )
    scores = found_at(matches)
    means, counts, recalls = [], [], []
    for index in range(len(names)):
        mine = (object_group == index) & ~objects.values
        counted = ~matches.excused & (belongs == index)
        ap = _ap_of(matches, counted, np.bincount(objects.labels[mine]))
        means.append(np.mean(ap) if ap else np.nan)
        counts.append(np.sum(mine))
        recalls.append(np.mean(np.isfinite(scores[mine])) if mine.any() else np.nan)
    return Groups(names, np.array(counts), np.array(means), np.array(recalls))


def _ap_of(matches: voc.Assignment, counted: np.ndarray, totals: np.ndarray) -> list[float]:
    """AP of each class that has objects, of the detections that count."""
    ranked = matches.order[counted[matches.order]]
    labels, hits = matches.found.labels[ranked], matches.hit[ranked]
    ap = []
    for label in np.flatnonzero(totals):
        own = hits[labels == label]
        curve = voc.curve(own, own, int(totals[label]))
        ap.append(voc.average_precision(curve.recall, curve.precision, use_07_metric=False))
    return ap


def _one_of_each(rows: np.ndarray, image: np.ndarray, count: int) -> np.ndarray:
    """The first rows of different images."""
    first = np.sort(np.unique(image[rows], return_index=True)[1])
    return rows[first[:count]]
