import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ssd_jax import errors
from ssd_jax.evaluation import results, voc

SHARED = Path(__file__).resolve().parents[2] / "shared"
BOX = (11.0, 11.0, 20.0, 20.0)  # 10 x 10 pixels
FAR = (101.0, 101.0, 120.0, 120.0)


def found(*rows):
    """Detections of one image from rows of (box, score, label)."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(boxes), np.array(scores), np.array(labels, int)


def objects(*rows):
    """Ground truth of one image from rows of (box, label, difficult)."""
    boxes, labels, difficult = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(boxes), np.array(labels, int), np.array(difficult, bool)


def curve(detections, ground_truth, **options):
    """Precision and recall of the class "cat", label 1."""
    return voc.precision_recall(detections, ground_truth, class_names=("cat", "dog"), **options)[
        "cat"
    ]


def test_perfect_detection_has_ap_one_by_both_metrics():
    truth = {"1": objects((BOX, 1, False)), "2": objects((FAR, 1, False))}
    detections = {"1": found((BOX, 0.9, 1)), "2": found((FAR, 0.8, 1))}
    for use_07_metric in (True, False):
        result = voc.evaluate(detections, truth, class_names=("cat",), use_07_metric=use_07_metric)
        assert result.ap["cat"] == pytest.approx(1.0, abs=1e-12)
        assert result.mean_ap == pytest.approx(1.0, abs=1e-12)


def test_second_detection_of_an_object_is_wrong():
    nearby = (11.0, 11.0, 20.0, 19.0)
    detections = {"1": found((nearby, 0.9, 1), (BOX, 0.8, 1))}
    result = curve(detections, {"1": objects((BOX, 1, False))})
    np.testing.assert_array_equal(result.recall, [1, 1])
    np.testing.assert_array_equal(result.precision, [1, 0.5])


def test_taken_object_is_not_traded_for_the_next_best():
    close = (11.0, 11.0, 20.0, 18.0)  # the detection overlaps it by 0.8
    truth = {"1": objects((BOX, 1, False), (close, 1, False))}
    result = curve({"1": found((BOX, 0.9, 1), (BOX, 0.8, 1))}, truth)
    np.testing.assert_array_equal(result.recall, [0.5, 0.5])
    np.testing.assert_array_equal(result.precision, [1, 0.5])


def test_objects_that_overlap_equally_give_the_detection_to_the_first():
    truth = {"1": objects((BOX, 1, True), (BOX, 1, False))}
    assert curve({"1": found((BOX, 0.9, 1))}, truth).recall.size == 0
    truth = {"1": objects((BOX, 1, False), (BOX, 1, True))}
    np.testing.assert_array_equal(curve({"1": found((BOX, 0.9, 1))}, truth).recall, [1])


def test_difficult_object_is_neither_hit_nor_miss():
    truth = {"1": objects((BOX, 1, True), (FAR, 1, False))}
    detections = {"1": found((BOX, 0.9, 1), (BOX, 0.85, 1), (FAR, 0.8, 1))}
    result = curve(detections, truth)
    np.testing.assert_array_equal(result.recall, [1])
    np.testing.assert_array_equal(result.precision, [1])
    np.testing.assert_array_equal(result.scores, [0.8])
    assert result.num_objects == 1


@pytest.mark.parametrize(
    ("right", "iou", "hit"),
    [
        # The object is columns 11 to 20, the detection 11 to `right` of the same rows. Without the
        # + 1 the exact halves would be 4/9 and 9/19.
        (15.0, 5 / 10, False),
        (15.01, 5.01 / 10, True),
        (30.0, 10 / 20, False),
        (29.99, 10 / 19.99, True),
    ],
)
def test_iou_counts_the_last_pixel_and_must_exceed_the_threshold(right, iou, hit):
    detections = {"1": found(((11.0, 11.0, right, 20.0), 0.9, 1))}
    truth = {"1": objects((BOX, 1, False))}
    assert curve(detections, truth).precision == [hit]
    assert curve(detections, truth, iou_threshold=iou - 1e-9).precision == [True]
    assert curve(detections, truth, iou_threshold=iou + 1e-9).precision == [False]


def test_one_pixel_boxes_overlap_wholly():
    pixel = (5.0, 5.0, 5.0, 5.0)
    result = curve({"1": found((pixel, 0.9, 1))}, {"1": objects((pixel, 1, False))})
    np.testing.assert_array_equal(result.precision, [1])


def test_object_of_another_class_is_not_matched():
    truth = {"1": objects((BOX, 2, False), (FAR, 1, False))}
    result = curve({"1": found((BOX, 0.9, 1))}, truth)
    np.testing.assert_array_equal(result.recall, [0])
    np.testing.assert_array_equal(result.precision, [0])


def test_object_of_another_image_is_not_matched():
    truth = {"1": objects((BOX, 1, False)), "2": objects((FAR, 1, False))}
    np.testing.assert_array_equal(curve({"2": found((BOX, 0.9, 1))}, truth).precision, [0])


@pytest.mark.parametrize("use_07_metric", [True, False])
@pytest.mark.parametrize("detections", [{}, {"1": found()}])
def test_no_detections_have_ap_zero(detections, use_07_metric):
    truth = {"1": objects((BOX, 1, False)), "2": objects()}
    result = voc.evaluate(detections, truth, class_names=("cat",), use_07_metric=use_07_metric)
    assert result.ap == {"cat": 0.0}
    assert result.mean_ap == 0.0


@pytest.mark.parametrize("use_07_metric", [True, False])
def test_class_without_objects_is_left_out_of_the_mean(use_07_metric):
    truth = {"1": objects((BOX, 1, False), (FAR, 3, True))}
    detections = {"1": found((BOX, 0.9, 1), (BOX, 0.9, 2), (FAR, 0.9, 3))}
    result = voc.evaluate(
        detections, truth, class_names=("cat", "dog", "cow"), use_07_metric=use_07_metric
    )
    assert np.isnan([result.ap["dog"], result.ap["cow"]]).all()
    assert result.mean_ap == pytest.approx(1.0, abs=1e-12)
    assert result.curves["cow"].num_objects == 0


def test_no_ground_truth_at_all_has_no_mean():
    result = voc.evaluate({}, {}, class_names=("cat",), use_07_metric=True)
    assert np.isnan(result.mean_ap)


def test_tied_detections_of_one_object_are_one_hit_and_one_miss():
    detections = {"1": found((BOX, 0.9, 1), (BOX, 0.9, 1))}
    result = curve(detections, {"1": objects((BOX, 1, False))})
    np.testing.assert_array_equal(result.precision, [1, 0.5])


def test_order_of_the_detected_images_changes_nothing():
    truth = {"1": objects((BOX, 1, False)), "2": objects((BOX, 1, False))}
    one, two = found((BOX, 0.9, 1)), found((FAR, 0.9, 1))
    forth = curve({"1": one, "2": two}, truth)
    back = curve({"2": two, "1": one}, truth)
    np.testing.assert_array_equal(forth.precision, back.precision)


def test_padding_rows_change_nothing():
    pad = (0.0, 0.0, 0.0, 0.0)
    truth = {"1": objects((BOX, 1, False), (pad, 0, False))}
    result = curve({"1": found((BOX, 0.9, 1), (pad, 0.0, 0))}, truth)
    assert result.num_objects == 1
    np.testing.assert_array_equal(result.precision, [1])


def test_detections_of_an_unknown_image_are_refused():
    with pytest.raises(errors.UserError, match=r"^there are detections of image '7'.*no ground"):
        curve({"7": found((BOX, 0.9, 1))}, {"1": objects((BOX, 1, False))})


def test_label_without_a_name_is_refused():
    with pytest.raises(errors.UserError, match="image '1' has the label 3"):
        curve({"1": found((BOX, 0.9, 3))}, {"1": objects((BOX, 1, False))})


def test_arrays_of_different_length_are_refused():
    boxes, scores, _ = found((BOX, 0.9, 1))
    with pytest.raises(ValueError, match="image '1' has 1 boxes, 2 labels"):
        curve({"1": (boxes, scores, np.array([1, 1]))}, {"1": objects((BOX, 1, False))})


def test_average_precision_by_hand():
    # Hit, miss, hit of 4 objects. The envelope is 1 up to recall 1/4 and 2/3 up to 2/4.
    recall, precision = np.array([0.25, 0.25, 0.5]), np.array([1, 0.5, 2 / 3])
    eleven = voc.average_precision(recall, precision, use_07_metric=True)
    assert eleven == pytest.approx((3 * 1 + 3 * 2 / 3) / 11, abs=1e-12)
    area = voc.average_precision(recall, precision, use_07_metric=False)
    assert area == pytest.approx(0.25 * 1 + 0.25 * 2 / 3, abs=1e-12)


def test_evaluation_does_not_import_jax():
    program = "import sys; from ssd_jax.evaluation import voc; sys.exit('jax' in sys.modules)"
    root = Path(voc.__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


def random_set(seed):
    """Crowded random images, whose scores are all different; the last class has no objects."""
    rng = np.random.default_rng(seed)
    scores = iter(rng.permutation(2000) / 2000)

    def boxes(count):
        corner = rng.integers(1, 15, (count, 2))
        return np.concatenate([corner, corner + rng.integers(3, 12, (count, 2))], axis=1)

    truth, detections = {}, {}
    for image_id in map(str, range(rng.integers(1, 12))):
        count = rng.integers(0, 8)
        difficult = rng.random(count) < 0.25
        truth[image_id] = boxes(count), rng.integers(1, 4, count), difficult
        count = rng.integers(0, 30)
        labels = rng.integers(1, 5, count)
        detections[image_id] = boxes(count), np.array([next(scores) for _ in labels]), labels
    return detections, truth


def devkit_ap(detections, truth, label, *, use_07_metric):
    """AP of one class by the rules of VOCevaldet.m, one detection and one object at a time."""
    rows = [
        (score, image_id, box)
        for image_id, (boxes, scores, labels) in detections.items()
        for box, score, own in zip(boxes, scores, labels, strict=True)
        if own == label
    ]
    wanted = sum(
        1
        for _, labels, difficult in truth.values()
        for own, hard in zip(labels, difficult, strict=True)
        if own == label and not hard
    )
    if wanted == 0:
        return float("nan")
    taken, points, right, wrong = set(), [(0.0, 0.0)], 0, 0
    for _, image_id, box in sorted(rows, key=lambda row: -row[0]):
        best, largest = None, -1.0
        boxes, labels, difficult = truth[image_id]
        for k, other in enumerate(boxes):
            if labels[k] != label:
                continue
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > largest:
                    best, largest = k, overlap
        if largest <= 0.5:
            wrong += 1
        elif difficult[best]:
            continue
        elif (image_id, best) in taken:
            wrong += 1
        else:
            taken.add((image_id, best))
            right += 1
        points.append((right / wanted, right / (right + wrong)))
    if use_07_metric:
        thresholds = [0.1 * k for k in range(11)]
        return sum(max([p for r, p in points if r >= t], default=0.0) for t in thresholds) / 11
    recalls = sorted({recall for recall, _ in points})
    return sum(
        (recall - before) * max(p for r, p in points if r >= recall)
        for before, recall in itertools.pairwise(recalls)
    )


@pytest.mark.parametrize("use_07_metric", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_equals_the_devkits_loop_on_random_images(seed, use_07_metric):
    detections, truth = random_set(seed)
    names = ("cat", "dog", "cow", "no such object")
    result = voc.evaluate(detections, truth, class_names=names, use_07_metric=use_07_metric)
    expected = [
        devkit_ap(detections, truth, label, use_07_metric=use_07_metric)
        for label in range(1, len(names) + 1)
    ]
    np.testing.assert_allclose(list(result.ap.values()), expected, rtol=0, atol=1e-12)


def shared_truth(class_names):
    """The official annotations of VOC2007 test."""
    truth = {}
    with tarfile.open(SHARED / "voc" / "VOC2007_test_annotations.tar.gz") as archive:
        for member in archive:
            if not member.name.endswith(".xml"):
                continue
            found = ElementTree.parse(archive.extractfile(member)).findall("object")
            truth[Path(member.name).stem] = (
                np.array(
                    [
                        [float(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
                        for o in found
                    ]
                ),
                np.array([class_names.index(o.findtext("name")) + 1 for o in found]),
                np.array([o.findtext("difficult") == "1" for o in found]),
            )
    return truth


def shared_detections(detector, truth, class_names, folder):
    """Detections in the devkit's text form: image, score and corners, one file per class."""
    archive_path = SHARED / "evaluation" / f"voc2007_test_detections_{detector}.tar.gz"
    with tarfile.open(archive_path) as archive:
        archive.extractall(folder, filter="data")
    key = results.Key({}, tuple(truth), tuple(class_names), ())
    return results.read(folder / detector, key).voc


