"""Errors of a detector by kind, and the cost of each kind: TIDE, Bolya et al. 2020.

AP here is the area under the curve at an IoU of 0.5, matched by VOC's rules (`voc.match`), so that
the AP which the parts explain is the one that the evaluation reports. By these rules an IoU of
exactly 0.5 is not enough, where the paper has `IoU >= t_f`: it is that of a box error here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssd_jax.evaluation import voc

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
NO_ERROR = -1

FOREGROUND_IOU = 0.5  # t_f of the paper
BACKGROUND_IOU = 0.1  # t_b


class Labels(NamedTuple):
    """The error of each detection and object: D detections, M objects.

    Attributes:
      kind: `[D]` index into `KINDS`, `NO_ERROR` for correct or excused ones; never `MISSED`.
      about: `[D]` row of the object that a classification or localization error is about, else -1.
      missed: `[M]` bool, no detection found the object, and no other error explains it.
    """

    kind: np.ndarray
    about: np.ndarray
    missed: np.ndarray


class Errors(NamedTuple):
    """Errors by kind; the arrays follow `KINDS`.

    Attributes:
      counts: `[6]` how many there are.
      class_counts: `[C, 6]` by class: of the detection, or of the object that was missed.
      cost: `[6]` by how much mAP rises if that kind alone is fixed (the paper's dAP).
      class_cost: `[C, 6]` the same of each class's AP; NaN for a class without objects.
      step: `[6]` by how much mAP rises if a kind is fixed after those before it; with `mean_ap`
        they add up to 1.
      false_positives: By how much mAP rises without any wrong detection.
      false_negatives: The same, if what was not found did not count.
      mean_ap: mAP of the detector; NaN, like all costs, if there is no object.
    """

    counts: np.ndarray
    class_counts: np.ndarray
    cost: np.ndarray
    class_cost: np.ndarray
    step: np.ndarray
    false_positives: float
    false_negatives: float
    mean_ap: float


def evaluate(
    detections: voc.DetectionsById,
    ground_truth: voc.GroundTruthById,
    *,
    class_names: Sequence[str],
) -> Errors:
    """Counts the errors of each kind, and computes their cost by fixing each kind.

    The cost of a kind is the mAP gained by fixing all errors of that kind and no others:
    a classification error gets the object's class, a localization error its box, and either is then
    right unless the object is found already or a better such detection gets it; errors that are
    both, duplicates and detections of background vanish; objects that were missed don't count.
    The costs don't add up to 1 - mAP: how much one error costs depends on the others around it.
    `Errors.step` fixes one kind after the other, which does add up, but depends on the order.

    Args:
      detections: See `voc.evaluate`.
      ground_truth: See `voc.evaluate`; difficult objects count neither way, and no error is about
        one.
      class_names: See `voc.evaluate`.

    Raises:
      UserError: If a detection's image has no ground truth, or a label has no name.
      ValueError: If the arrays of an image differ in length.

    Source: Bolya et al. 2020, sections 2.2 and 2.3.
    """
    matches = voc.match(
        detections, ground_truth, class_names=class_names, iou_threshold=FOREGROUND_IOU
    )
    return costs(matches, label(matches))


def label(matches: voc.Assignment) -> Labels:
    """Determines the kind of each error.

    Of a wrong detection, with t_f = 0.5, t_b = 0.1 and IoUs with objects that are not difficult:
    localization if the largest with its class is in [t_b, t_f]; else classification if the largest
    with another class is over t_f; else duplicate if that with its class is over t_f; else
    background if none is over t_b; else both. An object that was not found is missed unless a
    localization or classification error is about it.

    Args:
      matches: Matches from `voc.match`, with an IoU threshold of t_f.

    Source: Bolya et al. 2020, section 2.2; the order is that of the authors' code.
    """
    found, objects = matches.found, matches.objects
    wrong = np.flatnonzero(~matches.hit & ~matches.excused)
    counted = np.flatnonzero(~objects.values)
    rows, candidates = _take(found, wrong), _take(objects, counted)
    own, own_iou = voc.best_objects(rows, candidates)
    other, other_iou = voc.best_objects(rows, candidates, same_class=False)
    kinds = np.select(
        [
            (own_iou >= BACKGROUND_IOU) & (own_iou <= FOREGROUND_IOU),
            other_iou > FOREGROUND_IOU,
            own_iou > FOREGROUND_IOU,
            np.maximum(own_iou, other_iou) <= BACKGROUND_IOU,
        ],
        [LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    subject = np.select([kinds == LOCALIZATION, kinds == CLASSIFICATION], [own, other], -1)
    kind, about = np.full(len(found.image), NO_ERROR), np.full(len(found.image), -1)
    kind[wrong], about[wrong] = kinds, np.append(counted, -1)[subject]
    missed = ~objects.values
    missed[matches.matched[matches.hit]] = False
    missed[about[about >= 0]] = False
    return Labels(kind, about, missed)


def costs(matches: voc.Assignment, labels: Labels) -> Errors:
    """Counts the errors, and fixes them kind by kind.

    Args:
      matches: Matches from `voc.match`.
      labels: Labels from `label`.
    """
    num_classes = len(matches.class_names)
    class_counts = np.zeros((num_classes, len(KINDS)), int)
    wrong = labels.kind >= 0
    np.add.at(class_counts, (matches.found.labels[wrong] - 1, labels.kind[wrong]), 1)
    np.add.at(class_counts[:, MISSED], matches.objects.labels[labels.missed] - 1, 1)

    now = _fixed_ap(matches, labels, ())
    alone = np.stack([_fixed_ap(matches, labels, (kind,)) for kind in range(len(KINDS))], axis=1)
    further = [_mean(_fixed_ap(matches, labels, range(k + 1))) for k in range(len(KINDS))]
    mean_ap, totals = _mean(now), _counted(matches, ~matches.objects.values)
    own = matches.found.labels
    no_wrong = _ap(matches, matches.hit, matches.hit, own, totals)
    found_only = _counted(matches, matches.matched[matches.hit])
    no_lost = _ap(matches, ~matches.excused, matches.hit, own, found_only)
    return Errors(
        counts=class_counts.sum(axis=0),
        class_counts=class_counts,
        cost=np.array([_mean(column) for column in alone.T]) - mean_ap,
        class_cost=alone - now[:, None],
        step=np.diff(further, prepend=mean_ap),
        false_positives=_mean(no_wrong) - mean_ap,
        false_negatives=_mean(no_lost) - mean_ap,
        mean_ap=mean_ap,
    )


def _fixed_ap(matches: voc.Assignment, labels: Labels, fixed: Sequence[int]) -> np.ndarray:
    """`[C]` AP of each class after fixing all errors of the `fixed` kinds."""
    mended = np.isin(labels.kind, fixed)
    right = _fixed_hits(matches, labels.about, mended)
    kept = ~matches.excused & (~mended | right)
    label_about = np.append(matches.objects.labels, 0)[labels.about]
    found_labels = np.where(right, label_about, matches.found.labels)
    lost = labels.missed if MISSED in fixed else np.zeros_like(labels.missed)
    remaining = _counted(matches, ~matches.objects.values & ~lost)
    return _ap(matches, kept, matches.hit | right, found_labels, remaining)


def _fixed_hits(matches: voc.Assignment, about: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """`[D]` bool: fixed detections that become correct, the best of each object not yet found."""
    taken = np.zeros(len(matches.objects.image) + 1, bool)
    taken[matches.matched[matches.hit]] = True
    able = matches.order[(fixed & (about >= 0) & ~taken[about])[matches.order]]
    right = np.zeros(len(about), bool)
    right[able[np.unique(about[able], return_index=True)[1]]] = True
    return right


def _ap(
    matches: voc.Assignment,
    kept: np.ndarray,
    hit: np.ndarray,
    found_labels: np.ndarray,
    remaining: np.ndarray,
) -> np.ndarray:
    """`[C]` AP of changed detections; NaN for classes without objects.

    Where no object remains to be found, AP is 1 without wrong detections and 0 with some.

    Args:
      matches: Matches before the fix.
      kept: `[D]` bool, detections that stay.
      hit: `[D]` bool, those that are right.
      found_labels: `[D]` their classes.
      remaining: `[C]` objects to find.
    """
    ranked = matches.order[kept[matches.order]]
    ranked_labels, ranked_hit = found_labels[ranked], hit[ranked]
    ap = np.full(len(remaining), np.nan)
    for index in np.flatnonzero(_counted(matches, ~matches.objects.values)):
        hits = ranked_hit[ranked_labels == index + 1]
        curve = voc.curve(hits, hits, int(remaining[index]))
        area = voc.average_precision(curve.recall, curve.precision, use_07_metric=False)
        ap[index] = area if remaining[index] else float(len(hits) == 0)
    return ap


def _counted(matches: voc.Assignment, objects: np.ndarray) -> np.ndarray:
    """`[C]` how many of these objects (a mask or rows) each class has."""
    labels = matches.objects.labels[objects]
    return np.bincount(labels, minlength=len(matches.class_names) + 1)[1:]


def _mean(ap: np.ndarray) -> float:
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if known.size else float("nan")


def _take(rows: voc.Rows, index: np.ndarray) -> voc.Rows:
    return voc.Rows(*(column[index] for column in rows))
