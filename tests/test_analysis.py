import numpy as np
import pytest
import test_voc_evaluation as cases

from ssd_jax.evaluation import analysis, voc

NAMES = ("cat", "dog")
BOX = (11, 11, 20, 20)
FAR = (101, 101, 120, 120)
AWAY = (301, 301, 320, 320)
found, objects = cases.found, cases.objects


def match(detections, truth, names=NAMES):
    return voc.match(detections, truth, class_names=names)


def confusion(detections, truth, score_threshold=0.0, names=NAMES):
    return analysis.confusion(match(detections, truth, names), score_threshold=score_threshold)


def test_confusion_by_hand():
    truth = {
        "1": objects((BOX, 1, False), (FAR, 2, False)),
        "2": objects((BOX, 1, False), (FAR, 2, True)),
    }
    detections = {
        # a cat for a cat, a second cat there, a cat for a dog, a dog of nothing
        "1": found((BOX, 0.9, 1), (BOX, 0.8, 1), (FAR, 0.7, 1), (AWAY, 0.6, 2)),
        # nothing for the cat; what overlaps the difficult dog is left out, whatever it says
        "2": found((FAR, 0.9, 1), (FAR, 0.8, 2)),
    }
    assert confusion(detections, truth).tolist() == [
        [1, 0, 1],  # cats: found, and not found
        [1, 0, 0],  # the dog: called a cat
        [1, 1, 0],  # of background: the second cat, the dog of nothing
    ]


def test_confusion_takes_the_best_score_first_and_drops_what_is_below_the_threshold():
    truth = {"1": objects((BOX, 1, False))}
    detections = {"1": found((BOX, 0.4, 1), (BOX, 0.9, 2))}
    assert confusion(detections, truth).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert confusion(detections, truth, 0.5).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert confusion(detections, truth, 0.95).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(10))
def test_rows_of_confusion_add_up_to_the_objects(seed, threshold):
    detections, truth = cases.random_set(seed)
    names = ("cat", "dog", "cow", "no such object")
    check_rows(confusion(detections, truth, threshold, names), truth)


def check_rows(table, truth):
    labels = np.concatenate([np.asarray(row[1], int)[~row[2]] for row in truth.values()])
    totals = np.bincount(labels, minlength=len(table))[1:]
    np.testing.assert_array_equal(table[:-1].sum(axis=1), totals)
    assert table[-1, -1] == 0


@pytest.mark.parametrize("detector", ["a", "b"])
def test_rows_of_confusion_add_up_on_real_detections(shared, tmp_path, detector):
    from ssd_jax.data import classes

    truth = cases.shared_truth(classes.VOC)
    detections = cases.shared_detections(detector, truth, classes.VOC, tmp_path)
    matches = match(detections, truth, classes.VOC)
    point = analysis.operating_point(matches)
    check_rows(analysis.confusion(matches, score_threshold=point.score), truth)
    table = analysis.confusion(matches, score_threshold=0.0)
    check_rows(table, truth)
    assert table[:, :-1].sum() <= len(matches.order)


def test_operating_point_by_hand():
    """After one, two, three detections: P 1, 1/2, 2/3 and R 1/2, 1/2, 1; F1 2/3, 1/2, 4/5."""
    truth = {"1": objects((BOX, 1, False), (FAR, 1, False))}
    detections = {"1": found((BOX, 0.9, 1), (AWAY, 0.8, 1), (FAR, 0.7, 1))}
    point = analysis.operating_point(match(detections, truth))
    assert point == pytest.approx((0.7, 2 / 3, 1, 4 / 5))


def test_operating_point_does_not_split_equal_scores():
    truth = {"1": objects((BOX, 1, False))}
    detections = {"1": found((BOX, 0.5, 1), (AWAY, 0.5, 1))}
    assert analysis.operating_point(match(detections, truth)).precision == 1 / 2


def test_operating_point_where_nothing_is_right():
    assert analysis.operating_point(match({}, {"1": objects((BOX, 1, False))})).f1 == 0
    assert analysis.operating_point(match({}, {})).score == 0.5


SMALL, LARGE = (11, 11, 30, 30), (201, 201, 400, 400)


def test_ap_by_size_by_hand():
    truth = {"1": objects((SMALL, 1, False), (LARGE, 1, False), (LARGE, 2, False))}
    detections = {
        # a large mistake, then the small cat, then the large one
        "1": found(((201, 401, 400, 600), 0.9, 1), (SMALL, 0.8, 1), (LARGE, 0.7, 1)),
    }
    sizes = analysis.by_size(match(detections, truth))
    assert sizes.objects.tolist() == [1, 0, 2]
    np.testing.assert_allclose(sizes.mean_ap, [1, np.nan, (1 / 2 + 0) / 2])
    np.testing.assert_allclose(sizes.recall, [1, np.nan, 1 / 2])


