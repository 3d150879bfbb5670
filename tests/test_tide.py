from pathlib import Path

import numpy as np
import pytest
import test_voc_evaluation as cases

from ssd_jax import errors
from ssd_jax.evaluation import tide, voc

NAMES = ("cat", "dog")
BOX = (11, 11, 20, 20)  # 10 x 10 pixels
HALF = (11, 11, 20, 15)  # IoU 0.5 with BOX, which is not more than 0.5
CORNER = (11, 11, 14, 14)  # 0.16
TENTH = (11, 11, 20, 11)  # 0.1
FAR = (101, 101, 120, 120)
found, objects = cases.found, cases.objects


def errors_of(detections, truth, names=NAMES):
    return tide.evaluate(detections, truth, class_names=names)


def one_kind(result):
    """The only kind that there is, and its cost; others cost nothing."""
    (kind,) = np.flatnonzero(result.counts)
    assert np.abs(np.delete(result.cost, kind)).max() == pytest.approx(0, abs=1e-12)
    return tide.KINDS[kind], int(result.counts[kind]), result.cost[kind]


# A cat that is found stands in each image; AP of cats, by hand, without and with the error.
RIGHT = (FAR, 0.5, 1)
SEEN = (FAR, 1, False)


@pytest.mark.parametrize(
    ("kind", "rows", "more", "cost"),
    [
        # wrong, right: 1/2 at recall 1 of one object
        ("background", [((300, 300, 320, 320), 0.9, 1)], [], 1 / 2),
        # a dog that is reported before the cat; the class of dogs has no object, so it costs none
        ("background", [((300, 300, 320, 320), 0.9, 2)], [], 0),
        # right (0.9), wrong, right: 1/2 + 1/2 * 2/3
        ("duplicate", [(BOX, 0.9, 1), (BOX, 0.8, 1)], [(BOX, 1, False)], 1 / 6),
        # wrong, right, and one of two objects not found: 1/4; mended: 1
        ("localization", [(CORNER, 0.9, 1)], [(BOX, 1, False)], 3 / 4),
        ("localization", [(HALF, 0.9, 1)], [(BOX, 1, False)], 3 / 4),
        ("localization", [(TENTH, 0.9, 1)], [(BOX, 1, False)], 3 / 4),
        # cats are perfect; the dog is not found: (1 + 0) / 2; mended: 1. No wrong cat is left.
        ("missed", [], [(BOX, 2, False)], 1 / 2),
        # one of two cats: 1/2
        ("missed", [], [(BOX, 1, False)], 1 / 2),
    ],
)
def test_each_kind_alone(kind, rows, more, cost):
    result = errors_of({"1": found(RIGHT, *rows)}, {"1": objects(SEEN, *more)})
    assert one_kind(result) == (kind, 1, pytest.approx(cost))


def test_classification_alone():
    """The dog, first, is called a cat: cats 1/2, dogs 0; mended, both are 1."""
    result = errors_of({"1": found((BOX, 0.9, 1), RIGHT)}, {"1": objects((BOX, 2, False), SEEN)})
    assert one_kind(result) == ("classification", 1, pytest.approx(3 / 4))
    np.testing.assert_allclose(result.class_cost[:, tide.CLASSIFICATION], [1 / 2, 1])
    assert result.class_counts[0, tide.CLASSIFICATION] == 1


def test_both_alone():
    """A cat is reported at the corner of the dog, which is also found."""
    result = errors_of(
        {"1": found((CORNER, 0.9, 1), (BOX, 0.3, 2), RIGHT)},
        {"1": objects((BOX, 2, False), SEEN)},
    )
    assert one_kind(result) == ("both", 1, pytest.approx(1 / 4))


@pytest.mark.parametrize(("box", "kind"), [(HALF, "both"), (TENTH, "background")])
def test_borders_of_another_class(box, kind):
    """A cat where the dog is: at IoU 0.5 the box is not right yet, at 0.1 there is nothing."""
    truth = {"1": objects((BOX, 2, False), SEEN)}
    result = errors_of({"1": found((box, 0.9, 1), (BOX, 0.3, 2), RIGHT)}, truth)
    assert one_kind(result) == (kind, 1, pytest.approx(1 / 4))


