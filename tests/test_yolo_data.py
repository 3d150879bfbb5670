import functools
from pathlib import Path

import numpy as np
import pytest
import voc_tree
import yaml

from ssd_jax import errors
from ssd_jax.data import datasets, yolo

LINE = "1 0.5 0.5 0.25 0.5\n"


@pytest.fixture
def load(tmp_path):
    return functools.partial(datasets.load, "yolo", cache_dir=tmp_path / "cache")


def write(root: Path, files: dict[str, str | bytes | None]) -> Path:
    """Writes files below a folder; None stands for an image of 32 x 24."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        data = voc_tree.jpeg(seed=len(name)) if content is None else content
        (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def write_plain(root: Path, label: str = LINE, **fields) -> Path:
    """Ultralytics' layout: two images in train, of which b has `label`, one in val."""
    content = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"], **fields}
    content = {name: value for name, value in content.items() if value is not None}
    return write(
        root,
        {
            "data.yaml": yaml.safe_dump(content, allow_unicode=True),
            "images/train/a.jpg": None,
            "labels/train/a.txt": LINE,
            "images/train/b.jpg": None,
            "labels/train/b.txt": label,
            "images/val/c.jpg": None,
            "labels/val/c.txt": "0 0.5 0.5 1 1\n",
        },
    )


def names(split) -> list[str]:
    return [split.source[index]["name"] for index in range(len(split.source))]


def objects(path: Path, key: str = "images/train/b.jpg"):
    return yolo.Reader(str(path)).example(key).annotation


def test_boxes_are_centers_and_sides_and_classes_count_from_0(load, tmp_path):
    path = str(write_plain(tmp_path / "own"))
    train, val = load("train", path=path), load("val", path=path)
    assert names(train) == ["images/train/a.jpg", "images/train/b.jpg"]
    assert train.class_names == val.class_names == ("cat", "dog")
    assert train.category_ids == (0, 1)
    # The middle quarter of the width, the middle half of the height.
    np.testing.assert_allclose(train.source[0]["boxes"], [[0.375, 0.25, 0.625, 0.75]], rtol=1e-6)
    assert train.source[0]["labels"].tolist() == [2]
    np.testing.assert_allclose(val.source[0]["boxes"], [[0, 0, 1, 1]])
    assert val.source[0]["labels"].tolist() == [1]


def test_polygons_stand_for_their_bounding_boxes(tmp_path):
    path = write_plain(tmp_path / "own", "0 0.25 0.5 0.75 0.25 0.5 1\n")
    np.testing.assert_allclose(objects(path).boxes, [[8, 6, 24, 24]])


@pytest.mark.parametrize("label", [None, "", "\n \n"])
def test_a_missing_or_empty_text_file_is_an_empty_image(load, tmp_path, label):
    path = write_plain(tmp_path / "own", label or "")
    if label is None:
        (path / "labels/train/b.txt").unlink()
    record = load("train", path=str(path)).source[1]
    assert record["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("0 0.5 0.5 0.1", "line 2 has 4 numbers, not 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "line 2 has 6 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.9 0.3", "line 2 has 8 numbers"),
        ("2 0.5 0.5 0.1 0.1", "line 2: class 2 is out of range; there are 2 names, from 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is out of range"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is out of range"),
        ("nan 0.5 0.5 0.1 0.1", "class nan is out of range"),
        ("dog 0.5 0.5 0.1 0.1", "are not all numbers"),
        ("0 16 12 8 8", "are not normalized"),
        ("0 nan 0.5 0.1 0.1", "are not normalized"),
        ("0 0.5 0.5 -0.1 0.1", "are not normalized"),
        ("0 0.5 inf 0.1 0.1", "are not normalized"),
    ],
)
def test_lines_that_cannot_be_read_cost_their_image(load, tmp_path, line, word):
    path = str(write_plain(tmp_path / "own", LINE + line + "\n"))
    with pytest.raises(errors.UserError, match=f"1 of 2 images.*labels/train/b.txt: .*{word}"):
        load("train", path=path)
    assert names(load("train", path=path, max_unreadable_fraction=0.5)) == ["images/train/a.jpg"]