def test_one_group_of_all_objects_has_the_ap_of_all():
    """All boxes of 200 x 200 pixels are large and square."""
    rng = np.random.default_rng(0)
    corners = rng.integers(1, 600, (40, 2))
    boxes = np.concatenate([corners, corners + 199], axis=1)
    truth = {"1": (boxes[:20], rng.integers(1, 3, 20), rng.random(20) < 0.2)}
    detections = {"1": (boxes[10:], rng.random(30), rng.integers(1, 3, 30))}
    ap = voc.evaluate(detections, truth, class_names=NAMES, use_07_metric=False).mean_ap
    matches = match(detections, truth)
    assert analysis.by_size(matches).mean_ap[2] == pytest.approx(ap)
    assert analysis.by_shape(matches).mean_ap[2] == pytest.approx(ap)


def test_shapes_are_the_nearest_ratios():
    sides = np.array([(10, 40), (10, 30), (10, 19), (10, 12), (12, 10), (19, 10), (30, 10)])
    boxes = np.concatenate([np.ones_like(sides), sides], axis=1)
    names = [analysis.SHAPES[k] for k in analysis.shape_of(boxes)]
    assert names == ["1 : 3", "1 : 3", "1 : 2", "1 : 1", "1 : 1", "2 : 1", "3 : 1"]


def test_calibration_by_hand():
    truth = {"1": objects((BOX, 1, False), (FAR, 1, True))}
    detections = {"1": found((BOX, 0.95, 1), (FAR, 0.5, 1), (AWAY, 0.91, 1), (AWAY, 0.25, 2))}
    result = analysis.calibration(match(detections, truth))
    assert result.counts.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]  # the difficult one is not
    assert result.scores[9] == pytest.approx(0.93)
    assert result.precision[9] == 1 / 2
    assert result.precision[2] == 0
    assert result.error == pytest.approx((2 * 0.43 + 1 * 0.25) / 3)


def test_calibration_without_detections():
    result = analysis.calibration(match({}, {"1": objects((BOX, 1, False))}))
    assert np.isnan(result.error)
    assert result.counts.sum() == 0


def test_worst_false_negatives_are_the_largest_that_are_never_found():
    truth = {
        "1": objects((BOX, 1, False), (FAR, 1, False)),
        "2": objects((LARGE, 1, False)),
        "3": objects((LARGE, 1, True)),
        "4": objects((FAR, 2, False)),
    }
    detections = {"2": found((LARGE, 0.2, 1)), "4": found((FAR, 0.9, 2))}
    matches = match(detections, truth)
    rows = analysis.worst_false_negatives(matches, score_threshold=0.5, count=9)
    assert matches.objects.boxes[rows].tolist() == [list(FAR), list(LARGE)]
    assert matches.objects.image[rows].tolist() == [0, 1]


def test_confident_false_positives_come_best_first_and_once_an_image():
    truth = {"1": objects((BOX, 1, False)), "2": objects(), "3": objects((BOX, 1, True))}
    detections = {
        "1": found((BOX, 0.99, 1), (AWAY, 0.7, 1), (FAR, 0.6, 1)),
        "2": found((AWAY, 0.8, 2)),
        "3": found((BOX, 0.9, 1)),
    }
    matches = match(detections, truth)
    rows = analysis.confident_false_positives(matches, count=9)
    assert matches.found.values[rows].tolist() == [0.8, 0.7]
    assert len(analysis.confident_false_positives(matches, count=1)) == 1


def test_errors_by_image_by_hand():
    truth = {"1": objects((BOX, 1, False), (FAR, 1, False)), "2": objects(), "3": objects()}
    detections = {
        "1": found((BOX, 0.9, 1), (AWAY, 0.8, 1)),
        "2": found((AWAY, 0.3, 2)),
    }
    matches = match(detections, truth)
    counts = analysis.errors_by_image(matches, score_threshold=0.5, num_images=3)
    assert counts.tolist() == [2, 0, 0]
    counts = analysis.errors_by_image(matches, score_threshold=0.95, num_images=3)
    assert counts.tolist() == [2, 0, 0]
    counts = analysis.errors_by_image(matches, score_threshold=0.0, num_images=3)
    assert counts.tolist() == [2, 1, 0]