def test_what_is_right_has_no_errors():
    result = errors_of({"1": found(RIGHT)}, {"1": objects(SEEN)})
    assert result.counts.tolist() == [0] * 6
    assert result.mean_ap == 1
    assert (result.false_positives, result.false_negatives) == (0, 0)


def test_error_about_an_object_that_is_found_vanishes():
    """A dog reported on a cat that is found: mended, it would be the cat's second detection."""
    truth = {"1": objects((BOX, 1, False), (FAR, 2, False))}
    result = errors_of({"1": found((BOX, 0.9, 2), (BOX, 0.8, 1), (FAR, 0.5, 2))}, truth)
    assert one_kind(result) == ("classification", 1, pytest.approx(1 / 4))


def test_of_two_errors_about_one_object_only_the_better_becomes_right():
    truth = {"1": objects((BOX, 1, False))}
    result = errors_of({"1": found((CORNER, 0.9, 1), (HALF, 0.8, 1))}, truth, names=("cat",))
    assert one_kind(result) == ("localization", 2, pytest.approx(1))


def test_difficult_objects_count_neither_way():
    truth = {"1": objects((BOX, 1, True), SEEN)}
    excused = errors_of({"1": found((BOX, 0.9, 1), (BOX, 0.8, 1), RIGHT)}, truth)
    assert excused.counts.sum() == 0
    assert excused.mean_ap == 1
    missed = errors_of({"1": found(RIGHT)}, truth)
    assert missed.counts.sum() == 0


def test_no_error_is_about_a_difficult_object():
    truth = {"1": objects((BOX, 2, True), SEEN)}
    result = errors_of({"1": found((BOX, 0.9, 1), RIGHT)}, truth)
    assert one_kind(result) == ("background", 1, pytest.approx(1 / 2))


def test_false_positives_and_negatives():
    """Wrong, right, and one of two not found: 1/4. Without the wrong 1/2; without the lost 1/2."""
    truth = {"1": objects((BOX, 1, False), SEEN)}
    result = errors_of({"1": found(((300, 300, 320, 320), 0.9, 1), RIGHT)}, truth)
    assert result.false_positives == pytest.approx(1 / 4)
    assert result.false_negatives == pytest.approx(1 / 4)


def test_costs_need_not_add_up():
    """Both above: background costs 1/4, missed 1/4, and 3/4 are lost."""
    truth = {"1": objects((BOX, 1, False), SEEN)}
    result = errors_of({"1": found(((300, 300, 320, 320), 0.9, 1), RIGHT)}, truth)
    assert result.cost.sum() == pytest.approx(1 / 2)
    assert 1 - result.mean_ap == pytest.approx(3 / 4)
    assert result.step[tide.BACKGROUND] == pytest.approx(1 / 4)
    assert result.step[tide.MISSED] == pytest.approx(1 / 2)


def test_no_detections_at_all():
    result = errors_of({}, {"1": objects((BOX, 1, False), (BOX, 2, True))})
    assert one_kind(result) == ("missed", 1, 1)


def test_no_ground_truth():
    result = errors_of({}, {})
    assert result.counts.sum() == 0
    assert np.isnan(result.mean_ap)
    assert np.isnan(result.cost).all()
    result = errors_of({"1": found(RIGHT)}, {"1": objects()})
    assert result.counts.tolist() == [0, 0, 0, 0, 1, 0]


