import contextlib
import io

import numpy as np
import pytest
from pycocotools import coco as pycoco
from pycocotools import cocoeval

from ssd_jax import errors
from ssd_jax.evaluation import coco

CLASSES = ("cat", "dog", "cow", "no such object")


def random_set(seed, *, images=12, crowd=0.2):
    """Images with objects of all sizes, and detections near them; the last class has no objects.

    An object's area is less than that of its box, as an outline's is.
    """
    rng = np.random.default_rng(seed)
    truth, detections = {}, {}
    for image_id in map(str, range(images)):
        count = rng.integers(0, 9)
        corner, side = rng.uniform(0, 300, (count, 2)), 2 ** rng.uniform(2, 8, (count, 2))
        boxes = np.concatenate([corner, side], axis=1).round(2)
        labels = rng.integers(1, 4, count)
        areas = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.3, 1, count)
        truth[image_id] = boxes, labels, rng.random(count) < crowd, areas
        near = np.repeat(boxes, 15, axis=0)
        near = near + rng.normal(0, 0.1, near.shape) * np.tile(near[:, 2:], 2)
        near[:, 2:] = np.maximum(near[:, 2:], 0)
        guessed = np.where(rng.random(len(near)) < 0.8, np.repeat(labels, 15), 4)
        detections[image_id] = near, rng.random(len(near)), guessed
    return detections, truth


def small_set(seed):
    """An image or more of two classes, of which one or both may be without objects.

    Numbers have one decimal and scores are of twenty, so that IoUs lie on thresholds and scores tie
    within an image and between images.
    """
    rng = np.random.default_rng(seed)
    truth, detections = {}, {}
    classes = [(1, 2), (1,), (2,)][rng.integers(3)]
    for image_id in range(rng.integers(1, 4)):
        count = rng.integers(0, 4)
        boxes = np.concatenate(
            [rng.uniform(0, 60, (count, 2)), 2 ** rng.uniform(3, 8, (count, 2))], axis=1
        ).round(1)
        labels = rng.choice(classes, count)
        areas = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.3, 1, count)
        truth[image_id] = boxes, labels, rng.random(count) < 0.25, areas
        near = np.repeat(boxes, 3, axis=0)
        moved = rng.integers(-1, 2, near.shape) * np.tile(near[:, 2:], 2) / 4
        near = (near + moved).round(1)
        guessed = np.where(rng.random(len(near)) < 0.8, np.repeat(labels, 3), 2)
        detections[image_id] = near, rng.integers(1, 20, len(near)) / 20, guessed
    return detections, truth


def pycocotools_numbers(detections, truth, names=CLASSES):
    """The 12 numbers by pycocotools."""
    images = [{"id": k} for k in range(1, len(truth) + 1)]
    categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
    targets, results = [], []
    for image, (image_id, rows) in enumerate(truth.items(), start=1):
        for bbox, label, crowd, area in zip(*(column.tolist() for column in rows), strict=True):
            targets.append(
                {
                    "id": len(targets) + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
        nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0)
        rows = detections.get(image_id, nothing)
        for bbox, score, label in zip(*(column.tolist() for column in rows), strict=True):
            results.append({"image_id": image, "category_id": label, "bbox": bbox, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        table, found = pycoco.COCO(), pycoco.COCO()
        table.dataset = {
            "info": {},
            "images": images,
            "categories": categories,
            "annotations": targets,
        }
        table.createIndex()
        if results:  # loadRes takes no empty list
            found = table.loadRes(results)
        else:
            found.dataset = {**table.dataset, "annotations": []}
            found.createIndex()
        evaluator = cocoeval.COCOeval(table, found, iouType="bbox")
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


def assert_small_sets_agree(seeds):
    """On each the 12 numbers; together they reach every kind of answer."""
    names = ("cat", "dog")
    ours, theirs = [], []
    for seed in seeds:
        detections, truth = small_set(seed)
        ours.append(list(coco.evaluate(detections, truth, class_names=names).values()))
        theirs.append(list(pycocotools_numbers(detections, truth, names).values()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    for column in np.transpose(theirs):
        assert column.min() == -1
        assert column.max() > 0.5
        assert len(np.unique(column)) > 5


def test_equals_pycocotools_on_small_sets():
    assert_small_sets_agree(range(60))


@pytest.mark.slow
def test_equals_pycocotools_on_2000_small_sets():
    assert_small_sets_agree(range(2000))


def test_equals_pycocotools_beyond_a_hundred_detections_of_a_class():
    detections, truth = random_set(7, images=2)
    many = {k: tuple(np.concatenate([v] * 5) for v in row) for k, row in detections.items()}
    rng = np.random.default_rng(8)
    many = {k: (boxes, rng.random(len(boxes)), labels) for k, (boxes, _, labels) in many.items()}
    assert_same(many, truth)


def test_equals_pycocotools_where_all_are_crowds():
    numbers = assert_same(*random_set(3, crowd=1.0))
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
    nothing = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0)
    detections = {"1": (np.array([[1.0, 1.0, 9.0, 9.0]]), np.array([0.5]), np.array([1]))}
    assert set(assert_same(detections, {"1": nothing}).values()) == {-1.0}
    assert set(coco.evaluate({}, {}, class_names=CLASSES).values()) == {-1.0}


@pytest.mark.parametrize(("area", "size"), [(1023.5, "s"), (1024.5, "m"), (9216.5, "l")])
def test_size_is_that_of_the_outline(area, size):
    boxes = np.array([[0.0, 0.0, 200.0, 100.0]])  # large by its box
    truth = {"1": (boxes, np.array([1]), np.array([False]), np.array([area]))}
    numbers = coco.evaluate(
        {"1": (boxes, np.array([0.5]), np.array([1]))}, truth, class_names=CLASSES
    )
    assert numbers["AP"] == numbers["AR1"] == pytest.approx(1.0, abs=1e-9)
    for other in "sml":
        expected = 1.0 if other == size else -1.0
        assert numbers[f"AP{other}"] == pytest.approx(expected, abs=1e-9)


def test_padding_rows_change_nothing():
    detections, truth = random_set(6)
    expected = coco.evaluate(detections, truth, class_names=CLASSES)
    for table in (detections, truth):
        for image_id, columns in table.items():
            table[image_id] = tuple(
                np.concatenate([np.zeros_like(c, shape=(2, *c.shape[1:])), c]) for c in columns
            )
    assert coco.evaluate(detections, truth, class_names=CLASSES) == expected


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
