import contextlib
import dataclasses
import functools
import io
import json
import tarfile
import zipfile

import coco_tree
import numpy as np
import pytest
import simplejpeg
import tiny_run
import voc_tree
from pycocotools import coco as pycoco
from pycocotools import cocoeval

from ssd_jax import build, config_files, errors
from ssd_jax import config as config_lib
from ssd_jax.data import annotations, coco_official, datasets, voc
from ssd_jax.evaluation import results, run
from ssd_jax.training import checkpoint
from ssd_jax.training import data as data_lib
from ssd_jax.training import step as step_lib

KEY = results.Key(
    image_ids={"a/1.jpg": 7, "b.jpg": 5},
    names=("a/1.jpg", "b.jpg"),
    class_names=("dog", "traffic light"),
    category_ids=(18, 90),
)
VOC_KEY = results.Key({}, ("000001.jpg", "000002.jpg"), ("cat", "dog"), (1, 2))


def refusal(path, key):
    """The message of the UserError, which has to be one line."""
    with pytest.raises(errors.UserError) as caught:
        results.read(path, key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(found, expected, *, rtol=1e-7):
    """Of either convention, image by image, in any order of the detections."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            for a, b in zip(_sorted(ours[name]), _sorted(theirs[name]), strict=True):
                np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


def _sorted(rows):
    boxes, scores, labels = rows
    order = np.lexsort((scores, labels))
    return boxes[order], scores[order], labels[order]


def random_truth(seed, images):
    """Annotations of COCO as its JSON has them: crowds, outlines' areas, two decimals."""
    rng = np.random.default_rng(seed)
    things = []
    for entry in images:
        for _ in range(rng.integers(0, 6)):
            x, y = rng.uniform(0, (20, 14)).round(2).tolist()
            w, h = rng.uniform(2, 10, 2).round(2).tolist()
            fields = {
                "category_id": int(rng.choice([1, 13, 90])),
                "bbox": [x, y, w, h],
                "area": w * h * 10 ** rng.uniform(1, 3),  # of all three sizes
                "iscrowd": int(rng.random() < 0.2),
            }
            things.append(coco_tree.thing(len(things) + 1, entry["id"], **fields))
    return things


def random_found(seed, split):
    """Detections near the objects of a split, as a detector gives them."""
    rng = np.random.default_rng(seed)
    found = results.Found({}, {})
    for name, (bboxes, labels, *_) in datasets.coco_ground_truth(split).items():
        near = np.repeat(bboxes, 4, axis=0)
        near = near + rng.normal(0, 0.1, near.shape) * np.tile(near[:, 2:], 2)
        boxes = np.concatenate([near[:, :2], near[:, :2] + near[:, 2:]], axis=1)
        boxes = np.clip(boxes / [32, 24, 32, 24], 0, 1).astype(np.float32)
        scores = rng.random(len(near), np.float32)
        of = np.where(rng.random(len(near)) < 0.8, np.repeat(labels, 4), 3).astype(np.int32)
        found.voc[name] = annotations.to_voc_pixels(boxes, 24, 32), scores, of
        found.coco[name] = annotations.to_bboxes(boxes, 24, 32), scores, of
    return found


@pytest.fixture
def official(tmp_path):
    """COCO's archives with 12 images in an order that is not that of their ids."""
    images = [coco_tree.image(number) for number in np.random.default_rng(0).permutation(12) + 1]
    images = [{**entry, "id": int(entry["id"])} for entry in images]
    return coco_tree.write_archives(
        tmp_path / "archives", "val2017", images, random_truth(1, images)
    )


def open_official(official):
    return datasets.load(
        "coco", "val2017", archives=str(official), cache_dir=official.parent / "cache"
    )


def test_pycocotools_takes_the_file_and_has_the_same_figures(official, tmp_path):
    """From the zip's JSON and the results' JSON alone, without any of our code."""
    split = open_official(official)
    found, key = random_found(2, split), results.key_of(split)
    places = results.write(tmp_path, found, key, dataset="coco", split="val2017")
    assert places == {"results": tmp_path / "results/detections_val2017_ssd_results.json"}
    with zipfile.ZipFile(official / "annotations_trainval2017.zip") as archive:
        archive.extract("annotations/instances_val2017.json", tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        table = pycoco.COCO(str(tmp_path / "annotations/instances_val2017.json"))
        evaluator = cocoeval.COCOeval(table, table.loadRes(str(places["results"])), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    again = results.read(places["results"], key)
    ours = run.figures(again, run.truth_of(split), class_names=split.class_names).coco
    np.testing.assert_allclose(list(ours.values()), evaluator.stats, rtol=0, atol=1e-9)
    assert 0 < ours["AP"] < 1
    assert len({ours["APs"], ours["APm"], ours["APl"]} - {-1.0, 0.0}) == 3
    direct = run.figures(found, run.truth_of(split), class_names=split.class_names).coco
    np.testing.assert_allclose(list(direct.values()), evaluator.stats, rtol=0, atol=1e-9)


def test_both_forms_come_back(official, tmp_path):
    split = open_official(official)
    found, key = random_found(3, split), results.key_of(split)
    results.write_coco(tmp_path / "a.json", found, key)
    assert_same(results.read(tmp_path / "a.json", key), found)
    (tmp_path / "voc").mkdir()
    results.write_voc(tmp_path / "voc", found, key, set_name="test")
    assert len(list((tmp_path / "voc").iterdir())) == 80
    assert_same(results.read(tmp_path / "voc", key), found)


def test_the_forms_are_the_servers(tmp_path):
    box, score, label = np.array([[10.5, 20, 30, 40]]), np.array([0.5]), np.array([2])
    bbox = np.array([[9.5, 19, 20.5, 21]])
    found = results.Found({"b.jpg": (box, score, label)}, {"b.jpg": (bbox, score, label)})
    results.write(tmp_path, found, KEY, dataset="coco", split="testdev2017")
    file = tmp_path / "results/detections_test-dev2017_ssd_results.json"
    assert json.loads(file.read_text()) == [
        {"image_id": 5, "category_id": 90, "bbox": [9.5, 19, 20.5, 21], "score": 0.5}
    ]
    found = results.Found({"000002.jpg": (box, score, label)}, {})
    stale = tmp_path / "results/comp4_det_val_dog.txt"
    stale.write_text("")
    (place,) = results.write(
        tmp_path, found, VOC_KEY, dataset="voc", split="2012/test[:50]+2007/test"
    ).values()
    assert (place / "comp4_det_test_dog.txt").read_text() == "000002 0.5 10.5 20 30 40\n"
    assert (place / "comp4_det_test_cat.txt").read_text() == ""
    assert not stale.exists()
    assert results.write(tmp_path, found, VOC_KEY, dataset="folder", split="val") == {}


def test_a_split_that_holds_a_image_twice_has_no_results(official):
    twice = datasets.load(
        "coco",
        "val2017+val2017[:1]",
        archives=str(official),
        cache_dir=official.parent / "cache",
    )
    with pytest.raises(errors.UserError, match="twice; detect in each image once"):
        results.key_of(twice)


GOOD = {"image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "not JSON"),
        ("[", "not JSON"),
        ("{}", "is no list of detections"),
        ([GOOD, 3], "entry 1 is no detection but 3"),
        ([{**GOOD, "image_id": 8}], "entry 0: the split has no image_id 8; give --config.data"),
        ([{**GOOD, "image_id": "7"}], "image_id is '7', not a whole number"),
        ([{**GOOD, "image_id": [7]}], "image_id is [7], not a whole number"),
        ([{**GOOD, "category_id": 19}], "category_id 19 is not in the dataset"),
        ([{**GOOD, "category_id": True}], "category_id True is not in"),
        ([{**GOOD, "category_id": None}], "category_id None is not in"),
        ([{**GOOD, "bbox": [1, 2, 3]}], "bbox is [1, 2, 3], not four numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, None]}], "not four numbers"),
        ([{**GOOD, "bbox": 3}], "bbox is 3, not four numbers"),
        ([{**GOOD, "score": float("nan")}], "score is nan, not a number"),
        ([{"image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4]}], "score is None"),
    ],
)
def test_json_that_is_not_these_results_is_one_line(tmp_path, content, word):
    file = tmp_path / "found.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    message = refusal(file, KEY)
    assert message.startswith(str(file))
    assert word in message


def test_no_detections_at_all_are_results(tmp_path):
    (tmp_path / "found.json").write_text("[]")
    found = results.read(tmp_path / "found.json", KEY)
    assert [len(scores) for _, scores, _ in found.voc.values()] == [0, 0]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("000003 0.5 1 2 3 4", "line 1: the split has no image 000003; give --config.data"),
        ("000001 0.5 1 2 3", "line 1 is '000001 0.5 1 2 3', not an id, a score and xmin"),
        ("000001 0.5 1 2 3 4 5", "not an id, a score"),
        ("000001 0.5 1 2 3 x", "not an id, a score"),
        ("000001 nan 1 2 3 4", "not an id, a score"),
        ("\n000001 0.5 1 2 3 4", "line 1 is ''"),
        (b"\xff\xfe", "is no text"),
    ],
)
def test_text_that_is_not_these_results_is_one_line(tmp_path, line, word):
    for name in VOC_KEY.class_names:
        (tmp_path / f"comp4_det_test_{name}.txt").write_text("")
    file = tmp_path / "comp4_det_test_dog.txt"
    file.write_bytes(line if isinstance(line, bytes) else line.encode())
    message = refusal(tmp_path, VOC_KEY)
    assert message.startswith(str(file))
    assert word in message


def test_folders_that_are_not_these_results_are_one_line(tmp_path):
    assert "file not found; give COCO's JSON" in refusal(tmp_path / "none", KEY)
    assert "holds no comp4_det_SET_CLASS.txt" in refusal(tmp_path, VOC_KEY)
    (tmp_path / "comp4_det_test_cat.txt").write_text("")
    assert "no file ends in _dog.txt" in refusal(tmp_path, VOC_KEY)
    (tmp_path / "comp4_det_val_cat.txt").write_text("")
    assert "are of one class; keep one set" in refusal(tmp_path, VOC_KEY)
    (tmp_path / "comp4_det_val_cat.txt").rename(tmp_path / "comp4_det_test_cow.txt")
    assert "the dataset has no class 'cow'" in refusal(tmp_path, VOC_KEY)
    (tmp_path / "found.json").write_text("[]")
    assert "have no ids of COCO" in refusal(tmp_path / "found.json", VOC_KEY)


def unpacked(shared, detector, folder):
    archive = shared / "evaluation" / f"voc2007_test_detections_{detector}.tar.gz"
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / detector


@pytest.mark.slow
def test_real_detections_of_voc2007_have_their_ap(shared, tmp_path):
    """evaluate.py on the official annotations, whose images stand in as black ones."""
    with tarfile.open(shared / "voc/VOC2007_test_annotations.tar.gz") as opened:
        opened.extractall(tmp_path / "annotations", filter="data")
    (tree,) = (path.parent for path in (tmp_path / "annotations").rglob("Annotations"))
    (tree / "JPEGImages").mkdir()
    black = functools.cache(
        lambda height, width: simplejpeg.encode_jpeg(np.zeros((height, width, 3), np.uint8))
    )
    for xml in (tree / "Annotations").iterdir():
        text = xml.read_text()
        height, width = (int(text.split(f"<{s}>")[1].split("<")[0]) for s in ("height", "width"))
        (tree / "JPEGImages" / f"{xml.stem}.jpg").write_bytes(black(height, width))
    split = voc_tree.write_plain(tmp_path / "tiny", 1, splits={"trainval": ["000001"]})
    voc_tree.pack(split, tmp_path / "archives" / voc_tree.TRAINVAL)
    voc_tree.pack(tree, tmp_path / "archives" / voc_tree.TEST)
    expected = json.loads((shared / "evaluation/expected_ap.json").read_text())
    for detector in ("a", "b"):
        figures = evaluated(
            "--results", unpacked(shared, detector, tmp_path),
            "--output", tmp_path / f"out_{detector}",
            f"--config.data.archives={tmp_path / 'archives'}",
            f"--config.data.cache_dir={tmp_path / 'cache'}",
        )  # fmt: skip
        assert figures["images"] == 4952
        for metric in ("voc07", "area"):
            values = figures[f"ap_{metric}"] | {"mAP": figures[f"mean_ap_{metric}"]}
            assert values == pytest.approx(expected[detector][metric], abs=1e-9)


def evaluated(*arguments):
    """What evaluate.py writes as evaluation.json, into the folder after `--output`."""
    (status,) = tiny_run.ends([tiny_run.start("evaluate.py", *arguments)], timeout=1200)
    assert status == (0, "")
    folder = arguments[arguments.index("--output") + 1]
    return json.loads((folder / "evaluation.json").read_text())


def write_run(workdir, config, class_names):
    """A tiny network as it was made, as a run of `train.py` leaves it."""
    config.model.width = 0.125
    config.eval.batch_size = 4
    config.data.canvas = 160
    model = build.model(config.model, len(class_names))
    optimizer = build.optimizer(config.train, build.schedule(config))
    state = step_lib.init_state(model, optimizer, (300, 300), 0)
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, dataclasses.replace(state, step=state.step + 1), run={})
        manager.wait_until_finished()
    config_files.save(workdir / "config.json", config, tuple(class_names))
    return workdir


@pytest.mark.slow
def test_evaluate_writes_cocos_results_and_takes_them_back(tmp_path):
    """First of images without annotations; val2017's are then made of some that it found."""
    images, archives = [coco_tree.image(number) for number in (3, 2)], tmp_path / "archives"
    coco_tree.write_archives(archives, "test2017", images, [])
    config = config_lib.Config()
    config.data = dataclasses.replace(
        config.data, dataset="coco", archives=str(archives), cache_dir=str(tmp_path / "cache")
    )
    workdir = write_run(tmp_path / "run", config, coco_official.CATEGORIES.values())
    process = tiny_run.start(
        "evaluate.py", "--workdir", workdir, "--output", tmp_path / "test",
        "--config.data.eval_split=test2017",
    )  # fmt: skip
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "test2017 has no annotations, so there are no metrics" in out
    (file,) = (path for path in (tmp_path / "test").rglob("*") if path.is_file())
    assert file == tmp_path / "test/results/detections_test2017_ssd_results.json"
    entries = json.loads(file.read_text())
    assert {entry["image_id"] for entry in entries} == {2, 3}
    things = [
        coco_tree.thing(number, entry["image_id"], category_id=entry["category_id"])
        | {"bbox": entry["bbox"], "area": 40.0}
        for number, entry in enumerate(entries[::40], start=1)
    ]
    coco_tree.write_archives(archives, "val2017", images, things)
    val = "--config.data.eval_split=val2017"
    direct = evaluated("--workdir", workdir, "--output", tmp_path / "val", val)
    assert direct["coco"]["AR100"] > 0
    assert direct["coco"]["APs"] >= 0
    assert direct["coco"]["APl"] == -1
    file = tmp_path / "val/results/detections_val2017_ssd_results.json"
    assert json.loads(file.read_text()) == entries
    again = evaluated(
        "--results", file, "--output", tmp_path / "again", val,
        "--config.data.dataset=coco",
        f"--config.data.archives={archives}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert again["coco"] == pytest.approx(direct["coco"], abs=1e-9)
    assert again["images"] == 2


@pytest.mark.slow
def test_evaluate_writes_vocs_results_of_2012_test(tmp_path):
    ids = ["2008_000001", "2008_000004"]
    tree = voc_tree.write(
        tmp_path / "tree",
        images={f"{key}.jpg": voc_tree.jpeg() for key in ids},
        annotations={},
        splits={"test": ids},
    )
    voc_tree.pack(tree, tmp_path / "archives/VOC2012test.tar", root="VOCdevkit/VOC2012")
    config = config_lib.Config()
    config.data.archives, config.data.cache_dir = str(tmp_path / "archives"), str(tmp_path / "c")
    workdir = write_run(tmp_path / "run", config, voc.CLASSES)
    process = tiny_run.start(
        "evaluate.py", "--workdir", workdir, "--config.data.eval_split=2012/test"
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "2012/test has no annotations, so there are no metrics" in out
    files = sorted((workdir / "results").iterdir())
    assert [f.name for f in files] == [f"comp4_det_test_{name}.txt" for name in voc.CLASSES]
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    assert {line[0] for line in lines} == set(ids)
    assert all(len(line) == 6 for line in lines)
    assert not (workdir / "evaluation.json").exists()


def test_training_refuses_a_split_without_annotations(official, tmp_path):
    coco_tree.write_archives(official, "test2017", [coco_tree.image(3)], [])
    data = config_lib.DataConfig(
        dataset="coco",
        archives=str(official),
        cache_dir=str(tmp_path / "cache"),
        train_split="val2017",
        eval_split="test2017",
    )
    with pytest.raises(errors.UserError, match=r"eval_split='test2017' has no annotations"):
        data_lib.open_splits(data)
    with pytest.raises(errors.UserError, match=r"train_split='test2017' has no annotations"):
        data_lib.open_splits(dataclasses.replace(data, train_split="test2017"))
