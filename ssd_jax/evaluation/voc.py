"""Mean average precision as in PASCAL VOC, in NumPy: Everingham et al. 2010, section 4.2.

Boxes are in pixels as VOC annotates them: 1-based, and the last row and column belong to the box,
so a box is `xmax - xmin + 1` pixels wide.

Where the devkit's MATLAB (`>=`) and Python (`>`) editions differ, at an IoU of exactly 0.5, this
follows the Python edition and the paper: the overlap "must exceed 50%".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssd_jax import errors

DetectionsById = Mapping[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]
GroundTruthById = Mapping[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]

# As the devkit spells them: 3 * 0.1 > 0.3, so a recall of exactly 3/10 doesn't reach the fourth.
_RECALL_THRESHOLDS = 0.1 * np.arange(11)
_CHUNK = 100_000  # detections that are compared with objects at a time


class Rows(NamedTuple):
    """The boxes of all images in one table.

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


class Assignment(NamedTuple):
    """Assignment of detections to objects: D detections, M objects.

    Attributes:
      found: The detections, D rows.
      objects: The ground truth, M rows.
      class_names: Label k is `class_names[k - 1]`.
      order: `[D]` rows of `found` from the best score to the worst.
      matched: `[D]` row of `objects` of the detection's class that it overlaps enough, -1 for none.
      hit: `[D]` bool, the detection is right.
      excused: `[D]` bool, it is that of a difficult object: neither right nor wrong.
    """

    found: Rows
    objects: Rows
    class_names: tuple[str, ...]
    order: np.ndarray
    matched: np.ndarray
    hit: np.ndarray
    excused: np.ndarray


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
      excluded from the mean.

    Raises:
      UserError: If a detection's image has no ground truth, or a label has no name.
      ValueError: If the arrays of an image differ in length.
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
    """Precision and recall of each class as the score threshold falls, by the rules of `match`.

    Args:
      detections: See `evaluate`.
      ground_truth: See `evaluate`.
      class_names: See `evaluate`.
      iou_threshold: See `evaluate`.

    Returns:
      A curve for each class name, in the order of `class_names`.

    Raises:
      UserError: If a detection's image has no ground truth, or a label has no name.
      ValueError: If the arrays of an image differ in length.
    """
    return curves_of(
        match(detections, ground_truth, class_names=class_names, iou_threshold=iou_threshold)
    )


def curves_of(matches: Assignment) -> dict[str, Curve]:
    """Precision and recall of each class, in the order of the class names."""
    found, objects = matches.found, matches.objects
    ranked = matches.order[~matches.excused[matches.order]]
    counts = np.bincount(objects.labels[~objects.values], minlength=len(matches.class_names) + 1)
    curves = {}
    for label, name in enumerate(matches.class_names, start=1):
        own = ranked[found.labels[ranked] == label]
        curves[name] = curve(matches.hit[own], found.values[own], int(counts[label]))
    return curves


def match(
    detections: DetectionsById,
    ground_truth: GroundTruthById,
    *,
    class_names: Sequence[str],
    iou_threshold: float = 0.5,
) -> Assignment:
    """Finds the detections that are right.

    A detection belongs to the object of its image and class that it overlaps most (ties: the first
    object). Of the detections that belong to one object, each by more than `iou_threshold`, the
    best score is correct and the others are wrong. A detection of a difficult object is neither.

    Equal scores keep the order of the images in `ground_truth`, and within an image that of its
    detections: MATLAB's sort in the devkit is stable, and so is this one, on every CPU.

    Args:
      detections: See `evaluate`.
      ground_truth: See `evaluate`.
      class_names: See `evaluate`.
      iou_threshold: See `evaluate`.

    Raises:
      UserError: If a detection's image has no ground truth, or a label has no name.
      ValueError: If the arrays of an image differ in length.

    Source: Everingham et al. 2010, section 4.2; VOCevaldet.m of the VOC devkit.
    """
    found, objects = flatten(detections, ground_truth, class_names=class_names)
    nearest, iou = best_objects(found, objects)
    matched = np.where(iou > iou_threshold, nearest, -1)
    order = np.argsort(-found.values, kind="stable")
    hit = np.zeros(len(matched), bool)
    hit[order] = _first_of_each(matched[order])
    excused = np.append(objects.values, False)[matched]  # -1, no object, is not difficult
    return Assignment(found, objects, tuple(class_names), order, matched, hit & ~excused, excused)


def curve(hits: np.ndarray, scores: np.ndarray, num_objects: int) -> Curve:
    """Computes the curve of one class.

    Args:
      hits: `[D]` bool, which detections are right, best score first.
      scores: `[D]` of the detections.
      num_objects: Objects to find.
    """
    right = np.cumsum(hits)
    return Curve(
        recall=right / max(num_objects, 1),
        precision=right / np.arange(1, len(hits) + 1),
        scores=scores,
        num_objects=num_objects,
    )


