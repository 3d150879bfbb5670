import collections
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scripts
import voc_tree
from test_yolo_data import write_plain as write_yolo

from ssd_jax import boxes, errors, priors
from ssd_jax.data import annotations, check, coverage, examine, readers, voc

# The VOC2007 development kit's table of `train`: images and objects (difficult ones do not count).
OFFICIAL_TRAIN = {
    "aeroplane": (112, 151), "bicycle": (116, 176), "bird": (180, 243), "boat": (81, 140),
    "bottle": (139, 253), "bus": (97, 115), "car": (376, 625), "cat": (163, 186),
    "chair": (224, 400), "cow": (69, 136), "diningtable": (97, 103), "dog": (203, 253),
    "horse": (139, 182), "motorbike": (120, 167), "person": (1025, 2358),
    "pottedplant": (133, 248), "sheep": (48, 130), "sofa": (111, 124), "train": (127, 145),
    "tvmonitor": (128, 166),
}  # fmt: skip


def run(capsys, *arguments: object) -> tuple[int, str]:
    """Exit status and what is printed, of a mistake on stderr; spaces in a row made one."""
    status = check.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, re.sub(" +", " ", err if status == 2 else out)


def row(output: str, name: str) -> list[str]:
    """The cells of the first line of a table that begins so."""
    line, *_ = (line for line in output.splitlines() if line.strip().startswith(name + " "))
    return line.strip().removeprefix(name).split()


def example(box, size=(200, 100), **flags) -> readers.Example:
    """An image of `size` (width, height) with one dog."""
    width, height = size
    objects = [annotations.Object("dog", np.array(box, float), **flags)]
    found = annotations.collect(objects, height=height, width=width, notes=())
    return readers.Example("a.jpg", bytes, 0, found)


def test_a_good_folder_has_nothing_wrong(capsys, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 6)  # image i has i dogs; the fifth validates
    status, output = run(capsys, folder)
    assert status == 0
    assert "a folder in VOC's form" in output
    assert row(output, "train") == ["5", "0", "16", "0", "0", "0", "0"]
    assert row(output, "val") == ["1", "0", "5", "0", "0", "0", "0"]
    # 18 x 15 pixels are small; on 32 x 24 they are (0.56, 0.63) of the image, which a prior fits.
    assert row(output, "dog") == ["6", "21", "0", "21", "100%", "0", "-", "0", "-", "21", "100%"]
    assert row(output, "all") == ["6", "0", "21", "0", "0", "0", "0"]
    assert output.rstrip().endswith("nothing wrong")


def test_train_checks_with_its_own_default_boxes(tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 6)
    (folder / "JPEGImages/000006.jpg").write_bytes(b"")
    check_own = "train.py", "--config=configs/finetune_ssdlite.py", "--check"
    tiny = "--config.model.prior_scales=(.01,.02,.03,.04,.05,.06,.07)"  # SSD300's cover all
    done = scripts.run(*check_own, f"--config.data.path={folder}", tiny)
    assert (done.returncode, done.stderr) == (1, "")
    assert row(done.stdout, "dog")[-2:] == ["15", "0%"]
    assert "JPEGImages/000006.jpg: the file is empty" in done.stdout
    assert scripts.refused(scripts.run(*check_own), "config.data.path")


def test_flags_empty_images_and_sizes_are_counted(capsys, tmp_path):
    objects = (
        voc_tree.box("cat", (1, 1, 32, 32), difficult=1),  # 32 x 32: medium begins here
        voc_tree.box("cat", (1, 1, 31, 32), truncated=1),
        voc_tree.box("cat", (1, 1, 96, 96)),  # large begins here
        voc_tree.box("dog", (1, 1, 96, 95)),
    )
    folder = voc_tree.write(
        tmp_path / "own",
        images={"a.jpg": voc_tree.jpeg(100, 100), "b.jpg": voc_tree.jpeg()},
        annotations={"a": voc_tree.xml(*objects, size=(100, 100)), "b": voc_tree.xml()},
        splits={"train": ["a", "b"]},
    )
    status, output = run(capsys, folder)
    assert status == 0
    assert row(output, "train") == ["2", "1", "4", "1", "1", "0", "0"]
    images, count, difficult, small, _, medium, _, large, *_ = row(output, "cat")
    assert (images, count, difficult, small, medium, large) == ("1", "3", "1", "1", "1", "1")
    assert row(output, "dog")[3:7:2] == ["0", "1"]


