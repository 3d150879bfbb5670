"""Mean average precision as in PASCAL VOC, in NumPy: Everingham et al. 2010, section 4.2.

Boxes are in pixels as VOC annotates them: 1-based, and the last row and column belong to the box,
so a box is `xmax - xmin + 1` pixels wide.

Where the devkit's MATLAB (`>=`) and Python (`>`) editions differ, at an IoU of exactly 0.5, this
follows the Python edition and the paper: the overlap "must exceed 50%".
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssd_jax import errors

DetectionsById = Mapping[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]
GroundTruthById = Mapping[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]

# As the devkit spells them: 3 * 0.1 > 0.3, so a recall of exactly 3/10 doesn't reach the fourth.
_RECALL_THRESHOLDS = 0.1 * np.arange(11)


class Rows(NamedTuple):
    """The boxes of all images, one after the other.

    Attributes:
      image: `[N]` int, position of the box's image in the ground truth.
      boxes: `[N, 4]` float64 corners in pixels.
      labels: `[N]` int, classes from 1.
      values: `[N]` scores of detections; of ground truth, True where it is difficult.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    values: np.ndarray


class Curve(NamedTuple):
    """Precision against recall of one class, one point per detection, best score first.

    Detections of difficult objects have no point.

    Attributes:
      recall: `[D]` in [0, 1], never falls; zeros where there is no object to find.
      precision: `[D]` in [0, 1].
      scores: `[D]`, never rise.
      num_objects: Objects to find, the difficult ones not counted.
    """

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    num_objects: int


class Result(NamedTuple):
    """An evaluation.

    Attributes:
      ap: Average precision of each class in [0, 1]; NaN for a class without objects to find.
      mean_ap: Mean of the classes that have objects; NaN if none has.
      curves: Precision and recall of each class.
    """

    ap: dict[str, float]
    mean_ap: float
    curves: dict[str, Curve]


def evaluate(
    detections: DetectionsById,
    ground_truth: GroundTruthById,
    *,
    class_names: Sequence[str],
    iou_threshold: float = 0.5,
    use_07_metric: bool,
) -> Result:
    """Average precision of each class, and its mean.

    For both metrics of the same detections, call `summarize` twice on one `precision_recall`.

    Args:
      detections: Image id -> (boxes `[N, 4]`, scores `[N]`, labels `[N]`); an image may be missing.
      ground_truth: Image id -> (boxes `[M, 4]`, labels `[M]`, difficult `[M]` bool) of every image.
      class_names: Label k is `class_names[k - 1]`; rows with label 0 are padding.
      iou_threshold: A detection is right if its IoU is larger than this, in [0, 1).
      use_07_metric: True for VOC2007's 11 points, False for the area under the curve (VOC2010 on).

    Returns:
      The average precisions. A class without objects, or with difficult ones only, has NaN and is
      left out of the mean.

    Raises:
      UserError: A detection's image has no ground truth, or a label has no name.
      ValueError: The arrays of an image differ in length.
    """
    curves = precision_recall(
        detections, ground_truth, class_names=class_names, iou_threshold=iou_threshold
    )
    return summarize(curves, use_07_metric=use_07_metric)


def precision_recall(
    detections: DetectionsById,
    ground_truth: GroundTruthById,
    *,
    class_names: Sequence[str],
    iou_threshold: float = 0.5,
) -> dict[str, Curve]:
    """Precision and recall of each class as the score threshold falls.

    A detection belongs to the object of its image and class that it overlaps most (ties: the first
    object). Of the detections that belong to one object, each by more than `iou_threshold`, the
    best score is right and the others are wrong. A detection of a difficult object is neither.

    The rules leave the order of equal scores open. It is what NumPy's default sort makes of the
    images in the order of `ground_truth`, as in the Python devkit. That differs between CPUs: with
    scores rounded to six digits it is worth up to 2e-5 of a class's AP.

    Args:
      detections: As in `evaluate`.
      ground_truth: As in `evaluate`.
      class_names: As in `evaluate`.
      iou_threshold: As in `evaluate`.

    Returns:
      A curve for each class name, in the order of `class_names`.

    Raises:
      UserError: A detection's image has no ground truth, or a label has no name.
      ValueError: The arrays of an image differ in length.

    Source: Everingham et al. 2010, section 4.2; VOCevaldet.m of the VOC devkit.
    """
    found, objects = flatten(detections, ground_truth, class_names=class_names)
    best_object, best_iou = _best_objects(found, objects)
    matched = np.where(best_iou > iou_threshold, best_object, -1)
    difficult = np.append(objects.values, False)[matched]  # -1, no object, is not difficult
    curves = {}
    for label, name in enumerate(class_names, start=1):
        own = np.flatnonzero(found.labels == label)
        own = own[np.argsort(-found.values[own])]
        own = own[~difficult[own]]  # after the sort, on which the order of ties depends
        num_objects = int(np.sum((objects.labels == label) & ~objects.values))
        curves[name] = _curve(_first_of_each(matched[own]), found.values[own], num_objects)
    return curves


def summarize(curves: Mapping[str, Curve], *, use_07_metric: bool) -> Result:
    """Average precisions of the curves and their mean.

    Args:
      curves: Class name -> curve, as from `precision_recall`.
      use_07_metric: As in `evaluate`.

    Returns:
      The same as `evaluate`.
    """
    ap = {
        name: average_precision(curve.recall, curve.precision, use_07_metric=use_07_metric)
        if curve.num_objects
        else float("nan")
        for name, curve in curves.items()
    }
    known = [value for name, value in ap.items() if curves[name].num_objects]
    return Result(ap, float(np.mean(known)) if known else float("nan"), dict(curves))