@pytest.mark.parametrize(
    ("line", "kept", "word"),
    [
        ("0 0.95 0.5 0.2 0.5", [[27.2, 6, 32, 18]], "clipped"),
        ("0 0.995 0.5 0.0101 0.5", [[31.6784, 6, 32, 18]], ""),  # rounding
        ("0 0.5 0.5 0 0.5", [], "has no area; dropped from training"),
    ],
)
def test_boxes_beyond_the_image_are_repaired_and_named(tmp_path, line, kept, word):
    found = objects(write_plain(tmp_path / "own", line))
    boxes = found.boxes[~found.degenerate]
    np.testing.assert_allclose(boxes, np.array(kept).reshape(-1, 4), rtol=1e-5)
    assert len(found.notes) == bool(word)
    for note in found.notes:
        assert note.endswith(word)
        assert "labels/train/b.txt: line 1 (cat)" in note


def test_names_are_stored_in_one_line(load, tmp_path):
    path = write_plain(tmp_path / "own", names=["hot\ndog", "  small  cat\t"])
    split = load("train", path=str(path))
    assert split.class_names == ("hot dog", "small cat")
    assert split.source[0]["labels"].tolist() == [2]
    bare = write(tmp_path / "bare", {"classes.txt": "hot\u00a0dog\n cat\n", "a.jpg": None})
    (bare / "a.txt").write_text(LINE)
    split = load("train", path=str(bare))
    assert split.class_names == ("hot dog", "cat")
    assert split.source[0]["labels"].tolist() == [2]
    (bare / "classes.txt").write_text("cat\n\u2003\ndog\n")
    with pytest.raises(errors.UserError, match=r"classes\.txt: the name '' is empty"):
        load("train", path=str(bare))


def test_keypoints_stand_behind_the_box(tmp_path):
    # Two keypoints of (x, y, visibility), of which 2 is "visible" and no normalized number.
    path = write_plain(
        tmp_path / "own", "0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.9 0.9 1\n", kpt_shape=[2, 3]
    )
    np.testing.assert_allclose(objects(path).boxes, [[12, 6, 20, 18]])
    with pytest.raises(errors.UserError, match=r"line 1 has 5 numbers, not 11 \(class cx cy"):
        objects(path, "images/train/a.jpg")


@pytest.mark.parametrize("line", ["x" * 5000, "x/" * 5000 + "a.jpg", "a\0.jpg", "/", "."])
def test_lists_of_what_is_no_image_cost_that_image(load, tmp_path, line):
    path = write_plain(tmp_path / "own", train="train.txt")
    (path / "train.txt").write_text(f"images/train/a.jpg\n{line}\n")
    assert names(load("train", path=str(path), max_unreadable_fraction=0.5)) == [
        "images/train/a.jpg"
    ]
    with pytest.raises(errors.UserError, match="cannot be read"):
        load("train", path=str(path))


def test_images_that_change_their_split_are_noticed(load, tmp_path):
    path = write_plain(tmp_path / "own", train="train.txt", val="val.txt")
    a, b, c = "images/train/a.jpg", "images/train/b.jpg", "images/val/c.jpg"
    for train, val in (([a, b], [c]), ([c, b], [a])):
        (path / "train.txt").write_text("\n".join(train))
        (path / "val.txt").write_text("\n".join(val))
        assert names(load("train", path=str(path))) == train
        assert names(load("val", path=str(path))) == val


