"""Detections in other forms, and back."""

import json
import sys
import types

import numpy as np
import pytest
from pycocotools import coco

from ssd_jax import adapters, errors
from ssd_jax.detection import Detections

NAMES = ("ant", "bee", "cat")
FOUND = Detections(
    np.array([[1, 2, 11, 22], [0, 0, 5.5, 5.25]], np.float32),
    np.array([0.75, 0.5], np.float32),
    np.array([3, 1], np.int32),
)
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


def assert_same(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_coco_by_hand():
    rows = adapters.to_coco(FOUND, image_id=7, category_ids=(1, 2, 90))
    assert rows == [
        {"image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "score": 0.75},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 5.5, 5.25], "score": 0.5},
    ]
    assert adapters.to_coco(NOTHING, image_id=7, category_ids=(1,)) == []


def test_coco_there_and_back_of_several_images():
    rows = [
        row
        for image_id in (7, 3)
        for row in adapters.to_coco(FOUND, image_id=image_id, category_ids=(1, 2, 90))
    ]
    found = adapters.from_coco(rows[::-1], category_ids=(1, 2, 90))
    assert set(found) == {3, 7}
    for one in found.values():
        assert_same(one, FOUND)


def test_coco_results_are_written_with_nine_digits_a_detection_a_line(tmp_path):
    rows = adapters.coco_rows(
        [[1 / 3, 0, 10.3 - 0.1, 2e6 / 3], (0, 0, 1, 1)], [1 / 7, 0.5], [90, 1], image_id=7
    )
    adapters.write_coco(tmp_path / "a.json", rows)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == (
        '[{"image_id": 7, "category_id": 90, "bbox": [0.333333333, 0.0, 10.2, 666666.667], '
        '"score": 0.142857143},\n'
        '{"image_id": 7, "category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.5}]\n'
    )
    adapters.write_coco(tmp_path / "a.json", [])
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == []


def test_coco_results_that_fail_leave_the_earlier_file(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ZeroDivisionError):
        adapters.write_coco(tmp_path / "a.json", (1 // 0 for _ in range(1)))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "[]")]


def test_pycocotools_takes_them():
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": 7}],
        "categories": [{"id": k} for k in (1, 2, 90)],
        "info": {},
    }
    truth.createIndex()
    rows = truth.loadRes(adapters.to_coco(FOUND, image_id=7, category_ids=(1, 2, 90)))
    assert [row["area"] for row in rows.loadAnns(rows.getAnnIds())] == [200, 5.5 * 5.25]


def test_what_has_no_id_or_no_label_is_refused():
    with pytest.raises(ValueError, match="from 1 to 2"):
        adapters.to_coco(FOUND, image_id=7, category_ids=(1, 2))
    rows = adapters.to_coco(FOUND, image_id=7, category_ids=(1, 2, 90))
    with pytest.raises(ValueError, match="category_id 90 is none of"):
        adapters.from_coco(rows, category_ids=(1, 2))


class StandIn:
    """As much of `supervision.Detections` as is used, for where it is not installed."""

    def __init__(self, xyxy, confidence=None, class_id=None, data=None):
        self.xyxy, self.confidence, self.class_id, self.data = xyxy, confidence, class_id, data


@pytest.fixture(params=["stand-in", "supervision"])
def made(request, monkeypatch):
    """The class of supervision's detections, its own and a stand-in."""
    if request.param == "supervision":
        name = "supervision is not installed: pip install -e '.[supervision]'"
        return pytest.importorskip("supervision", reason=name).Detections
    module = types.SimpleNamespace(Detections=StandIn)
    monkeypatch.setitem(sys.modules, "supervision", module)
    return StandIn


@pytest.mark.filterwarnings("ignore")  # supervision does without
def test_supervision_there_and_back(made):
    theirs = adapters.to_supervision(FOUND, NAMES)
    assert isinstance(theirs, made)
    assert theirs.class_id.tolist() == [2, 0]
    assert theirs.data["class_name"].tolist() == ["cat", "ant"]
    assert_same(adapters.from_supervision(theirs), FOUND)
    assert_same(adapters.from_supervision(adapters.to_supervision(NOTHING, NAMES)), NOTHING)


@pytest.mark.filterwarnings("ignore")
def test_supervision_without_scores(made):
    theirs = made(xyxy=np.array([[0.0, 0, 1, 1]]), class_id=np.array([1]))
    found = adapters.from_supervision(theirs)
    assert (found.scores.tolist(), found.labels.tolist()) == ([1], [2])


def test_that_it_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(errors.UserError, match=r"pip install 'ssd-jax\[supervision\]'"):
        adapters.to_supervision(FOUND, NAMES)
