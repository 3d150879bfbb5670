import contextlib
import functools
import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import voc_tree
from pycocotools import coco as oracle
from pycocotools import cocoeval

from ssd_jax import errors
from ssd_jax.data import annotations, builder, coco, coco_json, datasets, loader, readers
from ssd_jax.evaluation import coco as coco_evaluation
from ssd_jax.evaluation import voc as voc_evaluation

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "brush"}]


@pytest.fixture
def load(tmp_path):
    return functools.partial(datasets.load, "coco", cache_dir=tmp_path / "cache")


def image(number: int, **fields) -> dict:
    name = f"{number:012d}.jpg"
    return {"id": number, "file_name": name, "height": 24, "width": 32, **fields}


def thing(number: int, image_id: int, bbox=(2, 3, 18, 15), **fields) -> dict:
    """An annotation with an outline, as COCO's have."""
    outline = [[2.5, 3.5, 20.0, 3.5, 20.0, 18.0]]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 18,
        "bbox": list(bbox),
        "area": 100.5,
        "iscrowd": 0,
        "segmentation": outline,
        **fields,
    }


def write(file: Path, images, things, *, categories=CATEGORIES, folder: Path | None = None):
    """Writes a JSON file, and an image of 32 x 24 for each image unless it is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "images": images, "annotations": things, "categories": categories}
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for entry in images if folder else ():
        place = folder / entry["file_name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.write_bytes(voc_tree.jpeg(seed=len(place.name)))
    return file


def write_plain(root: Path) -> Path:
    """The official layout: train2017 with three images, val2017 with one."""
    for split, numbers in {"train2017": (9, 25, 30), "val2017": (139,)}.items():
        things = [thing(1000 + number, number) for number in numbers]
        file = root / f"annotations/instances_{split}.json"
        write(file, [image(n) for n in numbers], things, folder=root / split)
    return root


def one(root: Path, things, **fields) -> str:
    """The path of a dataset with one good image, 1, and one, 2, with these objects."""
    images = [image(1), image(2, **fields)]
    file = root / "annotations/instances_train.json"
    write(file, images, [thing(1, 1), *things], folder=root / "train")
    return str(root)


def names(split) -> list[str]:
    return [split.source[index]["name"] for index in range(len(split.source))]


def reason(path: str, key: str) -> str:
    """Why an image cannot be used."""
    with pytest.raises(errors.UserError) as caught:
        coco.read_folder(path).example(key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pycocotools_reads_the_same(load, tmp_path):
    rng = np.random.default_rng(0)
    images = [image(number) for number in (7, 5, 11, 2)]
    things = []
    for number in range(1, 13):
        x, y = rng.uniform(0, (20, 12)).round(2)
        w, h = rng.uniform(1, 12, 2).round(2)
        kind = int(rng.choice([18, 3, 90]))
        owner = int(rng.choice([7, 5, 11]))
        things.append(thing(number, owner, (x, y, w, h), category_id=kind, iscrowd=number % 4 == 0))
    file = write(
        tmp_path / "own/annotations/instances_a.json", images, things, folder=tmp_path / "own/a"
    )
    split = load("a", path=str(tmp_path / "own"))
    expected = oracle.COCO(str(file))
    assert split.category_ids == tuple(sorted(expected.getCatIds())) == (3, 18, 90)
    assert split.class_names == tuple(c["name"] for c in expected.loadCats(split.category_ids))
    assert [split.source[i]["image_id"] for i in range(4)] == [7, 5, 11, 2]
    for index in range(4):
        record = split.source[index]
        found = expected.loadAnns(expected.getAnnIds(record["image_id"]))
        assert record["name"] == expected.loadImgs(record["image_id"])[0]["file_name"]
        x, y, w, h = np.array([each["bbox"] for each in found]).reshape(-1, 4).T
        boxes = record["boxes"] * np.array([32, 24, 32, 24])
        np.testing.assert_allclose(boxes, np.stack([x, y, x + w, y + h], axis=1), atol=1e-4)
        ids = [split.category_ids[label - 1] for label in record["labels"]]
        assert ids == [each["category_id"] for each in found]
        assert record["crowd"].tolist() == [bool(each["iscrowd"]) for each in found]
        assert not record["difficult"].any()


def test_the_official_layout_has_its_splits(load, tmp_path):
    path = str(write_plain(tmp_path / "coco"))
    train = load("train2017", path=path)
    assert names(train) == ["000000000009.jpg", "000000000025.jpg", "000000000030.jpg"]
    assert names(load("val2017", path=path)) == ["000000000139.jpg"]
    with pytest.raises(errors.UserError, match="no train, only train2017, val2017"):
        load("train", path=path)


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images", "annotations", "."])
def test_images_are_found_where_people_put_them(load, tmp_path, folder):
    root = tmp_path / "own"
    file = root / "annotations/instances_train2017.json"
    write(file, [image(1)], [thing(1, 1)], folder=root / folder)
    assert names(load("train2017", path=str(root))) == ["000000000001.jpg"]
    assert names(load("train2017", path=str(file))) == ["000000000001.jpg"]


def test_a_json_file_of_any_name_is_split_by_order(load, tmp_path):
    root = tmp_path / "own"
    file = root / "my labels.json"
    write(file, [image(n) for n in range(1, 12)], [thing(n, n) for n in range(1, 12)], folder=root)
    val = load("val", path=str(file))
    assert names(val) == ["000000000005.jpg", "000000000010.jpg"]
    assert len(load("train", path=str(file)).source) == 9


def test_roboflows_layout_is_read(load, tmp_path):
    for number, split in enumerate(("train", "valid"), start=1):
        folder = tmp_path / "own" / split
        write(
            folder / "_annotations.coco.json",
            [image(number)],
            [thing(1, number)],
            folder=folder,
        )
    assert names(load("valid", path=str(tmp_path / "own"))) == ["000000000002.jpg"]


def test_file_names_may_have_folders_spaces_and_letters_of_any_script(load, tmp_path):
    root = tmp_path / "Träume und Bilder"
    images = [image(1, file_name="a b.jpg"), image(2, file_name="möwe/海 1.jpg")]
    write(
        root / "annotations/instances_train.json",
        images,
        [thing(1, 1), thing(2, 2, category_id=90)],
        categories=[{"id": 18, "name": "Möwe"}, {"id": 90, "name": "鳥 [x]"}],
        folder=root / "train",
    )
    split = load("train", path=str(root))
    assert names(split) == ["a b.jpg", "möwe/海 1.jpg"]
    assert split.class_names == ("Möwe", "鳥 [x]")
    assert list(datasets.ground_truth(split)) == names(split)


def test_crowds_are_dropped_in_training_and_ignored_in_evaluation(load, tmp_path):
    things = [thing(2, 2, (10, 10, 5, 5), iscrowd=1), thing(3, 2, category_id=3)]
    split = load("train", path=one(tmp_path / "own", things))
    batch = next(
        loader.training_batches(
            split.source,
            batch_size=2,
            max_objects=split.max_objects,
            seed=0,
            decoding=loader.Decoding(32),
        )
    )
    assert sorted(batch["labels"].tolist()) == [[1, 0], [2, 0]]
    truth = datasets.ground_truth(split)
    _, labels, difficult = truth["000000000002.jpg"]
    assert labels.tolist() == [2, 1]
    assert difficult.tolist() == [True, False]
    # A detection within the crowd is no miss: everything that counts is found, AP is 1.
    truth = datasets.coco_ground_truth(split)
    found = {
        name: (boxes, np.linspace(0.9, 0.8, len(labels)), labels)
        for name, (boxes, labels, *_) in truth.items()
    }
    figures = coco_evaluation.evaluate(found, truth, class_names=split.class_names)
    assert figures["AP"] == pytest.approx(1)


def test_boxes_are_continuous_from_0(load, tmp_path):
    # The whole image is (0, 0, 32, 24) to COCO and (1, 1, 32, 24) to VOC.
    path = one(tmp_path / "own", [thing(2, 2, (0, 0, 32, 24)), thing(3, 2, (0.5, 1.25, 4, 4))])
    split = load("train", path=path)
    boxes = split.source[1]["boxes"] * np.array([32, 24, 32, 24])
    np.testing.assert_allclose(boxes, [[0, 0, 32, 24], [0.5, 1.25, 4.5, 5.25]], rtol=1e-6)
    truth, _, _ = datasets.ground_truth(split)["000000000002.jpg"]
    np.testing.assert_allclose(truth, [[1, 1, 32, 24], [1.5, 2.25, 4.5, 5.25]], rtol=1e-6)


def test_evaluation_gets_boxes_and_areas_to_the_last_digit(load, tmp_path):
    things = [
        thing(2, 2, (0.1, 0.2, 10.3, 5.7)),
        thing(3, 2, (20.01, 3.3, 15.7, 9.9), area=None),  # reaches outside
        thing(4, 2, (1, 2, 3, 4), area=float("nan"), iscrowd=1),
        thing(5, 2, (1, 2, 3, 4), area=-(10**400)),
    ]
    split = load("train", path=one(tmp_path / "own", things))
    bboxes, labels, crowd, areas = datasets.coco_ground_truth(split)["000000000002.jpg"]
    np.testing.assert_array_equal(bboxes, [t["bbox"] for t in things])
    assert areas.tolist() == [100.5, 15.7 * 9.9, 12, 12]
    assert crowd.tolist() == [False, False, True, False]
    assert labels.tolist() == [2, 2, 2, 2]
    np.testing.assert_allclose(split.source[1]["boxes"][1, 2], 1)  # training's is clipped


def test_ground_truth_is_in_the_order_of_ids(load, tmp_path):
    images = [image(number) for number in (7, 5, 11, 2)]
    root = tmp_path / "own"
    write(root / "instances_a.json", images, [thing(1, 5)], folder=root / "a")
    split = load("a", path=str(root))
    assert names(split) == [f"{n:012d}.jpg" for n in (7, 5, 11, 2)]
    assert list(datasets.coco_ground_truth(split)) == [f"{n:012d}.jpg" for n in (2, 5, 7, 11)]


def test_a_tree_is_written_in_several_shards(load, tmp_path, monkeypatch):
    numbers = range(1, 11)
    root = tmp_path / "own"
    file = root / "annotations/instances_train.json"
    write(file, [image(n) for n in numbers], [thing(n, n) for n in numbers], folder=root)
    monkeypatch.setattr(builder, "_SHARD_BYTES", 2500)
    split = load("train", path=str(root))
    assert len(list((tmp_path / "cache").rglob("*.array_record*"))) > 3
    assert names(split) == [f"{n:012d}.jpg" for n in numbers]


@pytest.mark.parametrize(
    ("bbox", "kept", "word"),
    [
        ((20, 10, 30, 5), [[20, 10, 32, 15]], "reaches outside the 32 x 24 image; clipped"),
        ((-5, 2, 10, 5), [[0, 2, 5, 7]], "clipped"),
        ((20.2, 10, 12, 5), [[20.2, 10, 32, 15]], ""),  # rounding
        ((40, 10, 5, 5), [], "lies outside the 32 x 24 image; dropped from training"),
        ((4, 4, 0, 5), [], "has no area; dropped from training"),
        ((4, 4, 5, -2), [], "has no area; dropped from training"),
    ],
)
def test_boxes_beyond_the_image_are_repaired_and_named(tmp_path, bbox, kept, word):
    path = one(tmp_path / "own", [thing(77, 2, bbox)])
    found = coco.read_folder(path).example("train/000000000002.jpg").annotation
    boxes = found.boxes[~found.degenerate]
    np.testing.assert_allclose(boxes, np.array(kept).reshape(-1, 4), rtol=1e-6)
    assert found.bboxes.tolist() == [list(bbox)]  # evaluation's
    assert len(found.notes) == bool(word)
    for note in found.notes:
        assert note.endswith(word)
        assert "instances_train.json: 000000000002.jpg: annotation 77 (dog)" in note


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"bbox": [1, 2, 3]}, r"annotation 2: bbox is \[1, 2, 3\], not four numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "not four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "not four numbers"),
        ({"bbox": None}, "bbox is None"),
        ({"bbox": [1, 2, 10**400, 4]}, "not four numbers"),
        ({"category_id": 4}, "annotation 2: there is no category 4"),
        ({"category_id": [18]}, "there is no category"),
    ],
)
def test_annotations_that_cannot_be_read_cost_their_image(load, tmp_path, fields, word):
    path = one(tmp_path / "own", [{**thing(2, 2), **fields}])
    with pytest.raises(errors.UserError, match=f"1 of 2 images.*{word}"):
        load("train", path=path)
    assert names(load("train", path=path, max_unreadable_fraction=0.5)) == ["000000000001.jpg"]


def test_missing_empty_and_other_sized_images_are_named(tmp_path):
    path = one(tmp_path / "own", [], height=25)
    key, file = "train/000000000002.jpg", tmp_path / "own/train/000000000002.jpg"
    assert "says 32 x 25, but the image is 32 x 24" in reason(path, key)
    file.write_bytes(b"")
    assert f"{file}: the file is empty" in reason(path, key)
    file.unlink()
    assert "000000000002.jpg: no such image in" in reason(path, key)
    assert f"{tmp_path}/own/train, " in reason(path, key)


@pytest.mark.parametrize(
    ("height", "word"),
    [
        (48, "says 32 x 48, but the image is 32 x 24"),
        (48.0, "says 32 x 48, but the image is 32 x 24"),
        ("48", "height '48' and width 32 are no whole numbers of pixels"),
        (24.5, "height 24.5 and width 32 are no whole numbers"),
        (float("nan"), "height nan and width 32 are no whole numbers"),
        (True, "height True and width 32 are no whole numbers"),
        ([24], r"height [24] and width 32 are no whole numbers"),
    ],
)
def test_a_size_that_is_not_the_images_is_named(tmp_path, height, word):
    assert word in reason(one(tmp_path / "own", [], height=height), "train/000000000002.jpg")


def test_a_size_may_be_a_float(load, tmp_path):
    path = one(tmp_path / "own", [thing(2, 2)], height=24.0)
    assert load("train", path=path).source[1]["height"] == 24


def test_names_are_stored_in_one_line(load, tmp_path):
    categories = [{"id": 18, "name": " hot\ndog "}, {"id": 90, "name": "cat"}]
    root = tmp_path / "own"
    file = root / "annotations/instances_train.json"
    things = [thing(1, 1), thing(2, 2, category_id=90)]
    write(file, [image(1), image(2)], things, categories=categories, folder=root)
    split = load("train", path=str(root))
    assert split.class_names == ("hot dog", "cat")
    assert [split.source[index]["labels"].tolist() for index in (0, 1)] == [[1], [2]]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (" ", "needs a whole number as id and a name"),
        ("\u2028", "needs a whole number as id and a name"),
        ("cat ", "several categories are named 'cat'"),
        ("\ud800", "category 1: the name '.ud800' is not Unicode text; rename the class"),
    ],
)
def test_names_that_cannot_be_stored_are_refused(tmp_path, name, word):
    categories = [{"id": 1, "name": name}, {"id": 2, "name": "cat"}]
    content = {"images": [], "annotations": [], "categories": categories}
    file = tmp_path / "instances_train.json"
    file.write_text(json.dumps(content))
    with pytest.raises(errors.UserError, match=word):
        coco.read_folder(str(file))


def test_images_outside_the_folder_are_refused(load, tmp_path):
    root, outside = tmp_path / "own", tmp_path / "elsewhere"
    names = [str(outside / "1.jpg"), "../../elsewhere/2.jpg", str(root / "in/3.jpg"), "../in/4.jpg"]
    images = [image(number, file_name=name) for number, name in enumerate(names, start=1)]
    write(root / "annotations/instances_train.json", images, [thing(1, 3)])
    for folder in (outside, root / "in"):
        folder.mkdir()
        for number in range(1, 5):
            (folder / f"{number}.jpg").write_bytes(voc_tree.jpeg())
    for key in names[:2]:
        message = reason(str(root), f"train/{key}")
        assert f"the JSON names an image outside {root}; move it there" in message
    split = load("train", path=str(root), max_unreadable_fraction=0.5)
    assert [split.source[index]["name"] for index in range(2)] == names[2:]
    assert "outside" in reason(f"{tmp_path}/./own", f"train/{names[0]}")


def test_links_that_lead_nowhere_are_no_images(load, tmp_path):
    root = tmp_path / "own"
    path = one(root, [thing(2, 2)])
    (root / "train/spare.jpg").symlink_to(tmp_path / "nowhere")
    assert len(load("train", path=path).source) == 2
    (root / "annotations/instances_val.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        errors.UserError, match=r"instances_val\.json: is no file, or leads to none"
    ):
        load("train", path=path)


def test_a_size_that_the_json_lacks_is_the_images(load, tmp_path):
    path = one(tmp_path / "own", [thing(2, 2)], height=None, width=None)
    assert load("train", path=path).source[1]["height"] == 24


def test_image_ids_that_repeat_are_told_apart(load, tmp_path):
    root = tmp_path / "own"
    images = [image(1), image(2), image(2), image(3), image(3, file_name="other.jpg")]
    images += [image(4, file_name="000000000001.jpg")]
    things = [thing(n, n) for n in (1, 2, 3)]
    write(root / "annotations/instances_train.json", images, things, folder=root / "train")
    reader = coco.read_folder(str(root))
    assert len(reader.remarks) == 1
    assert reader.remarks[0].endswith("000000000002.jpg: image 2 is there twice; one kept")
    assert "000000000003.jpg and other.jpg share the image id 3" in reason(
        str(root), "train/other.jpg"
    )
    assert "000000000001.jpg is listed twice" in reason(str(root), "train/000000000001.jpg (id 4)")
    split = load("train", path=str(root), max_unreadable_fraction=1.0)
    assert names(split) == ["000000000001.jpg", "000000000002.jpg"]
    assert [len(split.source[i]["labels"]) for i in (0, 1)] == [1, 1]


def test_annotation_ids_that_repeat_or_lead_nowhere_are_remarked(tmp_path):
    things = [thing(2, 2), thing(2, 2), thing(1, 2, (1, 1, 5, 5)), thing(4, 99)]
    reader = coco.read_folder(one(tmp_path / "own", things))
    said = [remark.partition(".json: ")[2] for remark in reader.remarks]
    assert said == [
        "annotation id 2 is there twice; one kept, they are the same",
        "annotation id 1 is there twice; both kept, they differ",
        "annotation 4: there is no image 99; passed over",
    ]
    assert len(reader.example("train/000000000002.jpg").annotation.names) == 2


def test_remarks_are_logged_where_a_dataset_is_prepared(load, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        load("train", path=one(tmp_path / "own", [thing(4, 99)]))
    assert "annotation 4: there is no image 99" in caplog.text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not JSON"),
        (b'{"images": [', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1]", "has no list 'images'"),
        (b'{"images": [], "annotations": {}, "categories": []}', "has no list 'annotations'"),
        (b'{"images": [], "annotations": []}', "has no list 'categories'"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1}]}', "needs a whole number"),
        (b'{"images": [3], "annotations": [], "categories": []}', "no id or no file_name"),
        (b'{"images": [], "annotations": [], "categories": []}', "holds no image"),
        (
            b'{"images": [], "annotations": [], "categories": '
            b'[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "category 1 is 'b', and 'a' before",
        ),
        (
            b'{"images": [], "annotations": [], "categories": '
            b'[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "several categories are named 'a'",
        ),
    ],
)
def test_files_that_are_not_cocos_are_named(load, tmp_path, content, word):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/instances_train.json").write_bytes(content)
    with pytest.raises(errors.UserError, match=f"own.*{word}"):
        load("train", path=str(tmp_path / "own"))


def test_datasets_that_are_not_there_say_what_was_looked_for(load, tmp_path):
    with pytest.raises(errors.UserError, match=r"COCO has train2017, .*no train; .*data\.path"):
        load("train")
    with pytest.raises(errors.UserError, match="no such folder or file"):
        load("train", path=str(tmp_path / "none"))
    (tmp_path / "own").mkdir()
    with pytest.raises(errors.UserError, match=r"no annotations/instances_\*\.json"):
        load("train", path=str(tmp_path / "own"))
    bare = write(tmp_path / "own/instances_train.json", [image(1)], [], folder=tmp_path / "own")
    with pytest.raises(errors.UserError, match="no annotation is an object"):
        load("train", path=str(bare))
    with pytest.raises(errors.UserError, match="letters, digits and underscores"):
        load("train", path=str(shutil.copy(bare, tmp_path / "own/instances_a b.json")))


def test_a_changed_dataset_is_prepared_again(load, tmp_path):
    root = write_plain(tmp_path / "coco")
    assert len(load("train2017", path=str(root)).source[0]["labels"]) == 1
    things = [thing(1, 9), thing(2, 9)]
    file = root / "annotations/instances_train2017.json"
    write(file, [image(9)], things)
    assert len(load("train2017", path=str(root)).source[0]["labels"]) == 2
    jpeg = voc_tree.jpeg(seed=3)
    (root / "train2017/000000000009.jpg").write_bytes(jpeg)
    assert load("train2017", path=str(root)).source[0]["image"] == jpeg
    (root / "train2017/000000000009.jpg").unlink()
    with pytest.raises(errors.UserError, match="no such image"):
        load("train2017", path=str(root))


def test_outlines_are_not_kept():
    row = coco_json._slim(thing(5, 6, (1, 2, 3, 4)))
    assert row == (5, 6, 18, [1, 2, 3, 4], 0, 100.5)
    assert coco_json._slim(image(5)) == image(5)


def test_collect_of_nothing_has_its_shapes():
    empty = annotations.collect([], height=2, width=3, notes=())
    assert empty.boxes.shape == (0, 4)
    assert empty.crowd.dtype == bool
    assert readers.NO_IMAGE_ID == -1


def peers_figures(file: Path, found) -> list[float]:
    """The 12 numbers of pycocotools on a JSON file; detections by image id."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = oracle.COCO(str(file))
        results = truth.loadRes(
            [
                {"image_id": number, "category_id": category, "bbox": list(bbox), "score": score}
                for number, rows in found.items()
                for bbox, score, category in rows
            ]
        )
        evaluator = cocoeval.COCOeval(truth, results, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


DEGENERATE = [
    {"bbox": (4, 4, 0, 5), "area": 0},
    {"bbox": (4, 4, 5, 0), "area": 12.5},
    {"bbox": (4, 4, 5, -2), "area": 0},
    {"bbox": (40, 30, 50, 50), "area": 2500},  # outside: medium
    {"bbox": (4, 4, 0, 5), "area": 0, "iscrowd": 1},
    {"bbox": (0, 0, 0, 0), "area": 20000},  # large
]


def test_objects_without_area_count_as_pycocotools_counts_them(load, tmp_path):
    """Random detections, some exact; every kind of degenerate object is missed, or ignored."""
    rng = np.random.default_rng(0)
    images = [image(number) for number in range(1, 9)]
    things, found = [], {}
    for number in range(1, 9):
        good = [(2.5 + number, 3, 10 + number, 12), (1, 2, 20, 15 + number / 4)]
        fields = [{"bbox": bbox, "area": bbox[2] * bbox[3]} for bbox in good]
        fields += DEGENERATE[: number % 7]
        for entry in fields:
            category = 18 if rng.random() < 0.6 else 3
            key = 100 * number + len(things)
            things.append(thing(key, number, category_id=category) | {"iscrowd": 0} | entry)
        boxes = [*good, (5, 5, 9, 9), (4, 4, 1, 5)]
        shifted = [tuple(np.add(bbox, rng.uniform(-1, 1, 4)).tolist()) for bbox in boxes]
        found[number] = [
            (bbox, float(rng.random()), int(rng.choice([3, 18]))) for bbox in [*boxes, *shifted]
        ]
    file = tmp_path / "own/annotations/instances_val.json"
    write(file, images, things, folder=tmp_path / "own/val")
    split = load("val", path=str(tmp_path / "own"))
    truth = datasets.coco_ground_truth(split)
    assert sum(len(rows[0]) for rows in truth.values()) == len(things)
    label_of = {number: label for label, number in enumerate(split.category_ids, start=1)}
    by_name = {
        image(number)["file_name"]: (
            np.array([bbox for bbox, _, _ in rows]),
            np.array([score for _, score, _ in rows]),
            np.array([label_of[category] for _, _, category in rows]),
        )
        for number, rows in found.items()
    }
    figures = coco_evaluation.evaluate(by_name, truth, class_names=split.class_names)
    expected = peers_figures(file, found)
    np.testing.assert_allclose(list(figures.values()), expected, atol=1e-12)
    without = {name: tuple(part[:2] for part in rows) for name, rows in truth.items()}  # degenerate
    others = coco_evaluation.evaluate(by_name, without, class_names=split.class_names)
    assert abs(others["AP"] - expected[0]) > 0.01  # they do matter here


def test_objects_without_area_are_missed_by_the_rules_of_voc_too(load, tmp_path):
    """The devkit counts every object that is not difficult, whatever its box."""
    split = load("train", path=one(tmp_path / "own", [thing(2, 2, (4, 4, 0, 5)), thing(3, 2)]))
    truth = datasets.ground_truth(split)
    boxes, labels, difficult = truth["000000000002.jpg"]
    np.testing.assert_allclose(boxes[0], [5, 5, 4, 9])
    assert (len(labels), difficult.any()) == (2, False)
    found = {name: (rows[0], np.ones(len(rows[0])), rows[1]) for name, rows in truth.items()}
    found["000000000002.jpg"] = boxes[1:], np.ones(1), labels[1:]
    curves = voc_evaluation.precision_recall(found, truth, class_names=split.class_names)
    result = voc_evaluation.summarize(curves, use_07_metric=False)
    assert result.ap["dog"] == pytest.approx(2 / 3)  # of three objects two are found


def test_training_never_sees_objects_without_area(load, tmp_path):
    path = one(tmp_path / "own", [thing(2, 2, (4, 4, 0, 5)), thing(3, 2, (40, 5, 9, 9))])
    split = load("train", path=path)
    batch = next(
        loader.training_batches(
            split.source,
            batch_size=2,
            max_objects=split.max_objects,
            seed=0,
            decoding=loader.Decoding(32),
        )
    )
    assert sorted((batch["labels"] > 0).sum(axis=1).tolist()) == [0, 1]
