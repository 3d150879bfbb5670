import contextlib
import io

import numpy as np
import pytest
from pycocotools import coco as pycoco
from pycocotools import cocoeval

from ssd_jax import errors
from ssd_jax.evaluation import coco

CLASSES = ("cat", "dog", "cow", "no such object")


def random_set(seed, *, images=12, difficult=0.2):
    """Images with objects of all sizes, and detections near them; the last class has no objects."""
    rng = np.random.default_rng(seed)
    truth, detections = {}, {}
    for image_id in map(str, range(images)):
        count = rng.integers(0, 9)
        corner, side = rng.uniform(1, 300, (count, 2)), 2 ** rng.uniform(2, 8, (count, 2))
        boxes = np.concatenate([corner, corner + side], axis=1).round()
        labels = rng.integers(1, 4, count)
        truth[image_id] = boxes, labels, rng.random(count) < difficult
        near = np.repeat(boxes, 15, axis=0)
        near = near + rng.normal(0, 0.1, near.shape) * np.tile(near[:, 2:] - near[:, :2], 2)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        guessed = np.where(rng.random(len(near)) < 0.8, np.repeat(labels, 15), 4)
        detections[image_id] = near, rng.random(len(near)), guessed
    return detections, truth


def pycocotools_numbers(detections, truth):
    """The 12 numbers by pycocotools, with the boxes converted one by one."""
    images = [{"id": k} for k in range(1, len(truth) + 1)]
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
    targets, results = [], []
    for image, (image_id, (boxes, labels, difficult)) in enumerate(truth.items(), start=1):
        for (x1, y1, x2, y2), label, hard in zip(boxes, labels, difficult, strict=True):
            w, h = x2 - x1 + 1, y2 - y1 + 1
            targets.append(
                {
                    "id": len(targets) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1 - 1, y1 - 1, w, h],
                    "area": w * h,
                    "iscrowd": int(hard),
                }
            )
        nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0)
        boxes, scores, labels = detections.get(image_id, nothing)
        for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True):
            w, h = x2 - x1 + 1, y2 - y1 + 1
            results.append(
                {
                    "id": len(results) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1 - 1, y1 - 1, w, h],
                    "area": w * h,
                    "score": score,
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        tables = []
        for annotations in (targets, results):
            table = pycoco.COCO()
            table.dataset = {"images": images, "categories": categories, "annotations": annotations}
            table.createIndex()
            tables.append(table)
        evaluator = cocoeval.COCOeval(*tables, iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(coco.METRICS, evaluator.stats, strict=True))


def assert_same(detections, truth):
    numbers = coco.evaluate(detections, truth, class_names=CLASSES)
    assert numbers == pytest.approx(pycocotools_numbers(detections, truth), abs=1e-9)
    return numbers


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed):
    numbers = assert_same(*random_set(seed))
    assert 0 < numbers["AP"] < numbers["AP50"] < 1


def test_equals_pycocotools_beyond_a_hundred_detections_of_a_class():
    detections, truth = random_set(7, images=2)
    many = {k: tuple(np.concatenate([v] * 5) for v in row) for k, row in detections.items()}
    rng = np.random.default_rng(8)
    many = {k: (boxes, rng.random(len(boxes)), labels) for k, (boxes, _, labels) in many.items()}
    assert_same(many, truth)


def test_equals_pycocotools_where_all_is_difficult():
    numbers = assert_same(*random_set(3, difficult=1.0))
    assert set(numbers.values()) == {-1.0}


def test_images_without_detections_may_be_missing():
    detections, truth = random_set(4)
    assert_same({k: detections[k] for k in ("3", "5")}, truth)


@pytest.mark.parametrize(
    "detections", [{}, {"1": (np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))}]
)
def test_no_detections_score_zero(detections):
    numbers = assert_same(detections, random_set(5)[1])
    assert set(numbers.values()) == {0.0}


def test_no_ground_truth_scores_minus_one():
    nothing = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool)
    detections = {"1": (np.array([[1.0, 1.0, 9.0, 9.0]]), np.array([0.5]), np.array([1]))}
    assert set(assert_same(detections, {"1": nothing}).values()) == {-1.0}
    assert set(coco.evaluate({}, {}, class_names=CLASSES).values()) == {-1.0}


def test_perfect_detections_score_one():
    truth = {"1": (np.array([[1, 1, 32, 33]]), np.array([1]), np.array([False]))}
    detections = {"1": (np.array([[1, 1, 32, 33]]), np.array([0.5]), np.array([1]))}
    numbers = coco.evaluate(detections, truth, class_names=CLASSES)
    assert numbers["AP"] == numbers["AR1"] == pytest.approx(1.0, abs=1e-9)
    # 32 x 33 pixels is more than 32^2 only if the last row and column count.
    assert numbers["APs"] == -1.0
    assert numbers["APm"] == pytest.approx(1.0, abs=1e-9)


def test_prints_nothing(capfd):
    coco.evaluate(*random_set(1), class_names=CLASSES)
    assert capfd.readouterr() == ("", "")


def test_arguments_stay_as_they_are():
    detections, truth = random_set(2)
    coco.evaluate(detections, truth, class_names=CLASSES)
    for given, again in zip((detections, truth), random_set(2), strict=True):
        for image_id, arrays in given.items():
            for array, copy in zip(arrays, again[image_id], strict=True):
                np.testing.assert_array_equal(array, copy)


def test_detections_of_an_unknown_image_are_refused():
    detections, truth = random_set(0)
    del truth["3"]
    with pytest.raises(errors.UserError, match="detections of image '3'"):
        coco.evaluate(detections, truth, class_names=CLASSES)
