import io
import re
import types

import numpy as np
import pytest
from PIL import Image
from test_report import NASTY, Page, source
from test_voc_evaluation import found, objects

from ssd_jax import config as config_lib
from ssd_jax import errors
from ssd_jax.data import datasets
from ssd_jax.evaluation import coco, compare, evaluated, report, run, voc

CLASSES = (NASTY, "dog", "cow")
CAT, DOG = (1, 1, 50, 60), (61, 21, 90, 70)
TRUTH = {
    "one": objects((CAT, 1, False)),
    "two": objects((DOG, 2, False), (CAT, 1, True)),
    "three": objects(),
}
# The first is right in picture one, the second in picture two; both have nothing to say of three.
FIRST = {"one": found((CAT, 0.9, 1)), "two": found((DOG, 0.8, 1))}
SECOND = {"one": found((CAT, 0.9, 2)), "two": found((DOG, 0.95, 2))}
CONFIG = config_lib.to_dict(
    config_lib.Config(
        data=config_lib.DataConfig(dataset="folder", path="no such folder", eval_split="val")
    )
)


def evaluations():
    other = {**CONFIG, "train": {**CONFIG["train"], "learning_rate": 0.5}}
    return source(FIRST, TRUTH, CLASSES, CONFIG), source(SECOND, TRUTH, CLASSES, other)


def folders(tmp_path):
    paths = tmp_path / "a", tmp_path / "b"
    for path, one in zip(paths, evaluations(), strict=True):
        path.mkdir()
        evaluated.save(path, one)
    return paths


def test_file_holds_the_evaluation(tmp_path):
    """Bitwise in float32, pictures without rows among them."""
    one, _ = evaluations()
    evaluated.save(tmp_path, one)
    read = evaluated.load(tmp_path)
    assert (read.config, read.class_names, read.sizes) == (one.config, CLASSES, one.sizes)
    nothing = found()
    for name in TRUTH:
        for theirs, ours in (
            (one.detections.get(name, nothing), read.detections[name]),
            (one.ground_truth[name], read.ground_truth[name]),
        ):
            for a, b in zip(theirs, ours, strict=True):
                np.testing.assert_array_equal(np.asarray(a, np.float32).reshape(b.shape), b)


def test_file_of_nothing(tmp_path):
    evaluated.save(tmp_path, source({}, {}, CLASSES, CONFIG))
    read = evaluated.load(tmp_path)
    assert (read.detections, read.ground_truth, read.sizes) == ({}, {}, {})


def test_pictures_that_flipped():
    a, b = (compare.side(name, one) for name, one in zip("ab", evaluations(), strict=True))
    assert (a.point.score, b.point.score) == (0.9, 0.95)  # below, all that is reported is wrong
    assert a.wrong.tolist() == [0, 1, 0]  # the dog is not found
    assert b.wrong.tolist() == [1, 0, 0]
    assert [rows.tolist() for rows in compare.flipped(a, b)] == [[0], [1]]


def test_fields_that_differ():
    one, two = evaluations()
    assert compare.config_differences(one, two) == {"train.learning_rate": ("0.001", "0.5")}
    bare = one._replace(config={"seed": 1})
    assert compare.config_differences(one, bare)["model.backbone"] == ("vgg16", "absent")


def test_page_of_two_runs(tmp_path, capsys):
    a, b = folders(tmp_path)
    path = tmp_path / "page.html"
    assert report.main(["compare", str(a), str(b), "--output", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{path}\n"
    assert err.count("\n") == 1
    assert "no such folder" in err  # the pictures are gone, and the page is there all the same
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.text)
    for said in ("Right in A alone: 1", "Right in B alone: 1", "learning_rate"):
        assert said in words
    assert "nan" not in text.lower()
    assert NASTY in words
    assert NASTY not in text
    dogs = re.search(r"<tr><td>dog</td>.*?</tr>", text)[0]
    cells = re.findall(r"<td class=\"number\">(.*?)</td>", dogs)
    assert cells == ["1", "0.0&nbsp;%", "100.0&nbsp;%", "+100.0"]
    assert not re.search(r"https?:|url\(|@import|<script", text)


def test_two_runs_without_detections_and_without_objects(tmp_path):
    for truth in (TRUTH, {}):
        one = source({}, truth, CLASSES, CONFIG)
        compare.write(tmp_path / "page.html", one, one, names=("a", "b"))
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        Page(text)
        assert "nan" not in text.lower()


def test_folder_without_an_evaluation_is_one_line(tmp_path, capsys):
    assert report.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "holds no evaluation; make one by python evaluate.py --workdir" in err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_broken_file_is_one_line(tmp_path, content):
    (tmp_path / evaluated.NAME).write_bytes(content)
    with pytest.raises(errors.UserError, match="is not the detections of an evaluation"):
        evaluated.load(tmp_path)


def test_what_cannot_be_compared_is_refused():
    one, two = evaluations()
    names = ("a", "b")
    with pytest.raises(errors.UserError, match="different classes"):
        compare.check(one, two._replace(class_names=("x",)), names=names)
    with pytest.raises(errors.UserError, match=r"different pictures \(3 and 1\)"):
        compare.check(one, two._replace(sizes={"one": (80, 100)}), names=names)
    moved = {**TRUTH, "two": objects((CAT, 2, False))}
    with pytest.raises(errors.UserError, match="different objects in two"):
        compare.check(one, two._replace(ground_truth=moved), names=names)
    compare.check(one, two, names=names)


def test_pictures_are_read_by_name():
    """What is not the picture that was evaluated, or does not decode, is left out."""

    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (200, 0, 0)).save(buffer, "PNG")
    records = [
        {"name": "one", "image": buffer.getvalue()},
        {"name": "other", "image": buffer.getvalue()},
        {"name": "three", "image": b"broken"},
    ]
    read = run.picture_reader(types.SimpleNamespace(source=records), ["one", "two", "three", "4"])
    assert read("one").shape == (4, 5, 3)
    assert (read("two"), read("three"), read("4")) == (None, None, None)


def test_evaluation_leaves_what_two_runs_are_compared_by(config, tmp_path, capsys):
    """From the built-in pictures to the page; one run finds nothing in the first picture."""
    split = run.open_split(config.data, config.data.eval_split)
    truth = datasets.ground_truth(split)
    everything = {
        name: (boxes, np.full(len(labels), 0.9), labels)
        for name, (boxes, labels, _) in truth.items()
    }
    first = next(name for name, (_, labels, _) in truth.items() if len(labels))
    less = {name: rows for name, rows in everything.items() if name != first}
    for folder, detections in (("a", everything), ("b", less)):
        result = figures(detections, truth, split.class_names)
        places = run.write(
            tmp_path / folder, result, config=config, split=split, metrics=(), pictures=()
        )
        assert all(path.is_file() for path in places.values())
    assert "Default boxes" in places["report"].read_text(encoding="utf-8")
    assert evaluated.load(tmp_path / "a").sizes[first] == (
        split.source[0]["height"],
        split.source[0]["width"],
    )
    page = tmp_path / "page.html"
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(page)]
    assert report.main(command) == 0
    assert capsys.readouterr().err == ""
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 2  # the picture that flipped, from both sides
    assert f"B: {len(truth[first][1])} error" in text


def figures(detections, truth, class_names):
    curves = voc.precision_recall(detections, truth, class_names=class_names)
    return run.Evaluation(
        voc07=voc.summarize(curves, use_07_metric=True),
        area=voc.summarize(curves, use_07_metric=False),
        coco=dict.fromkeys(coco.METRICS, 0.5),
        images=len(truth),
        detections=detections,
        ground_truth=truth,
    )