def test_text_that_is_none_is_named(tmp_path):
    path = write_plain(tmp_path / "own")
    (path / "labels/train/b.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(errors.UserError, match=r"b\.txt: not a text file"):
        objects(path)


def test_broken_and_empty_images_are_named(tmp_path):
    path = write_plain(tmp_path / "own")
    for content in (b"", b"text"):
        (path / "images/train/b.jpg").write_bytes(content)
        with pytest.raises(errors.UserError, match=r"images/train/b\.jpg: "):
            objects(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "."},
        {"path": "../nowhere"},  # Ultralytics' datasets are moved about
        {"names": {0: "cat", 1: "dog"}, "nc": 2},
        {"train": ["images/train"], "test": None},
        {"train": "../images/train"},  # Roboflow's
        {"train": "train.txt"},
    ],
)
def test_yaml_files_may_be_written_in_many_ways(load, tmp_path, fields):
    path = write_plain(tmp_path / "own", **fields)
    (path / "train.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n\n")
    assert names(load("train", path=str(path))) == ["images/train/a.jpg", "images/train/b.jpg"]
    (path / "data.yaml").rename(path / "mine.yml")
    assert len(load("val", path=str(path)).source) == 1
    assert len(load("val", path=str(path / "mine.yml")).source) == 1


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"names": None}, "needs names"),
        ({"names": []}, "needs names"),
        ({"names": {"a": "cat"}}, "names must be numbered from 0"),
        ({"names": ["cat", "cat"]}, "the name 'cat' is empty or there twice"),
        ({"nc": 3}, "nc is 3, but there are 2 names"),
        ({"names": ["cat", "cat "]}, "the name 'cat' is empty or there twice"),
        ({"names": ["cat", " "]}, "the name '' is empty or there twice"),
        ({"names": ["cat", "\ud800"]}, "nicode"),
        ({"names": [True, False]}, "YAML takes a name for True; put all names in quotes"),
        ({"names": ["cat", 1.5]}, "YAML takes a name for 1.5"),
        ({"names": ["cat", None]}, "YAML takes a name for None"),
        ({"kpt_shape": 17}, r"kpt_shape is 17, not two whole numbers, as \[17, 3\]"),
        ({"kpt_shape": [17, 0]}, "kpt_shape is"),
        ({"kpt_shape": [17]}, "kpt_shape is"),
        ({"train": "x" * 5000}, "is neither in"),
        ({"path": "x" * 5000, "train": "nowhere"}, "is neither in"),
        ({"train": "images/training"}, "train: images/training is neither in"),
        ({"train": None, "val": None}, "names no images"),
    ],
)
def test_yaml_files_that_are_wrong_are_named(load, tmp_path, fields, word):
    path = write_plain(tmp_path / "own", **fields)
    with pytest.raises(errors.UserError, match=rf"data\.yaml: .*{word}"):
        load("train", path=str(path))


@pytest.mark.parametrize(
    "content", ["a: [", "[1, 2]", "", "a: 2020-99-99", "[" * 20_000, "a: !!int ''", "a: !!bool b"]
)
def test_files_that_are_no_yaml_are_named(load, tmp_path, content):
    path = write_plain(tmp_path / "own")
    (path / "data.yaml").write_text(content)
    with pytest.raises(errors.UserError, match=r"data\.yaml: (not YAML|holds no fields)"):
        load("train", path=str(path))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("images/train/{}.jpg", "labels/train/{}.txt"),
        ("train/images/{}.jpg", "train/labels/{}.txt"),
        ("images/train/{}.jpg", "images/train/{}.txt"),
    ],
)
def test_folders_tell_the_splits_without_yaml(load, tmp_path, image, text):
    root = write(
        tmp_path / "own",
        {"classes.txt": "cat\ndog\n", image.format("a"): None, text.format("a"): LINE},
    )
    split = load("train", path=str(root))
    assert names(split) == [image.format("a")]
    assert split.source[0]["labels"].tolist() == [2]
    (root / "classes.txt").rename(root / "obj.names")
    assert load("train", path=str(root)).class_names == ("cat", "dog")