def test_detections_of_another_split_are_refused():
    with pytest.raises(errors.UserError, match="no ground truth"):
        errors_of({"2": found(RIGHT)}, {"1": objects(SEEN)})


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def slow_kinds(detections, truth):
    """How many errors there are of each kind by the paper's words, one detection at a time."""
    kinds, about = [], []
    owners = set()
    for image_id, (boxes, scores, labels) in detections.items():
        gt_boxes, gt_labels, difficult = truth[image_id]
        everything = range(len(gt_labels))
        counted = [k for k in everything if not difficult[k]]
        for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
            ious = [overlap(boxes[i], gt_boxes[k]) for k in everything]
            mine = [k for k in everything if gt_labels[k] == labels[i]]
            best = max(mine, key=lambda k: ious[k], default=None)
            if best is not None and ious[best] > 0.5:
                if difficult[best]:
                    continue
                if (image_id, best) not in owners:
                    owners.add((image_id, best))
                    continue
            own = max((k for k in counted if k in mine), key=lambda k: ious[k], default=None)
            other = max((k for k in counted if k not in mine), key=lambda k: ious[k], default=None)
            own_iou = 0 if own is None else ious[own]
            other_iou = 0 if other is None else ious[other]
            if 0.1 <= own_iou <= 0.5:
                kinds.append("localization")
                about.append((image_id, own))
            elif other_iou > 0.5:
                kinds.append("classification")
                about.append((image_id, other))
            elif own_iou > 0.5:
                kinds.append("duplicate")
            elif max(own_iou, other_iou) <= 0.1:
                kinds.append("background")
            else:
                kinds.append("both")
    for image_id, (_, gt_labels, difficult) in truth.items():
        for k in range(len(gt_labels)):
            if not difficult[k] and (image_id, k) not in owners and (image_id, k) not in about:
                kinds.append("missed")
    return [kinds.count(kind) for kind in tide.KINDS]


@pytest.mark.parametrize("seed", range(25))
def test_kinds_are_those_of_the_papers_words_on_random_images(seed):
    detections, truth = cases.random_set(seed)
    names = ("cat", "dog", "cow", "no such object")
    result = errors_of(detections, truth, names)
    assert result.counts.tolist() == slow_kinds(detections, truth)
    check_sums(result, detections, truth, names)


def check_sums(result, detections, truth, names):
    """Its AP is that of the evaluation, and one kind after the other leads to 1."""
    ap = voc.evaluate(detections, truth, class_names=names, use_07_metric=False)
    assert result.mean_ap == pytest.approx(ap.mean_ap, abs=1e-12, nan_ok=True)
    assert result.mean_ap + result.step.sum() == pytest.approx(1, nan_ok=True)
    np.testing.assert_allclose(
        result.cost, np.nanmean(result.class_cost, axis=0), rtol=0, atol=1e-12
    )


def documented(detector, way):
    """A row of docs/metrics.md: mAP, the six costs, their sum and what is lost, in points."""
    page = Path(__file__).parent.parent / "docs/metrics.md"
    rows = [line.split("|")[1:-1] for line in page.read_text(encoding="utf-8").splitlines()]
    (row,) = (row for row in rows if row[:1] == [f" {detector}, {way} "])
    return [float(cell) for cell in row[1:]]


@pytest.mark.parametrize("detector", ["a", "b"])
def test_real_detections(shared, tmp_path, detector):
    """Each costs something, and the parts don't add up to what is lost; one by one they do."""
    from ssd_jax.data import classes

    names = classes.VOC
    truth = cases.shared_truth(names)
    detections = cases.shared_detections(detector, truth, names, tmp_path)
    result = errors_of(detections, truth, names)
    check_sums(result, detections, truth, names)
    found_objects = sum(int((~difficult).sum()) for _, _, difficult in truth.values())
    matches = voc.match(detections, truth, class_names=names)
    assert matches.hit.sum() + result.counts[:5].sum() + matches.excused.sum() == sum(
        len(scores) for _, scores, _ in detections.values()
    )
    assert matches.hit.sum() + result.counts[tide.MISSED] <= found_objects
    assert (result.cost > 0).all()
    assert result.cost.sum() < 1 - result.mean_ap
    assert result.false_negatives > result.cost[tide.MISSED]
    for way, parts in (("alone", result.cost), ("in sequence", result.step)):
        row = 100 * np.array([result.mean_ap, *parts, parts.sum(), 1 - result.mean_ap])
        np.testing.assert_allclose(documented(detector, way), row, rtol=0, atol=0.051)
