import errno
import io
import json
import os
import re
import types

import numpy as np
import pytest
from PIL import Image
from test_report import NASTY, Page, source
from test_voc_evaluation import found, objects

from ssd_jax import build, config_files, download, errors
from ssd_jax import config as config_lib
from ssd_jax.data import datasets, synthetic
from ssd_jax.evaluation import (
    analysis,
    coco,
    compare,
    evaluated,
    gallery,
    outputs,
    report,
    run,
    voc,
)

CLASSES = (NASTY, "dog", "cow")
CAT, DOG = (1, 1, 50, 60), (61, 21, 90, 70)
TRUTH = {
    "one": objects((CAT, 1, False)),
    "two": objects((DOG, 2, False), (CAT, 1, True)),
    "three": objects(),
}
# The first is correct in image one, the second in image two; both have nothing to say of three.
FIRST = {"one": found((CAT, 0.9, 1)), "two": found((DOG, 0.8, 1))}
SECOND = {"one": found((CAT, 0.9, 2)), "two": found((DOG, 0.95, 2))}
CONFIG = config_files.to_dict(
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
    """Bitwise in float32, images without rows among them."""
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


def test_images_that_flipped():
    a, b = map(analysis.analyze, evaluations())
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
    assert "no such folder" in err  # the images are gone, and the page is there all the same
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.text)
    for said in ("Correct in A only: 1", "Correct in B only: 1", "learning_rate", "on 3 images"):
        assert said in words
    for said in ("mAP (VOC07) of A", "AP (area) in A"):  # which metric each figure is
        assert said in page.text
    assert "nan" not in text.lower()
    assert NASTY in words
    assert NASTY not in text
    dogs = re.search(r"<tr><td>dog</td>.*?</tr>", text)[0]
    cells = re.findall(r"<td>(.*?)</td>", dogs)
    assert cells == ["dog", "1", "0.0\N{NO-BREAK SPACE}%", "100.0\N{NO-BREAK SPACE}%", "+100.0"]
    assert not re.search(r"https?:|url\(|@import|<script", text)


def test_page_that_is_there_is_replaced_where_asked_to(tmp_path, capsys):
    a, b = folders(tmp_path)
    path = tmp_path / "page.html"
    path.write_text("mine")
    command = ["compare", str(a), str(b), "--no_images", "--output", str(path)]
    assert report.main(command) == 2
    assert capsys.readouterr().err == (
        f"error: {path} exists; give another --output, or --overwrite\n"
    )
    assert path.read_text() == "mine"
    assert report.main([*command, "--overwrite"]) == 0
    assert Page(path.read_text()).tags