def average_precision(recall: np.ndarray, precision: np.ndarray, *, use_07_metric: bool) -> float:
    """Average precision of one class.

    Precision is first made to never rise: at each recall, the best precision from there on. Then it
    is averaged at the recalls 0, 0.1, ..., 1, or integrated.

    Args:
      recall: `[D]` in [0, 1], never falls.
      precision: `[D]` in [0, 1], at each recall.
      use_07_metric: True for the 11 points, False for the area.

    Returns:
      The average precision in [0, 1]; 0 without detections.

    Source: Everingham et al. 2010, section 4.2; VOCevaldet.m (2007) and VOCap.m (2010).
    """
    recall, precision = np.asarray(recall, np.float64), np.asarray(precision, np.float64)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if use_07_metric:
        reached = np.searchsorted(recall, _RECALL_THRESHOLDS, side="left")
        return float(np.mean(np.append(envelope, 0.0)[reached]))
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def flatten(
    detections: DetectionsById, ground_truth: GroundTruthById, *, class_names: Sequence[str]
) -> tuple[Rows, Rows]:
    """Checks an evaluation's inputs and puts the boxes of all images together, without padding.

    Args:
      detections: As in `evaluate`.
      ground_truth: As in `evaluate`.
      class_names: As in `evaluate`.

    Returns:
      The detections and the ground truth.

    Raises:
      UserError: A detection's image has no ground truth, or a label has no name.
      ValueError: The arrays of an image differ in length.
    """
    for image_id in detections:
        if image_id not in ground_truth:
            raise errors.UserError(
                f"there are detections of image {image_id!r}, but no ground truth: "
                "evaluate on the split that was detected"
            )
    found, objects = [], []
    for i, (image_id, (boxes, labels, difficult)) in enumerate(ground_truth.items()):
        objects.append(_rows(i, image_id, boxes, labels, np.asarray(difficult, bool), class_names))
        if image_id in detections:
            boxes, scores, labels = detections[image_id]
            scores = np.asarray(scores, np.float64)
            found.append(_rows(i, image_id, boxes, labels, scores, class_names))
    return _concatenate(found, np.float64), _concatenate(objects, bool)


def _rows(
    index: int,
    image_id: Any,
    boxes: np.ndarray,
    labels: np.ndarray,
    values: np.ndarray,
    class_names: Sequence[str],
) -> Rows:
    """The rows of one image, checked."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(labels).astype(np.int64).reshape(-1)
    if not len(boxes) == len(labels) == values.size:
        raise ValueError(
            f"image {image_id!r} has {len(boxes)} boxes, {len(labels)} labels and "
            f"{values.size} scores or difficult flags: their number must be the same"
        )
    nameless = labels[(labels < 0) | (labels > len(class_names))]
    if nameless.size:
        raise errors.UserError(
            f"image {image_id!r} has the label {nameless[0]}, but there are {len(class_names)} "
            "class names: use the classes that the detector was trained on"
        )
    real = labels > 0
    return Rows(np.full(real.sum(), index), boxes[real], labels[real], values.reshape(-1)[real])


def _concatenate(images: Sequence[Rows], dtype: type) -> Rows:
    """One table out of many; of no rows if there are none."""
    nothing = Rows(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, dtype))
    return Rows(*(np.concatenate(columns) for columns in zip(nothing, *images, strict=True)))


def _best_objects(found: Rows, objects: Rows) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the object of its image and class with the largest IoU.

    All pairs of one image and class stand in one long row, so no loop over images is needed.

    Args:
      found: The detections, D rows.
      objects: The ground truth, M rows.

    Returns:
      `[D]` row of `objects`, -1 for none, and `[D]` its IoU, 0 for none.
    """
    num_labels = 1 + max(np.max(found.labels, initial=0), np.max(objects.labels, initial=0))
    found_group = found.image * num_labels + found.labels
    object_group = objects.image * num_labels + objects.labels
    by_group = np.argsort(object_group, kind="stable")
    object_group = object_group[by_group]
    first = np.searchsorted(object_group, found_group, side="left")
    count = np.searchsorted(object_group, found_group, side="right") - first

    best_object = np.full(len(found_group), -1)
    best_iou = np.zeros(len(found_group))
    detection = np.repeat(np.arange(len(found_group)), count)  # [pairs], ascending
    rank = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    candidate = by_group[np.repeat(first, count) + rank]
    iou = _iou(found.boxes[detection], objects.boxes[candidate])
    np.maximum.at(best_iou, detection, iou)
    # Of equals the first is written last, and stays.
    largest = np.flatnonzero(iou == best_iou[detection])[::-1]
    best_object[detection[largest]] = candidate[largest]
    return best_object, best_iou


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes row by row, `[N, 4]` and `[N, 4]` to `[N]`, in whole pixels (the + 1)."""
    extent = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1
    intersection = np.prod(np.maximum(extent, 0), axis=1)
    union = _area(a) + _area(b) - intersection
    return intersection / np.where(union > 0, union, 1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)


def _first_of_each(matched: np.ndarray) -> np.ndarray:
    """True where an object turns up for the first time, `[N]`; -1 is no object."""
    hits = np.zeros(len(matched), bool)
    hits[np.unique(matched, return_index=True)[1]] = True
    return hits & (matched >= 0)


def _curve(hits: np.ndarray, scores: np.ndarray, num_objects: int) -> Curve:
    """The curve of one class from its detections, best score first."""
    right = np.cumsum(hits)
    return Curve(
        recall=right / max(num_objects, 1),
        precision=right / np.arange(1, len(hits) + 1),
        scores=scores,
        num_objects=num_objects,
    )