def test_a_flat_folder_is_split_by_order(load, tmp_path):
    files = {f"{number}.jpg": None for number in range(1, 7)}
    files |= {f"{number}.txt": LINE for number in range(1, 7)} | {"classes.txt": "cat\ndog"}
    path = str(write(tmp_path / "own", files))
    assert names(load("val", path=path)) == ["5.jpg"]
    assert names(load("train", path=path)) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "6.jpg"]
    assert yolo.Reader(path).remarks == []


def test_mixed_images_and_other_files_are_sorted_out(load, tmp_path):
    path = write_plain(tmp_path / "own")
    png = voc_tree.encoded(voc_tree.pixels(), "PNG")
    write(
        path,
        {
            "images/train/x.png": png,
            "images/train/b.png": png,
            "images/train/Thumbs.db": "no image",
            "images/train/._a.jpg": "Mac OS X",
            "labels/train/lonely.txt": LINE,
            "labels/train/classes.txt": "cat",
        },
    )
    split = load("train", path=str(path))
    assert [Path(name).name for name in names(split)] == ["a.jpg", "b.jpg", "b.png", "x.png"]
    assert [len(split.source[i]["labels"]) for i in range(4)] == [1, 1, 1, 0]
    unlabeled, twins, lonely = yolo.Reader(str(path)).remarks
    assert unlabeled.endswith(
        "own: train: 1 of 4 images have no text file, so no objects; the first is "
        "images/train/x.png"
    )
    assert twins.endswith("labels/train/b.txt: is the text file of both b.jpg and b.png")
    assert lonely.endswith("labels/train/lonely.txt: has no image")


def test_names_may_have_spaces_and_letters_of_any_script(load, tmp_path):
    root = tmp_path / "Träume und Bilder"
    path = write_plain(root, names=["Möwe", "鳥 [x]"])
    write(path, {"images/train/möwe 海.jpg": None, "labels/train/möwe 海.txt": LINE})
    split = load("train", path=str(path))
    assert names(split)[2] == "images/train/möwe 海.jpg"
    assert split.class_names == ("Möwe", "鳥 [x]")
    assert list(datasets.ground_truth(split)) == names(split)


def test_datasets_that_are_not_there_say_what_is_missing(load, tmp_path):
    with pytest.raises(errors.UserError, match="no such folder or file"):
        load("train", path=str(tmp_path / "none"))
    (tmp_path / "own").mkdir()
    with pytest.raises(errors.UserError, match="nothing names the classes; add data"):
        load("train", path=str(tmp_path / "own"))
    (tmp_path / "own/classes.txt").write_text("cat\n")
    with pytest.raises(errors.UserError, match="holds no images"):
        load("train", path=str(tmp_path / "own"))
    (tmp_path / "own/classes.txt").write_text("\n")
    with pytest.raises(errors.UserError, match=r"classes\.txt: is empty"):
        load("train", path=str(tmp_path / "own"))
    two = write(tmp_path / "own", {"a.yaml": "", "b.yaml": ""})
    with pytest.raises(errors.UserError, match=r"has a\.yaml, b\.yaml"):
        load("train", path=str(two))
    bare = write(tmp_path / "bare", {"classes.txt": "cat", "a.jpg": None})
    with pytest.raises(errors.UserError, match="no text file has an object"):
        load("train", path=str(bare))


def test_a_changed_dataset_is_prepared_again(load, tmp_path):
    path = write_plain(tmp_path / "own")
    assert len(load("train", path=str(path)).source[1]["labels"]) == 1
    (path / "labels/train/b.txt").write_text(LINE + LINE.replace("0.25", "0.125"))
    assert len(load("train", path=str(path)).source[1]["labels"]) == 2
    (path / "labels/train/b.txt").unlink()
    assert len(load("train", path=str(path)).source[1]["labels"]) == 0
    (path / "images/train/b.jpg").unlink()
    assert len(load("train", path=str(path)).source) == 1
