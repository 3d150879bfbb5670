import concurrent.futures
import functools
import hashlib
import http.server
import io
import json
import logging
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny_run
import voc_tree
from PIL import Image

from ssd_jax import config, config_checks, errors
from ssd_jax.data import (
    annotations,
    builder,
    datasets,
    images,
    metadata,
    prepared,
    records,
    synthetic,
    voc,
)
from ssd_jax.training import data as data_lib

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture
def load(tmp_path):
    return functools.partial(datasets.load, cache_dir=tmp_path / "cache")


def names(split: datasets.Split) -> list[str]:
    return [split.source[index]["name"] for index in range(len(split.source))]


def refusal(function, *args, **kwargs) -> str:
    """The message of the UserError that a call raises, which has to be one line."""
    with pytest.raises(errors.UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_field_survives(load, tmp_path):
    data = voc_tree.jpeg()
    objects = (
        voc_tree.box("cat", (3, 4, 20, 18), difficult=1),
        voc_tree.box("dog", (1, 1, 32, 24), truncated=1),
    )
    folder = voc_tree.write(
        tmp_path / "own",
        images={"a.jpg": data, "b.jpg": data},
        annotations={"a": voc_tree.xml(*objects), "b": voc_tree.xml()},
        splits={"train": ["a", "b"]},
    )
    split = load("folder", "train", path=str(folder))
    assert split.class_names == ("cat", "dog")
    assert split.max_objects == 2
    full, empty = split.source[0], split.source[1]
    assert full["image"] == data
    assert (full["name"], full["height"], full["width"]) == ("a.jpg", 24, 32)
    expected = [[2 / 32, 3 / 24, 20 / 32, 18 / 24], [0, 0, 1, 1]]
    np.testing.assert_allclose(full["boxes"], expected, rtol=1e-6)
    assert full["boxes"].dtype == np.float32
    assert full["labels"].dtype == np.int32
    assert full["labels"].tolist() == [1, 2]
    assert full["difficult"].tolist() == [True, False]
    assert full["truncated"].tolist() == [False, True]
    assert empty["boxes"].shape == (0, 4)
    assert empty["boxes"].dtype == np.float32
    for field, dtype in (("labels", np.int32), ("difficult", bool), ("truncated", bool)):
        assert empty[field].shape == (0,)
        assert empty[field].dtype == dtype


def test_ground_truth_is_in_voc_pixels(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 2, splits={"train": ["000001", "000002"]})
    truth = datasets.ground_truth(load("folder", "train", path=str(folder)))
    assert list(truth) == ["000001.jpg", "000002.jpg"]
    boxes, labels, difficult = truth["000002.jpg"]
    np.testing.assert_allclose(boxes, [[3, 4, 20, 18]] * 2, rtol=1e-6)
    assert boxes.dtype == np.float32
    assert labels.tolist() == [1, 1]
    assert difficult.tolist() == [False, False]


def test_ground_truth_refuses_a_image_twice(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own")
    twice = load("folder", "train+train[:1]", path=str(folder))
    assert "holds 000001.jpg twice" in refusal(datasets.ground_truth, twice)


def test_a_folder_without_image_sets_is_split_by_order(load, tmp_path):
    folder = str(voc_tree.write_plain(tmp_path / "own", 11))
    train, val = (names(load("folder", name, path=folder)) for name in ("train", "val"))
    assert val == ["000005.jpg", "000010.jpg"]
    assert train == [f"{i:06d}.jpg" for i in (1, 2, 3, 4, 6, 7, 8, 9, 11)]
    assert names(load("folder", "all", path=folder)) == train + val


def test_splits_come_from_image_sets_without_class_lists(load, tmp_path):
    splits = {"train": ["000001"], "odd": ["000001", "000003"], "dog_train": ["000001  1"]}
    folder = str(voc_tree.write_plain(tmp_path / "own", 3, splits=splits))
    assert names(load("folder", "odd", path=folder)) == ["000001.jpg", "000003.jpg"]
    message = refusal(load, "folder", "val", path=folder)
    assert message.endswith("there is no val, only odd, train")


def test_ids_with_spaces_are_no_class_list(load, tmp_path):
    keys = [f"photo {number}" for number in (0, 1)]
    splits = {"train": keys, "dog_train": ["photo0  1", "photo1 -1"]}
    folder = voc_tree.write(
        tmp_path / "own",
        images={f"{key}.jpg": voc_tree.jpeg() for key in keys},
        annotations={key: voc_tree.xml(voc_tree.box()) for key in keys},
        splits=splits,
    )
    assert names(load("folder", "train", path=str(folder))) == ["photo 0.jpg", "photo 1.jpg"]
    assert list(voc.read_folder(str(folder)).splits) == ["train"]


def test_an_empty_list_of_a_split_is_named(load, tmp_path, caplog):
    splits = {"train": [], "val": ["000001"]}
    folder = voc_tree.write_plain(tmp_path / "own", splits=splits)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert names(load("folder", "val", path=str(folder))) == ["000001.jpg"]
    assert f"{folder}/ImageSets/Main/train.txt: is empty" in caplog.text
    (folder / "ImageSets/Main/val.txt").unlink()
    message = refusal(load, "folder", "val", path=str(folder))
    assert message.endswith("Main/train.txt: is empty; write its ids there, or remove the file")


def test_names_are_stored_in_one_line(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 2)
    objects = (voc_tree.box(" hot\ndog "), voc_tree.box("hot dog"), voc_tree.box("cat"))
    (folder / "Annotations/000001.xml").write_bytes(voc_tree.xml(*objects))
    split = load("folder", "all", path=str(folder))
    assert split.class_names == ("cat", "dog", "hot dog")
    assert split.source[0]["labels"].tolist() == [3, 3, 1]
    (folder / "Annotations/000001.xml").write_bytes(voc_tree.xml(voc_tree.box("\u00a0")))
    assert "object 1 has no <name>" in refusal(load, "folder", "all", path=str(folder))


def test_hidden_files_are_passed_over(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 2)
    for name in ("Annotations/._000001.xml", "JPEGImages/._000001.jpg"):
        (folder / name).write_bytes(b"Mac OS X")
    assert len(load("folder", "all", path=str(folder)).source) == 2


def test_processes_may_prepare_the_same_data_at_once(tmp_path):
    code = (
        "import sys; from ssd_jax.data import datasets\n"
        "split = datasets.load('folder', 'all', path=sys.argv[1], cache_dir=sys.argv[2])\n"
        "assert len(split.source) == 40 and split.source[39]\n"
    )
    folder = voc_tree.write_plain(tmp_path / "own", 40)
    command = [sys.executable, "-W", "error", "-c", code, str(folder), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]


def test_what_another_process_finishes_meanwhile_is_read(load, tmp_path, monkeypatch):
    folder = str(voc_tree.write_plain(tmp_path / "own"))
    stretch = load("folder", "all", path=folder).source._stretches[0]
    place = pathlib.Path(stretch.directory)
    place.rename(tmp_path / "aside")
    is_prepared = prepared._is_prepared

    def finished(maker):
        if (tmp_path / "aside").exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "aside").rename(place)
        return is_prepared(maker)

    monkeypatch.setattr(prepared, "_is_prepared", finished)
    assert len(load("folder", "all", path=folder).source) == 5


def test_lower_case_folders_and_mixed_suffixes_are_read(load, tmp_path):
    folder = voc_tree.write(
        tmp_path / "own",
        images={
            "a.JPEG": voc_tree.jpeg(),
            "b.png": voc_tree.encoded(voc_tree.pixels(), "PNG"),
            "deep/c.bmp": voc_tree.encoded(voc_tree.pixels(), "BMP"),
        },
        annotations={key: voc_tree.xml(voc_tree.box()) for key in ("a", "b", "deep/c")},
    )
    (folder / "JPEGImages").rename(folder / "images")
    (folder / "Annotations").rename(folder / "annotations")
    split = load("folder", "all", path=str(folder))
    assert names(split) == ["a.JPEG", "b.png", "deep/c.bmp"]
    assert all(
        images.decode(split.source[i]["image"], name="a").shape == (24, 32, 3) for i in range(3)
    )


@pytest.mark.parametrize(
    "image",
    {
        "gray": voc_tree.encoded(voc_tree.pixels()[:, :, 0], "JPEG"),
        "cmyk": voc_tree.encoded(Image.new("CMYK", (32, 24)), "JPEG"),
        "16 bit": voc_tree.encoded(np.full((24, 32), 40000, np.uint16), "PNG"),
        "alpha": voc_tree.encoded(Image.new("RGBA", (32, 24)), "PNG"),
    }.items(),
    ids=lambda item: item[0],
)
def test_unusual_images_are_kept_byte_for_byte(load, tmp_path, image):
    folder = voc_tree.write(
        tmp_path / "own",
        images={"a.jpg": image[1]},
        annotations={"a": voc_tree.xml(voc_tree.box())},
    )
    record = load("folder", "all", path=str(folder)).source[0]
    assert record["image"] == image[1]
    assert images.decode(record["image"], name="a").shape == (24, 32, 3)


def test_a_half_destroyed_cmyk_jpeg_is_named(load, tmp_path):
    """Pillow alone reads it without a word."""
    inks = np.random.default_rng(0).integers(0, 255, (24, 32, 4), dtype=np.uint8)
    data = voc_tree.encoded(Image.fromarray(inks, "CMYK"), "JPEG")
    middle = len(data) // 2
    folder = voc_tree.write_plain(tmp_path / "own")
    (folder / "JPEGImages/000001.jpg").write_bytes(data)
    assert len(load("folder", "all", path=str(folder)).source) == 5
    broken = data[:middle] + b"\xff\xd0" * 30 + data[middle + 60 :]
    Image.open(io.BytesIO(broken)).load()
    (folder / "JPEGImages/000001.jpg").write_bytes(broken)
    message = refusal(load, "folder", "all", path=str(folder))
    assert "JPEGImages/000001.jpg: not a readable image (Corrupt JPEG data" in message


def test_a_rotated_image_has_its_upright_size(load, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = voc_tree.encoded(voc_tree.pixels(24, 32), "JPEG", exif=exif)
    folder = voc_tree.write(
        tmp_path / "own",
        images={"a.jpg": data},
        annotations={"a": voc_tree.xml(voc_tree.box(), size=(32, 24))},
    )
    record = load("folder", "all", path=str(folder)).source[0]
    assert (record["height"], record["width"]) == (32, 24)
    (folder / "Annotations/a.xml").write_bytes(voc_tree.xml(voc_tree.box(), size=(24, 32)))
    assert "a.xml: says 32 x 24" in refusal(load, "folder", "all", path=str(folder))


def test_repaired_boxes_are_logged(load, tmp_path, caplog):
    corners = [(0, 0, 99, 99), (20, 18, 3, 4), (9, 9, 9, 20), (50, 50, 60, 60)]
    folder = voc_tree.write(
        tmp_path / "own",
        images={"a.jpg": voc_tree.jpeg()},
        annotations={"a": voc_tree.xml(*(voc_tree.box(corners=each) for each in corners))},
    )
    with caplog.at_level(logging.WARNING, logger="absl"):
        split = load("folder", "all", path=str(folder))
    assert split.source[0]["degenerate"].tolist() == [False, False, True, True]
    assert caplog.messages[0].startswith("4 boxes were clipped, reordered or dropped")
    assert [line.rpartition("; ")[2] for line in caplog.messages[1:5]] == [
        "clipped",
        "reordered",
        "dropped from training",
        "dropped from training",
    ]


@pytest.mark.parametrize("content", [b"", b"no image", voc_tree.jpeg()[:-200]])
def test_broken_images_are_named_and_counted(load, tmp_path, content):
    folder = voc_tree.write_plain(tmp_path / "own", 20)
    for number in range(3, 18):
        (folder / f"JPEGImages/{number:06d}.jpg").write_bytes(content)
    message = refusal(load, "folder", "all", path=str(folder))
    assert f"{folder}/JPEGImages/000003.jpg: " in message
    assert "15 of 20 images cannot be used" in message
    assert "; 14 more cannot be used: 000004, 000005, 000006" in message
    assert message.endswith(", ...: python -m ssd_jax.data.check PATH lists all")


def test_a_dataset_of_broken_images_alone_is_not_prepared(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 2)
    for number in (1, 2):
        (folder / f"JPEGImages/{number:06d}.jpg").write_bytes(b"")
    message = refusal(load, "folder", "train", path=str(folder), max_unreadable_fraction=1.0)
    assert message.endswith(
        "000001.jpg: the file is empty; replace or remove it; 1 more cannot be used: 000002"
    )
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


def spoiled(folder: pathlib.Path, *numbers: int) -> str:
    """A plain folder of 20 images of which some cannot be read."""
    voc_tree.write_plain(folder, 20)
    for number in numbers:
        (folder / f"JPEGImages/{number:06d}.jpg").write_bytes(b"no image")
    return str(folder)


def test_training_leaves_out_and_names_what_cannot_be_read(load, tmp_path, caplog):
    folder = pathlib.Path(spoiled(tmp_path / "own", 3))
    (folder / "Annotations/000007.xml").write_bytes(b"<annotation>")
    for _ in range(2):  # when it is prepared, and when it is found prepared
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="absl"):
            split = load("folder", "train", path=str(folder), max_unreadable_fraction=2 / 16)
        assert len(split.source) == 14
        assert not {"000003.jpg", "000007.jpg"} & set(names(split))
        (message,) = caplog.messages
        assert "2 of 16 images cannot be used and are left out" in message
        assert f"{folder}/JPEGImages/000003.jpg: not a readable image" in message
        assert message.endswith("1 more cannot be used: 000007")


def test_more_than_the_share_stops_with_the_list_and_the_way_out(load, tmp_path):
    folder = spoiled(tmp_path / "own", 3, 7)
    message = refusal(load, "folder", "train", path=folder, max_unreadable_fraction=0.12)
    assert "2 of 16 images cannot be used, a share of 12.5%" in message
    assert "more than config.data.max_unreadable_fraction=0.12" in message
    assert "train without them by --config.data.max_unreadable_fraction=0.13" in message
    assert "JPEGImages/000003.jpg: not a readable image" in message
    assert message.endswith("; 1 more cannot be used: 000007")


def test_evaluation_skips_nothing(load, tmp_path):
    splits = {"train": ["000001", "000003"], "val": ["000002", "000004"]}
    splits["trainval"] = ["000001", "000003", "000002", "000004"]
    folder = pathlib.Path(voc_tree.write_plain(tmp_path / "own", 4, splits=splits))
    (folder / "JPEGImages/000003.jpg").write_bytes(b"")
    path = str(folder)
    assert names(load("folder", "val", path=path)) == ["000002.jpg", "000004.jpg"]
    for split in ("train", "train[:1]", "val+train", "trainval"):
        message = refusal(load, "folder", split, path=path)
        assert "an evaluation skips none; repair or remove them" in message
        assert "JPEGImages/000003.jpg: the file is empty" in message
    assert "1 of 2 images" in refusal(load, "folder", "train", path=path)
    assert "1 of 4 images" in refusal(load, "folder", "val+train", path=path)
    assert "1 of 4 images" in refusal(load, "folder", "trainval", path=path)
    assert len(load("folder", "trainval", path=path, max_unreadable_fraction=0.25).source) == 3


def test_an_evaluation_of_a_split_by_order_names_what_is_not_in_it(load, tmp_path, caplog):
    folder = spoiled(tmp_path / "own", 5, 10, 15)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert names(load("folder", "val", path=folder)) == ["000020.jpg"]
    (message,) = caplog.messages
    assert "split 'val', made by order: 3 of the dataset's 20 images cannot be used" in message
    assert "JPEGImages/000005.jpg: not a readable image" in message
    assert message.endswith("2 more cannot be used: 000010, 000015")
    caplog.clear()
    whole = str(voc_tree.write_plain(tmp_path / "whole"))
    with caplog.at_level(logging.WARNING, logger="absl"):
        load("folder", "val", path=whole)
    assert caplog.messages == []


def test_what_cannot_be_read_never_falls_to_a_val_by_order(load, tmp_path):
    folder = spoiled(tmp_path / "own", 5)  # the first of every fifth
    assert names(load("folder", "val", path=folder)) == ["000010.jpg", "000015.jpg", "000020.jpg"]
    assert "1 of 17 images" in refusal(load, "folder", "train", path=folder)
    assert "000005.jpg" not in names(
        load("folder", "train", path=folder, max_unreadable_fraction=0.1)
    )
    (pathlib.Path(folder) / "JPEGImages/000005.jpg").write_bytes(voc_tree.jpeg())
    assert (
        names(load("folder", "val", path=folder))[0] == "000005.jpg"
    )  # repaired: as if it had been


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_the_share_is_one(share):
    cfg = config.Config()
    cfg.data.max_unreadable_fraction = share
    assert "config.data.max_unreadable_fraction" in refusal(config_checks.validate, cfg)
    for fine in (0.0, 1.0):
        cfg.data.max_unreadable_fraction = fine
        config_checks.validate(cfg)


def test_training_may_skip_and_evaluation_may_not(tmp_path):

    cfg = config.DataConfig(dataset="folder", train_split="train", eval_split="val")
    cfg.cache_dir = str(tmp_path / "cache")
    cfg.path = spoiled(tmp_path / "own", 3)
    assert "max_unreadable_fraction=0.01" in refusal(data_lib.open_splits, cfg)
    cfg.max_unreadable_fraction = 0.1
    data = data_lib.open_splits(cfg)
    assert (len(data.train.source), len(data.eval.source)) == (15, 4)
    cfg.eval_split = "train"
    assert "an evaluation skips none" in refusal(data_lib.open_splits, cfg)


@pytest.mark.parametrize("difficult", [True, False])
def test_the_sheet_of_augmented_images_shows_what_the_network_sees(monkeypatch, difficult):
    from ssd_jax import visualize

    shown = {}

    def augmentations(key, image, boxes, labels, **options):
        shown.update(options, boxes=boxes.tolist(), labels=labels.tolist())
        return image

    monkeypatch.setattr(visualize, "augmentations", augmentations)
    corners = np.float32([[0, 0, 0.5, 0.5], [0, 0, 1, 1], [0.5, 0, 1, 1]])
    record = {
        "image": voc_tree.jpeg(),
        "name": "a.jpg",
        "boxes": corners,
        "labels": np.int32([1, 2, 1]),
        "crowd": np.array([False, True, False]),
        "difficult": np.array([False, False, True]),
        "degenerate": np.zeros(3, bool),
    }
    crowd_alone = {**record, "crowd": np.ones(3, bool), "boxes": corners + 1}
    cfg = config.Config()
    cfg.model.mean, cfg.data.difficult = (1.0, 2.0, 3.0), difficult
    data_lib.augmented(cfg, datasets.Split([crowd_alone, record], ("cat", "dog"), 3, (1, 2), True))
    kept = [0, 2] if difficult else [0]
    assert shown["boxes"] == corners[kept].tolist()
    assert shown["labels"] == [1] * len(kept)
    assert shown["mean"] == (1.0, 2.0, 3.0)


def test_names_may_have_spaces_and_letters_of_any_script(load, tmp_path):
    folder = voc_tree.write(
        tmp_path / "Träume und Bilder",
        images={"möwe 海.jpg": voc_tree.jpeg(), "b c.png": voc_tree.jpeg()},
        annotations={
            "möwe 海": voc_tree.xml(voc_tree.box("Möwe [x]")),
            "b c": voc_tree.xml(voc_tree.box("鳥")),
        },
        splits={"train": ["möwe 海", "b c"]},
    )
    split = load("folder", "train", path=str(folder))
    assert names(split) == ["möwe 海.jpg", "b c.png"]
    assert split.class_names == ("Möwe [x]", "鳥")
    assert split.category_ids == (1, 2)
    assert split.source[0]["image_id"] == -1


def test_a_broken_annotation_is_named(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own")
    (folder / "Annotations/000002.xml").write_bytes(b"<annotation>")
    message = refusal(load, "folder", "all", path=str(folder))
    assert "Annotations/000002.xml: not well-formed XML" in message


def test_missing_files_are_named(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", splits={"train": ["000001", "000009"]})
    message = refusal(load, "folder", "train", path=str(folder))
    assert "no Annotations/000009.xml, though ImageSets/Main names 000009" in message
    shutil.rmtree(folder / "ImageSets")
    (folder / "JPEGImages/000002.jpg").unlink()
    message = refusal(load, "folder", "train", path=str(folder))
    assert "Annotations/000002.xml has no image JPEGImages/000002" in message


def test_folders_that_hold_no_data_say_what_was_looked_for(load, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal(load, "folder", "all", path=str(tmp_path / "empty"))
    assert "no Annotations/*.xml" in message
    assert "no such folder" in refusal(load, "folder", "all", path=str(tmp_path / "none"))
    assert "config.data.path is empty" in refusal(load, "folder", "all")
    bare = voc_tree.write(
        tmp_path / "bare", images={"a.jpg": voc_tree.jpeg()}, annotations={"a": voc_tree.xml()}
    )
    assert "no annotation has an object" in refusal(load, "folder", "all", path=str(bare))


def test_two_images_of_one_name_and_odd_split_names_are_refused(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", splits={"all": ["000001"]})
    message = refusal(load, "folder", "all", path=str(folder))
    assert "rename its split `all` (ImageSets/Main/all.txt" in message
    folder = voc_tree.write_plain(tmp_path / "odd", splits={"my-train": ["000001"]})
    assert "my-train.txt" in refusal(load, "folder", "all", path=str(folder))
    shutil.rmtree(folder / "ImageSets")
    (folder / "JPEGImages/000001.png").write_bytes(b"")
    assert "differ by suffix only" in refusal(load, "folder", "all", path=str(folder))


def test_unknown_names_list_what_there_is(load, tmp_path):
    message = refusal(load, "coco8", "train")
    assert "config.data.dataset='coco8'" in message
    assert "voc, folder, coco, yolo, synthetic" in message
    folder = str(voc_tree.write_plain(tmp_path / "own"))
    for split in ("train[", "", "train+", "train[a:]", "train[99:]", "train[3:1]", "2007/train"):
        assert f"split {split!r}" in refusal(load, "folder", split, path=folder)
    assert "2007/ or 2012/" in refusal(load, "voc", "train")


def test_slices_and_sums_are_those_of_tfds(load, tmp_path):
    folder = str(voc_tree.write_plain(tmp_path / "own", 10))
    everything = names(load("folder", "all", path=folder))
    for part, expected in {
        "all[:3]": everything[:3],
        "all[7:]": everything[7:],  # one of train, both of val
        "all[-1:]": everything[-1:],
        "all[25%:50%]": everything[2:5],
        "val + train[:1]": everything[8:] + everything[:1],
    }.items():
        assert names(load("folder", part, path=folder)) == expected
    assert load("folder", "train[:2]", path=folder).max_objects == 2
    assert load("folder", "train[:2]+val[:1]", path=folder).max_objects == 5


def test_random_access_works_from_threads_and_after_pickling(load, tmp_path):
    source = load("folder", "all", path=str(voc_tree.write_plain(tmp_path / "own", 10))).source
    expected = [source[index]["name"] for index in range(10)]
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).integers(0, 10, 400)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for each in (source, copy):
            found = list(pool.map(lambda index, each=each: each[index]["name"], order))
            assert found == [expected[index] for index in order]
    assert source[-1]["name"] == expected[-1]
    with pytest.raises(IndexError):
        source[10]


def test_records_of_a_split_that_fits_are_read_once(load, tmp_path, monkeypatch):
    folder = str(voc_tree.write_plain(tmp_path / "own", 10))  # train of 8, val of 2
    parse, read = records._record, []
    monkeypatch.setattr(records, "_record", lambda data: read.append(data) or parse(data))

    def reads(split, **options):
        """How many records two rounds through a split and through its pickled copy read."""
        source = load("folder", split, path=folder, **options).source
        counts = []
        for each in (source, pickle.loads(pickle.dumps(source))):
            read.clear()
            first, second = ([each[index] for index in range(len(each))] for _ in range(2))
            for one, other in zip(first, second, strict=True):
                np.testing.assert_equal(one, other)
            counts.append(len(read))
        return counts

    whole = sum(part.size for part in load("folder", "all", path=folder).source._stretches) / 2**30
    assert reads("all", memory_gib=whole) == [10, 20]
    assert reads("all", memory_gib=0.999 * whole) == reads("all") == [20, 20]
    # Of the same files twice, or of a part of them, the size is that of the files.
    assert reads("train[:2]+all", memory_gib=whole) == [12, 24]
    assert reads("all[5:]", memory_gib=0.999 * whole) == [10, 10]
    assert reads("train[:2]", memory_gib=0.999 * whole) == [2, 4]
    kept = load("folder", "all", path=folder, memory_gib=whole).source[0]
    with pytest.raises(ValueError, match="read-only"):
        kept["boxes"][0, 0] = 0


def test_a_changed_folder_is_prepared_again(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own")
    assert load("folder", "all", path=str(folder)).class_names == ("dog",)
    (folder / "Annotations/000001.xml").write_bytes(voc_tree.xml(voc_tree.box("cow")))
    assert load("folder", "all", path=str(folder)).class_names == ("cow", "dog")


def test_an_interrupted_preparation_is_not_read(load, tmp_path, monkeypatch):
    folder = str(voc_tree.write_plain(tmp_path / "own"))
    records = builder._records

    def interrupted(examples):
        yield from records(examples[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("folder", "all", path=folder)
    assert len(load("folder", "all", path=folder).source) == 5


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(datasets.load, "voc", "2007/train", cache_dir=tmp_path / "file")
    assert f"{tmp_path}/file: the cache cannot be written" in message


# What version 1.4.0 of the builder wrote for a folder of two images, one of them broken.
WRITTEN_BEFORE = """{
  "by_order": false,
  "category_ids": [1, 2],
  "conditions": {"pillow": "11.0.0", "simplejpeg": "1.8.1"},
  "joined": {"trainval": ["train", "val"]},
  "object_counts": {"train": [2], "val": [1]},
  "skipped": {"train": {"b": "b.jpg: the file is empty"}, "trainval": {}, "val": {}},
  "unannotated": []
}"""


def test_what_is_prepared_says_of_itself_what_it_said_before():
    content = json.loads(WRITTEN_BEFORE)
    found = metadata.Metadata.from_json(content)
    assert found.category_ids == (1, 2)
    assert found.stored("trainval") == ["train", "val"]
    assert found.stored("val") == ["val"]
    assert found.may_be_repaired()
    assert not found._replace(skipped={"train": {}}).may_be_repaired()
    assert not found._replace(conditions=metadata.conditions()).may_be_repaired()
    assert json.loads(json.dumps(found.to_json())) == content


def test_a_prepared_dataset_keeps_the_keys_of_its_metadata(load, tmp_path):
    load("folder", "train", path=str(voc_tree.write_plain(tmp_path / "own", 2)))
    (written,) = (tmp_path / "cache").rglob("metadata.json")
    content = json.loads(written.read_text())
    assert content.keys() == json.loads(WRITTEN_BEFORE).keys()
    assert content["object_counts"] == {"train": [1, 2]}


def test_archives_give_the_splits_they_hold(load, tmp_path):
    archives = voc_tree.write_archives(tmp_path)
    split = load("voc", "2007/trainval", archives=str(archives))
    assert split.class_names == voc.CLASSES
    assert len(split.class_names) == 20
    assert list(split.class_names) == sorted(split.class_names)
    assert names(split) == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert split.source[2]["labels"].tolist() == [1 + voc.CLASSES.index("dog")] * 3
    message = refusal(load, "voc", "2007/test", archives=str(archives))
    assert "only 2007/train, 2007/trainval, 2007/val; it comes with VOCtest_06" in message
    tree = voc_tree.write_plain(tmp_path / "test", 2, splits={"test": ["000011"]}, first=11)
    voc_tree.pack(tree, archives / voc_tree.TEST)
    assert names(load("voc", "2007/test", archives=str(archives))) == ["000011.jpg"]
    both = load("voc", "2007/train[:1]+2007/test", archives=str(archives))
    assert names(both) == ["000001.jpg", "000011.jpg"]


def test_archives_are_looked_for_once(load, tmp_path, monkeypatch):
    folders = []
    real = voc.find_archives
    monkeypatch.setattr(
        voc, "find_archives", lambda folder, year: folders.append(folder) or real(folder, year)
    )
    archives = str(voc_tree.write_archives(tmp_path))
    load("voc", "2007/trainval", archives=archives)
    assert folders == [archives]


def test_a_trainval_that_is_not_train_and_val_is_kept(load, tmp_path):
    splits = {"train": ["000001"], "trainval": ["000002", "000001", "000003"]}
    voc_tree.pack(
        voc_tree.write_plain(tmp_path / "tree", 3, splits=splits), tmp_path / voc_tree.TRAINVAL
    )
    split = load("voc", "2007/trainval", archives=str(tmp_path))
    assert names(split) == ["000002.jpg", "000001.jpg", "000003.jpg"]


def test_both_years_are_joined(load, tmp_path):
    archives = voc_tree.write_archives(tmp_path)
    tree = voc_tree.write_plain(tmp_path / "2012", 1, splits={"train": ["002012"]}, first=2012)
    voc_tree.pack(tree, archives / "VOCtrainval_11-May-2012.tar", root="./VOCdevkit/VOC2012")
    split = load("voc", "2007/val+2012/train", archives=str(archives))
    assert names(split) == ["000003.jpg", "002012.jpg"]
    assert split.max_objects == 3


def write_2012_test(folder):
    """The archive of 2012's test images, with an annotation of another task in it."""
    tree = voc_tree.write(
        folder / "2012test",
        images={"a.jpg": voc_tree.jpeg(seed=1), "b.jpg": voc_tree.jpeg(seed=2)},
        annotations={"b": voc_tree.xml(voc_tree.box("person"), voc_tree.box("head"))},
        splits={"test": ["b", "a"]},
    )
    return voc_tree.pack(tree, folder / "VOC2012test.tar", root="VOCdevkit/VOC2012")


def test_2012_test_is_images_alone(load, tmp_path):
    write_2012_test(tmp_path)
    split = load("voc", "2012/test", archives=str(tmp_path))
    assert names(split) == ["b.jpg", "a.jpg"]
    assert not split.annotated
    assert split.class_names == voc.CLASSES
    assert split.source[0]["labels"].shape == (0,)
    assert split.source[0]["image_id"] == -1
    archives = voc_tree.write_archives(tmp_path / "2007")
    assert load("voc", "2007/val", archives=str(archives)).annotated
    message = refusal(load, "voc", "2012/test", archives=str(archives))
    assert "no VOC2012test.tar in it; put it there (the official server, http://host" in message


def test_bboxes_and_areas_are_those_of_the_pixels(load, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 1, splits={"train": ["000001"]})
    split = load("folder", "train", path=str(folder))
    # Pixels 3 to 20 and 4 to 18, the last ones included.
    record = split.source[0]
    np.testing.assert_array_equal(record["bboxes"], [[2, 3, 18, 15]])
    np.testing.assert_array_equal(record["areas"], [270])
    bboxes, labels, crowd, areas = datasets.coco_ground_truth(split)["000001.jpg"]
    np.testing.assert_array_equal(bboxes, [[2, 3, 18, 15]])
    assert (labels.tolist(), crowd.tolist(), areas.tolist()) == ([1], [False], [270.0])


def test_missing_and_broken_archives_are_named(load, tmp_path):
    assert "no such folder" in refusal(load, "voc", "2007/train", archives=str(tmp_path / "x"))
    message = refusal(load, "voc", "2007/train", archives=str(tmp_path))
    assert f"no {voc_tree.TRAINVAL} in it" in message
    archive = tmp_path / voc_tree.TRAINVAL
    whole = (voc_tree.write_archives(tmp_path / "good") / voc_tree.TRAINVAL).read_bytes()
    for content in (b"", b"text", whole[:900], whole[: len(whole) // 2], b"\x1f\x8b" + whole):
        archive.write_bytes(content)
        message = refusal(load, "voc", "2007/train", archives=str(tmp_path))
        assert voc_tree.TRAINVAL in message
    voc_tree.pack(voc_tree.write_plain(tmp_path / "tree"), archive, root="somewhere")
    message = refusal(load, "voc", "2007/train", archives=str(tmp_path))
    assert "holds no folder VOC2007/" in message
    voc_tree.pack(tmp_path / "tree", archive)
    assert "no train.txt" in refusal(load, "voc", "2007/train", archives=str(tmp_path))


def test_vocs_classes_are_closed(load, tmp_path):
    tree = voc_tree.write_plain(tmp_path / "tree", 2, splits={"train": ["000001", "000002"]})
    (tree / "Annotations/000002.xml").write_bytes(voc_tree.xml(voc_tree.box("unicorn")))
    voc_tree.pack(tree, tmp_path / voc_tree.TRAINVAL)
    message = refusal(load, "voc", "2007/train", archives=str(tmp_path))
    assert f"{voc_tree.TRAINVAL}/Annotations/000002.xml: class 'unicorn'" in message


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Serves a folder as the mirror of VOC2007's trainval archive, and counts requests."""
    folder = voc_tree.write_archives(tmp_path)

    class Handler(http.server.SimpleHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            Handler.requests += 1
            super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    data = (folder / voc_tree.TRAINVAL).read_bytes()
    archive = voc.Archive(voc_tree.TRAINVAL, hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(voc, "MIRROR", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(voc, "ARCHIVES", {"2007": {"trainval": archive}})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_archives_are_downloaded_once(load, mirror, tmp_path):
    assert len(load("voc", "2007/train").source) == 2
    assert mirror.requests > 0
    mirror.requests = 0
    for folder in (tmp_path / "cache").glob("voc2007-*"):
        shutil.rmtree(folder)
    assert len(load("voc", "2007/train").source) == 2
    assert mirror.requests == 0


@pytest.mark.parametrize("case", ["checksum", "absent", "unreachable"])
def test_a_failed_download_tells_the_way_out(load, mirror, monkeypatch, tmp_path, case):
    archive = voc.ARCHIVES["2007"]["trainval"]
    if case == "checksum":
        wrong = archive._replace(sha256="0" * 64)
        monkeypatch.setattr(voc, "ARCHIVES", {"2007": {"trainval": wrong}})
    elif case == "absent":
        monkeypatch.setattr(voc, "MIRROR", voc.MIRROR + "nowhere/")
    else:
        monkeypatch.setattr(voc, "MIRROR", "http://127.0.0.1:9/")
    begin = time.monotonic()
    message = refusal(load, "voc", "2007/train")
    reason = {"checksum": "SHA-256", "absent": "404", "unreachable": "refused"}[case]
    assert reason in message
    assert archive.filename in message
    assert message.endswith("--config.data.archives=DIR")
    assert time.monotonic() - begin < 10
    assert not list((tmp_path / "cache/downloads").rglob("*.tar"))


def test_the_official_archives_are_those_of_tfds():
    import tensorflow_datasets as tfds

    table = pathlib.Path(tfds.__file__).parent / "url_checksums" / "voc.txt"
    lines = {line.split("\t")[0]: line.split("\t")[2] for line in table.read_text().splitlines()}
    for archives in voc.ARCHIVES.values():
        for archive in archives.values():
            assert lines[voc.MIRROR + archive.filename] == archive.sha256


def test_synthetic_data_are_made_once(load, monkeypatch):
    monkeypatch.setattr(prepared, "SYNTHETIC", {"train": 4, "test": 2, "seed": 0})
    assert len(load("synthetic", "train").source) == 4
    monkeypatch.setattr(synthetic, "write", None)
    split = load("synthetic", "test")
    assert len(split.source) == 2
    assert split.max_objects >= 1


def test_another_split_of_synthetic_data_is_refused_before_they_are_made(load, monkeypatch):
    monkeypatch.setattr(synthetic, "write", None)
    with pytest.raises(errors.UserError, match=r"'train\+val': there is no val, only train, test"):
        load("synthetic", "train+val")


def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
    code = (
        "import sys; from ssd_jax.data import datasets\n"
        "split = datasets.load('folder', 'all', path=sys.argv[1], cache_dir=sys.argv[2])\n"
        "assert len(split.source) == 5 and split.source[0]['image']\n"
        "datasets.ground_truth(split)\n"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    arguments = [str(voc_tree.write_plain(tmp_path / "own")), str(tmp_path / "cache")]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


@pytest.fixture
def kangaroo(shared, tmp_path):
    """A copy of a real folder that may be changed; its image 00090.jpg is truncated."""
    folder = tmp_path / "kangaroo"
    shutil.copytree(shared / "own_data/kangaroo", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    for child in folder.iterdir():
        child.chmod(0o755)
    return folder


def test_a_real_folder_with_a_truncated_image(load, kangaroo):
    folder = kangaroo
    message = refusal(load, "folder", "train", path=str(folder))
    assert "kangaroo/JPEGImages/00090.jpg: not a readable image" in message
    assert "--config.data.max_unreadable_fraction=0.04" in refusal(
        load, "folder", "train", path=str(folder), max_unreadable_fraction=0.01
    )
    assert len(load("folder", "train", path=str(folder), max_unreadable_fraction=0.05).source) == 30
    assert len(load("folder", "val", path=str(folder)).source) == 7
    (folder / "JPEGImages/00090.jpg").unlink()
    (folder / "Annotations/00090.xml").unlink()
    split = load("folder", "all", path=str(folder))
    assert len(split.source) == 37
    assert split.class_names == ("kangaroo",)


@pytest.mark.slow
def test_a_real_folder_is_trained_on_with_one_command(kangaroo, tmp_path):
    options = {
        "path": kangaroo,
        "dataset": "folder",
        "eval_split": "val",
        "max_unreadable_fraction": 0.05,  # 1 of 31 is more than the hundredth of the default
    }
    command = (
        tiny_run.write_config(tmp_path, steps=2, devices=1),
        tmp_path / "run",
        *(f"--config.data.{name}={value}" for name, value in options.items()),
    )
    ((status, err),) = tiny_run.ends([tiny_run.start_training(*command)])
    assert status == 0, err
    assert "1 of 31 images cannot be used and are left out" in err
    assert "split 'val', made by order: 1 of the dataset's 38 images" in err
    assert err.count("JPEGImages/00090.jpg: not a readable image") == 2
    figures = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert 0 <= figures["mean_ap_voc07"] <= 1
    (kangaroo / "Annotations/00001.xml").unlink()
    ((status, err),) = tiny_run.ends([tiny_run.start_training(*command)])
    assert status == 2
    assert "run have changed: data.train_split has 29 images, and had 30. Give another" in err
    last = tiny_run.start_training(*command, "--change-config")
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert "  changed  data.train_split has 29 images, and had 30" in out


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "voc").is_dir(), reason="needs ../shared/voc")
def test_real_voc2007_is_prepared_within_a_minute(load):
    open_split = functools.partial(load, "voc", archives=str(SHARED / "voc"))
    begin = time.monotonic()
    train, val = open_split("2007/train"), open_split("2007/val")
    assert time.monotonic() - begin < 60
    assert (len(train.source), len(val.source)) == (2500, 1004)
    assert len(open_split("2007/trainval").source) == 3504
    truth = datasets.ground_truth(train) | datasets.ground_truth(val)
    assert sum(len(labels) for _, labels, _ in truth.values()) == 10999
    assert (train.max_objects, val.max_objects) == (37, 42)
    # 000012.xml: one car at (156, 97, 351, 270).
    boxes, labels, difficult = truth["000012.jpg"]
    np.testing.assert_allclose(boxes, [[156, 97, 351, 270]], rtol=1e-6)
    assert labels.tolist() == [1 + voc.CLASSES.index("car")]
    assert difficult.tolist() == [False]


def test_ground_truth_and_parse_agree_on_real_coordinates():
    # Every integer pixel of a common size survives normalization to within 1e-4 of a pixel.
    corners = np.stack([np.arange(1, 501)] * 4, axis=1).astype(np.float32)
    corners[:, 2:] += 1
    sides = np.array([501, 501, 501, 501], np.float32)
    edges = corners - np.array([1, 1, 0, 0], np.float32)
    back = annotations.to_voc_pixels(edges / sides, 501, 501)
    np.testing.assert_allclose(back, corners, atol=1e-4)