def summarize(curves: Mapping[str, Curve], *, use_07_metric: bool) -> Result:
    """Average precisions of the curves and their mean.

    Args:
      curves: Class name -> curve, as from `precision_recall`.
      use_07_metric: See `evaluate`.

    Returns:
      The same as `evaluate`.
    """
    ap = {
        name: average_precision(one.recall, one.precision, use_07_metric=use_07_metric)
        if one.num_objects
        else float("nan")
        for name, one in curves.items()
    }
    known = [value for name, value in ap.items() if curves[name].num_objects]
    return Result(ap, float(np.mean(known)) if known else float("nan"), dict(curves))


def average_precision(recall: np.ndarray, precision: np.ndarray, *, use_07_metric: bool) -> float:
    """Computes the average precision of one class.

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
      detections: See `evaluate`.
      ground_truth: See `evaluate`.
      class_names: See `evaluate`.

    Returns:
      The detections and the ground truth.

    Raises:
      UserError: If a detection's image has no ground truth, or a label has no name.
      ValueError: If the arrays of an image differ in length.
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
    """Returns the checked rows of one image."""
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
    """Concatenates tables; empty if there are none."""
    nothing = Rows(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, dtype))
    return Rows(*(np.concatenate(columns) for columns in zip(nothing, *images, strict=True)))


def best_objects(
    found: Rows, objects: Rows, *, same_class: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the object of its image with the largest IoU.

    Args:
      found: The detections, D rows.
      objects: The ground truth, M rows.
      same_class: Look at objects of the detection's class; otherwise at those of other classes.

    Returns:
      `[D]` row of `objects`, -1 for none, and `[D]` its IoU in [0, 1], 0 for none.
    """
    best_object, best_iou = np.full(len(found.image), -1), np.zeros(len(found.image))
    for detection, candidate, iou in _pairs(found, objects):
        same = found.labels[detection] == objects.labels[candidate]
        of_interest = same if same_class else ~same
        detection, candidate = detection[of_interest], candidate[of_interest]
        iou = iou[of_interest]
        np.maximum.at(best_iou, detection, iou)
        # Of equals the first is written last, and stays.
        largest = np.flatnonzero(iou == best_iou[detection])[::-1]
        best_object[detection[largest]] = candidate[largest]
    return best_object, best_iou


def overlapping(
    found: Rows, objects: Rows, *, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a detection and an object of its image, of any class, that overlap enough.

    Args:
      found: The detections.
      objects: The ground truth.
      iou_threshold: Pairs of a larger IoU are given.

    Returns:
      `[K]` row of `found`, ascending, `[K]` row of `objects`, and `[K]` their IoU.
    """
    parts = [
        tuple(column[iou > iou_threshold] for column in (detection, candidate, iou))
        for detection, candidate, iou in _pairs(found, objects)
    ]
    nothing = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    detection, candidate, iou = (
        np.concatenate(columns) for columns in zip(nothing, *parts, strict=True)
    )
    return detection, candidate, iou


def _pairs(found: Rows, objects: Rows) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of detections and objects of one image, and their IoU; some detections at a time.

    All pairs of an image are in one long row, so no loop over images is needed.
    """
    by_image = np.argsort(objects.image, kind="stable")
    object_image = objects.image[by_image]
    first = np.searchsorted(object_image, found.image, side="left")
    count = np.searchsorted(object_image, found.image, side="right") - first
    for start in range(0, len(count), _CHUNK):
        part = count[start : start + _CHUNK]
        detection = np.repeat(np.arange(start, start + len(part)), part)
        rank = np.arange(len(detection)) - np.repeat(np.cumsum(part) - part, part)
        candidate = by_image[first[detection] + rank]
        yield detection, candidate, _iou(found.boxes[detection], objects.boxes[candidate])


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes row by row, `[N, 4]` and `[N, 4]` to `[N]`, in whole pixels (the + 1)."""
    extent = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1
    intersection = np.prod(np.maximum(extent, 0), axis=1)
    union = area(a) + area(b) - intersection
    return intersection / np.where(union > 0, union, 1)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas `[N]` of boxes `[N, 4]` in square pixels, the last row and column included."""
    return np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)


def _first_of_each(matched: np.ndarray) -> np.ndarray:
    """`[N]` bool, True at the first occurrence of an object; -1 is no object."""
    hits = np.zeros(len(matched), bool)
    hits[np.unique(matched, return_index=True)[1]] = True
    return hits & (matched >= 0)