@pytest.mark.parametrize(("clip", "every"), [(False, 50), (False, 1), (True, 7)])
def test_best_iou_is_that_of_boxes(clip, every):
    """Of priors in full grids, in parts of grids, and of those that the image's edge cuts."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(size=(200, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    specs = priors.default_boxes(priors.SSD300_VOC, clip=clip)[::every]
    expected = np.array(boxes.pairwise_iou(corners, boxes.cxcywh_to_xyxy(specs))).max(axis=1)
    np.testing.assert_allclose(coverage.best_iou(corners, specs), expected, atol=1e-6)
    assert coverage.best_iou(np.zeros((0, 4), np.float32), specs).shape == (0,)


def test_a_prior_covers_itself_and_no_speck():
    specs = priors.default_boxes(priors.SSD300_VOC)
    inside = specs[np.all(np.abs(specs[:, :2] - 0.5) + specs[:, 2:] / 2 <= 0.5, axis=1)][::97]
    corners = np.concatenate(
        [inside[:, :2] - inside[:, 2:] / 2, inside[:, :2] + inside[:, 2:] / 2], axis=1
    )
    np.testing.assert_allclose(coverage.best_iou(corners, specs), 1, atol=1e-5)
    assert coverage.best_iou(np.array([[0.5, 0.5, 0.51, 0.51]], np.float32), specs) < 0.1


def test_crowds_are_no_objects():
    found = check.objects_of([example((0, 0, 20, 20)), example((0, 0, 9, 9), crowd=True)])
    assert found.names.tolist() == ["dog"]
    assert found.areas.tolist() == [400]
    np.testing.assert_allclose(found.boxes, [[0, 0, 0.1, 0.2]], rtol=1e-6)
    assert check.objects_of([]).boxes.shape == (0, 4)


def test_everything_wrong_is_named_once(capsys, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 4)
    (folder / "JPEGImages/000001.jpg").write_bytes(b"")
    (folder / "Annotations/000002.xml").write_bytes(voc_tree.xml(voc_tree.box(), size=(9, 9)))
    corners = voc_tree.box(corners=(0, 0, 99, 99)), voc_tree.box(corners=(5, 5, 5, 9))
    (folder / "Annotations/000003.xml").write_bytes(voc_tree.xml(voc_tree.box(), *corners))
    (folder / "JPEGImages/000004.jpg").unlink()
    (folder / "JPEGImages/stray [1] ä.png").write_bytes(b"")
    (folder / "JPEGImages/notes.txt").write_text("no image")
    status, output = run(capsys, folder)
    assert status == 1
    assert row(output, "train")[-1] == "3"
    lines = output.partition(" wrong:\n")[2].splitlines()
    assert output.count("6 wrong:") == 1
    for line, (name, what) in zip(
        lines,
        {
            "JPEGImages/000001.jpg": "the file is empty",
            "Annotations/000002.xml": "says 9 x 9, but the image is 32 x 24",
            "JPEGImages/000004": "has no image",
            "JPEGImages/stray [1] ä.png": "has no annotation",
            "Annotations/000003.xml: object 2 (dog)": "clipped",
            "Annotations/000003.xml: object 3 (dog)": "has no area; dropped from training",
        }.items(),
        strict=True,
    ):
        assert name in line
        assert what in line


def test_a_dataset_without_a_good_image_is_reported(capsys, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 1)
    (folder / "JPEGImages/000001.jpg").write_bytes(b"")
    status, output = run(capsys, folder)
    assert status == 1
    assert "JPEGImages/000001.jpg: the file is empty" in output
    assert "no annotation has an object" in output


def coco_folder(folder: Path) -> Path:
    """A COCO dataset with a crowd, a missing image and an annotation of no image."""
    image = {"id": 1, "file_name": "a.jpg", "height": 24, "width": 32}
    thing = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 18, 15], "iscrowd": 0}
    content = {
        "images": [image, {**image, "id": 2, "file_name": "gone.jpg"}],
        "annotations": [thing, {**thing, "id": 2, "iscrowd": 1}, {**thing, "id": 3, "image_id": 9}],
        "categories": [{"id": 7, "name": "dog"}],
    }
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/instances_val.json").write_text(json.dumps(content))
    (folder / "a.jpg").write_bytes(voc_tree.jpeg())
    return folder


def test_coco_is_checked(capsys, tmp_path):
    folder = coco_folder(tmp_path / "own")
    for path in (folder, folder / "annotations/instances_val.json"):
        status, output = run(capsys, path, "--prior_sizes", "coco", "--image_size", 512)
        assert status == 1
        assert "COCO's JSON" in output
        assert row(output, "val") == ["1", "0", "1", "0", "0", "1", "1"]
        assert "2 wrong:" in output
        assert "gone.jpg: no such image in" in output
        assert "annotation 3: there is no image 9" in output


def test_broken_json_is_wrong_with_the_data_not_the_command(capsys, tmp_path):
    (tmp_path / "instances_train.json").write_text('{"images": [')
    status, output = run(capsys, tmp_path)
    assert status == 1
    assert "1 wrong:" in output
    assert "instances_train.json: not JSON" in output


def test_yolo_is_checked(capsys, tmp_path):
    folder = write_yolo(tmp_path / "own", "7 0.5 0.5 0.1 0.1\n")
    for path in (folder, folder / "data.yaml"):
        status, output = run(capsys, path)
        assert status == 1
        assert "YOLO's text files" in output
        assert row(output, "train") == ["1", "0", "1", "0", "0", "0", "1"]
        assert "labels/train/b.txt: line 1: class 7 is out of range" in output


def test_an_archive_is_checked(capsys, tmp_path):
    archive = voc_tree.write_archives(tmp_path) / voc_tree.TRAINVAL
    status, output = run(capsys, archive)
    assert status == 0
    assert "an archive of PASCAL VOC" in output
    assert row(output, "trainval") == ["3", "0", "6", "0", "0", "0", "0"]
    tree = voc_tree.write_plain(tmp_path / "2012", 1, splits={"train": ["000001"]})
    status, output = run(capsys, voc_tree.pack(tree, tmp_path / "x.tar", root="d/VOC2012"))
    assert (status, row(output, "train")[0]) == (0, "1")
    status, output = run(capsys, voc_tree.pack(tree, tmp_path / "x.tar", root="other"))
    assert status == 1
    assert "holds no folder VOC" in output


def test_a_mistaken_command_has_status_2(capsys, tmp_path):
    for path, word in ((tmp_path / "none", "no such folder"), (tmp_path, "of no known format")):
        status, output = run(capsys, path)
        assert status == 2
        assert output.startswith("error: ")
        assert output.count("\n") == 1
        assert word in output
    assert run(capsys, tmp_path / "none", "--format", "coco")[0] == 2
    with pytest.raises(SystemExit) as caught:
        check.main([str(tmp_path), "--image_size", "400"])
    assert caught.value.code == 2


def test_formats_are_told_apart(tmp_path):
    assert check.detect_format(str(voc_tree.write_plain(tmp_path / "voc"))) == "folder"
    assert check.detect_format(str(coco_folder(tmp_path / "coco"))) == "coco"
    assert check.detect_format(str(write_yolo(tmp_path / "yolo"))) == "yolo"
    (tmp_path / "a.TAR").write_bytes(b"")
    assert check.detect_format(str(tmp_path / "a.TAR")) == "voc"
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(errors.UserError, match="it is no folder"):
        check.detect_format(str(tmp_path / "a.zip"))
    with pytest.raises(errors.UserError, match="give --format folder"):
        check.open_reader(str(tmp_path / "voc"), "voc")


def test_a_broken_description_is_wrong_with_the_data_not_the_command(capsys, tmp_path):
    folder = write_yolo(tmp_path / "yolo")
    (folder / "data.yaml").write_text("names: [")
    assert run(capsys, folder) == run(capsys, folder, "--format", "yolo")
    status, output = run(capsys, folder)
    assert status == 1
    assert "data.yaml: not YAML" in output
    folder = coco_folder(tmp_path / "coco")
    shutil.copy(folder / "annotations/instances_val.json", folder / "instances_val.json")
    status, output = run(capsys, folder)
    assert status == 1
    assert "are both split 'val'; move one" in output


def test_the_command_runs(tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own")
    command = [sys.executable, "-W", "error", "-m", "ssd_jax.data.check", str(folder)]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith("nothing wrong")


def test_file_names_that_are_not_utf8_are_named(capsys, tmp_path):
    folder = voc_tree.write_plain(tmp_path / "own", 2)
    for name in ("JPEGImages/000001.jpg", "Annotations/000001.xml"):
        bad = (folder / name).with_stem(b"\xe4".decode(errors="surrogateescape"))
        try:
            shutil.move(folder / name, bad)
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
    status, output = run(capsys, folder)
    assert status == 1
    assert "is not UTF-8; rename the file" in output


def test_kangaroos_truncated_image_is_named(capsys, shared):
    status, output = run(capsys, shared / "own_data/kangaroo")
    assert status == 1
    # 66 <object>s in 38 files, 3 of them in 00090.xml; 14 <truncated>1 in the others (grep -c).
    assert row(output, "all") == ["37", "0", "63", "0", "14", "0", "1"]
    assert "1 wrong:" in output
    assert "JPEGImages/00090.jpg: not a readable image" in output


@pytest.fixture(scope="module")
def voc07(shared):
    """What is read of the real archive."""
    reader = voc.read_archive(shared / "voc" / voc_tree.TRAINVAL, "2007")
    return examine.examine(reader)


@pytest.mark.slow
def test_nothing_is_wrong_with_voc2007(voc07):
    assert check.wrong(voc07) == []


@pytest.mark.slow
def test_counts_of_voc2007_are_those_of_its_xml(voc07, shared):
    expected: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    with tarfile.open(shared / "voc" / voc_tree.TRAINVAL) as archive:
        members = {Path(member.name).parts[-2:]: member for member in archive}
        for split in ("train", "val"):
            ids = archive.extractfile(members["Main", f"{split}.txt"]).read().decode().split()
            for number in ids:
                xml = archive.extractfile(members["Annotations", f"{number}.xml"]).read()
                for thing in ElementTree.fromstring(xml).findall("object"):
                    expected[split][thing.findtext("name")] += 1
                    expected[split]["difficult"] += thing.findtext("difficult") == "1"
                    expected[split]["truncated"] += thing.findtext("truncated") == "1"
    for split in ("train", "val"):
        found = check.objects_of(voc07.splits[split])
        counted = collections.Counter(found.names.tolist())
        counted["difficult"] = int(found.difficult.sum())
        counted["truncated"] = int(found.truncated.sum())
        assert counted == expected[split]


@pytest.mark.slow
def test_counts_of_voc2007_are_the_official_ones(voc07):
    # The archive beside the repository lacks one of the 2501 images of `train`.
    found = check.objects_of(voc07.splits["train"])
    assert len(voc07.splits["train"]) == 2500
    missing = collections.Counter()
    for name, (images, objects) in OFFICIAL_TRAIN.items():
        mine = (found.names == name) & ~found.difficult
        missing[name] = objects - int(mine.sum())
        assert images - len(np.unique(found.images[mine])) == bool(missing[name])
    assert min(missing.values()) >= 0
    assert sum(missing.values()) <= 5