@pytest.mark.parametrize("place", ["gone/page.html", "a", "a/detections.npz/page.html"])
def test_page_that_cannot_be_written_is_one_line(tmp_path, capsys, place):
    a, b = folders(tmp_path)
    command = ["compare", str(a), str(b), "--no_images", "--overwrite"]
    assert report.main([*command, "--output", str(tmp_path / place)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / place} cannot be written (")
    assert err.count("\n") == 1


def test_folders_of_any_name(tmp_path, capsys):
    """Brackets that rich takes for markup, and a name that is no UTF-8."""
    path = tmp_path / "my[/run]"
    path.mkdir(parents=True)
    a, b = folders(path)
    there = a.rename(path / "a\udcff")
    page = path / "page.html"
    command = ["compare", str(there), str(b), "--no_images", "--output", str(page)]  # as in 0.1
    assert report.main(command) == 0
    assert capsys.readouterr() == (f"{page}\n", "")
    assert "my[/run]/a\\udcff" in page.read_text(encoding="utf-8")


def written(tmp_path, capsys, config):
    """What is said of the images of a page of two runs of that config."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        evaluated.save(tmp_path / name, source(FIRST, TRUTH, CLASSES, config))
    page = tmp_path / "page.html"
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(page)]
    assert report.main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"{page}\n"
    assert err.startswith("the page shows boxes without images: ")
    assert err.count("\n") == 1
    assert Page(page.read_text(encoding="utf-8")).tags.count("img") == 0
    return err


def test_nothing_is_downloaded_for_a_page(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(download, "fetch", lambda *args, **options: asked.append(args))
    monkeypatch.setattr(synthetic, "write", lambda *args, **options: asked.append(args))
    for dataset, split, why in (
        ("voc", "2007/test", "is not prepared in"),
        ("coco", "val2017", "is not prepared in"),
        ("synthetic", "test", "no such folder"),
    ):
        data = {"dataset": dataset, "eval_split": split, "cache_dir": str(tmp_path / "cache")}
        (tmp_path / dataset).mkdir()
        assert why in written(tmp_path / dataset, capsys, {"data": data})
    assert asked == []


def test_a_dataset_that_cannot_be_opened_is_not_the_pages_fault(tmp_path, capsys, monkeypatch):
    def fails(*args, **options):
        raise OSError(5, "Input/output error", "shard-0")

    monkeypatch.setattr(build, "split", fails)
    assert "Input/output error: 'shard-0'" in written(tmp_path, capsys, CONFIG)


@pytest.mark.parametrize("config", [{"model": 3}, {"data": None}, {"data": {"cache_dir": 3}}])
def test_config_of_another_shape_has_a_page(tmp_path, capsys, config):
    written(tmp_path, capsys, config)


@pytest.mark.parametrize("config", [[1, 2], 3, None])
def test_config_that_is_none_is_one_line(tmp_path, config):
    evaluated.save(tmp_path, source(FIRST, TRUTH, CLASSES, config or {}))
    with np.load(tmp_path / evaluated.NAME) as file:
        columns = dict(file)
    np.savez(tmp_path / evaluated.NAME, **{**columns, "config": np.array(json.dumps(config))})
    with pytest.raises(errors.UserError, match=r"not the detections .* \(its config is"):
        evaluated.load(tmp_path)


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


def test_a_machine_that_cannot_read_does_not_blame_the_file(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    evaluated.save(tmp_path, evaluations()[0])
    monkeypatch.setattr(evaluated.npz, "read", fails)
    with pytest.raises(errors.MachineError, match=r"detections\.npz: Too many open files: "):
        evaluated.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_broken_file_is_one_line(tmp_path, content):
    (tmp_path / evaluated.NAME).write_bytes(content)
    with pytest.raises(errors.UserError, match="is not the detections of an evaluation"):
        evaluated.load(tmp_path)


HARM = {
    "an image that is not there": {"found_image": np.array([2**31 - 1])},
    "an image below the first": {"found_image": np.array([-1])},
    "a class that is not there": {"found_labels": np.array([9])},
    "boxes of three numbers": {"found_boxes": np.ones((1, 3))},
    "boxes that are no numbers": {"found_boxes": np.full((1, 4), np.nan)},
    "more scores than boxes": {"found_values": np.ones(2)},
    "scores that are texts": {"found_values": np.array(["a"])},
    "names that are numbers": {"class_names": np.ones(1)},
    "an image without height": {"sizes": np.array([[0, 9]])},
}


@pytest.mark.parametrize("kind", HARM)
def test_detections_of_what_is_not_there_are_one_line(tmp_path, kind):
    objects = {f"objects_{n}": np.zeros(0, int) for n in ("image", "labels", "values")}
    found = {f"found_{n}": np.array([v]) for n, v in (("image", 0), ("labels", 1), ("values", 0.5))}
    columns = {
        "config": np.array("{}"),
        "class_names": np.array(["ball"]),
        "names": np.array(["a.jpg"]),
        "sizes": np.array([[9, 9]]),
        "found_boxes": np.ones((1, 4)),
        "objects_boxes": np.ones((0, 4)),
        **objects,
        **found,
    }
    np.savez(tmp_path / "detections.npz", **columns)
    assert list(evaluated.load(tmp_path).detections) == ["a.jpg"]
    np.savez(tmp_path / "detections.npz", **columns | HARM[kind])
    with pytest.raises(errors.UserError, match=r"is not the detections of an evaluation \(its "):
        evaluated.load(tmp_path)


def test_a_pipe_is_no_evaluation(tmp_path):
    os.mkfifo(tmp_path / "detections.npz")
    with pytest.raises(errors.UserError, match=r"is not the detections .*pipe or device"):
        evaluated.load(tmp_path)


def test_settings_show_no_password():
    config = {"data": {"mirror": "https://me:s3cret@host/models"}}
    assert evaluated.settings(config) == {"data.mirror": "https://host/models"}


def test_damaged_file_is_one_line(tmp_path):
    """Some bytes of 3,000 rows are others: the same is read, or it is said; nothing else."""
    rng = np.random.default_rng(0)
    names = [f"{number:06}.jpg" for number in range(30)]
    truth = {name: objects((CAT, 1, False), (DOG, 2, False)) for name in names}
    detections = {
        name: (rng.uniform(1, 300, (100, 4)), rng.random(100), rng.integers(1, 4, 100))
        for name in names
    }
    evaluated.save(tmp_path, source(detections, truth, CLASSES, CONFIG))
    path = tmp_path / evaluated.NAME
    whole, bytes_ = evaluated.load(tmp_path), path.read_bytes()
    said = set()
    for number in range(300):
        damaged = bytearray(bytes_)
        near = len(bytes_) if number % 3 else 900  # the end has zip's directory
        place = len(bytes_) - 1 - rng.integers(near)
        damaged[place] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            assert_same(evaluated.load(tmp_path), whole)
        except errors.UserError as error:
            said.add((type(error.__context__).__name__, len(str(error).splitlines())))
    assert {("BadZipFile", 1), ("error", 1), ("NotImplementedError", 1)} <= said
    assert {count for _, count in said} == {1}


def assert_same(ours, theirs):
    assert ours[:3] == theirs[:3]
    for part, expected in zip(ours[3:], theirs[3:], strict=True):
        assert part.keys() == expected.keys()
        for name, columns in expected.items():
            for a, b in zip(part[name], columns, strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_cannot_be_compared_is_refused():
    one, two = evaluations()
    names = ("a", "b")
    with pytest.raises(errors.UserError, match="different classes"):
        compare.check(one, two._replace(class_names=("x",)), names=names)
    with pytest.raises(errors.UserError, match=r"different images \(3 and 1\)"):
        compare.check(one, two._replace(sizes={"one": (80, 100)}), names=names)
    moved = {**TRUTH, "two": objects((CAT, 2, False))}
    with pytest.raises(errors.UserError, match="different objects in two"):
        compare.check(one, two._replace(ground_truth=moved), names=names)
    compare.check(one, two, names=names)


def test_images_are_read_by_name():
    """What is not the image that was evaluated, or does not decode, is left out."""

    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (200, 0, 0)).save(buffer, "PNG")
    records = [
        {"name": "one", "image": buffer.getvalue()},
        {"name": "other", "image": buffer.getvalue()},
        {"name": "three", "image": b"broken"},
    ]
    split, names = types.SimpleNamespace(source=records), ["one", "two", "three", "4"]
    read = gallery.image_reader(split, names, config_lib.DataConfig())
    assert read("one").shape == (4, 5, 3)
    assert (read("two"), read("three"), read("4")) == (None, None, None)


def test_evaluation_leaves_what_two_runs_are_compared_by(config, tmp_path, capsys):
    """From the built-in images to the page; one run finds nothing in the first image."""
    split = build.split(config.data, config.data.eval_split)
    truth = datasets.ground_truth(split)
    everything = {
        name: (boxes, np.full(len(labels), 0.9), labels)
        for name, (boxes, labels, _) in truth.items()
    }
    first = next(name for name, (_, labels, _) in truth.items() if len(labels))
    less = {name: rows for name, rows in everything.items() if name != first}
    for folder, detections in (("a", everything), ("b", less)):
        result = figures(detections, truth, split.class_names)
        places = outputs.write(
            tmp_path / folder,
            result,
            origin="step 4",
            config=config,
            split=split,
            metrics=(),
            samples=(),
        )
        assert all(path.is_file() for path in places.values())
    text = places["report"].read_text(encoding="utf-8")
    assert "Default boxes" in text
    settings = dict(re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", text))
    assert (settings["detections"], settings["images"]) == ("step 4", str(len(truth)))
    assert settings["model.backbone"] == config.model.backbone
    assert evaluated.load(tmp_path / "a").sizes[first] == (
        split.source[0]["height"],
        split.source[0]["width"],
    )
    page = tmp_path / "page.html"
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(page)]
    assert report.main([*command, "--cache_dir", config.data.cache_dir]) == 0
    assert capsys.readouterr().err == ""
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 2  # the image that flipped, from both sides
    assert f"B: {len(truth[first][1])} error" in text


def test_detections_of_another_network_are_not_shown_with_the_configs(config, tmp_path):
    split = build.split(config.data, config.data.eval_split)
    result = figures({}, datasets.ground_truth(split), split.class_names)
    places = outputs.write(
        tmp_path,
        result,
        origin="theirs.json",
        network=False,
        config=config,
        split=split,
        metrics=(),
        samples=(),
    )
    text = places["report"].read_text(encoding="utf-8")
    settings = dict(re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", text))
    assert settings["detections"] == "theirs.json"
    assert settings["images"] == str(result.images)
    assert {name.partition(".")[0] for name in settings} == {"detections", "images", "data"}
    assert "Default boxes" not in text
    assert "<h1>Detections on synthetic, test</h1>" in text
    assert evaluated.load(tmp_path).config.keys() == {"data"}


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