@pytest.mark.skipif(
    not (SHARED / "evaluation" / "expected_ap.json").is_file(),
    reason="no ../shared/evaluation beside the repository: real detections are not part of it",
)
@pytest.mark.parametrize("detector", ["a", "b"])
def test_real_detections_have_the_devkits_ap(detector, tmp_path):
    """Equal scores in the order of the images, as MATLAB's stable sort has them."""
    expected = json.loads((SHARED / "evaluation" / "expected_ap.json").read_text())[detector]
    names = [name for name in expected["area"] if name != "mAP"]
    truth = shared_truth(names)
    found = shared_detections(detector, truth, names, tmp_path)
    curves = voc.precision_recall(found, truth, class_names=names)
    for metric, use_07_metric in (("voc07", True), ("area", False)):
        result = voc.summarize(curves, use_07_metric=use_07_metric)
        assert result.ap | {"mAP": result.mean_ap} == pytest.approx(expected[metric], abs=1e-9)


def test_equal_scores_keep_the_order_of_the_images():
    """By hand: 300 images of one object each, three scores in turns, which every second finds."""
    boxes = {True: np.array([[1, 1, 10, 10]]), False: np.array([[50, 50, 60, 60]])}
    truth = {k: (boxes[True], np.array([1]), np.array([False])) for k in range(300)}
    found = {k: (boxes[k % 2 == 0], np.array([k % 3]), np.array([1])) for k in range(300)}
    curve = voc.precision_recall(found, truth, class_names=["a"])["a"]
    ranked = [k for score in (2, 1, 0) for k in range(300) if k % 3 == score]
    hits = np.cumsum([k % 2 == 0 for k in ranked])
    np.testing.assert_array_equal(curve.recall, hits / 300)
