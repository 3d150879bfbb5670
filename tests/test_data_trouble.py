"""What the machine does to a preparation says nothing about the data, and is not remembered."""

import errno
import functools
import os
import pathlib
import pwd
import resource
import shutil

import coco_tree
import numpy as np
import pytest
import voc_tree
from test_coco_data import write_plain as write_coco
from test_datasets import names, refusal
from test_yolo_data import write_plain as write_yolo

from ssd_jax import errors, files
from ssd_jax.data import (
    check,
    coco_json,
    datasets,
    examine,
    loader,
    locks,
    machine,
    metadata,
    prepared,
    readers,
    synthetic,
    voc,
    yolo,
)
from ssd_jax.training import data as data_lib

PASSING = [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ESTALE]


def write_voc(root):
    return voc_tree.write_plain(root, 3)


# Of each format: what writes three images, the split that holds all, a file of each kind that is
# read, and the folder that lists the images.
FORMATS = {
    "folder": (write_voc, "all", ("000002.jpg", "000002.xml"), "JPEGImages"),
    "coco": (write_coco, "train2017", ("000009.jpg", "instances_train2017.json"), "train2017"),
    "yolo": (write_yolo, "train", ("a.jpg", "b.txt", "data.yaml"), "images/train"),
}
CASES = [(kind, name) for kind, (_, _, read, _) in FORMATS.items() for name in read]


@pytest.fixture
def load(tmp_path):
    return functools.partial(
        datasets.load, cache_dir=tmp_path / "cache", max_unreadable_fraction=1.0
    )


def fail_at(monkeypatch, function, ending, number):
    """Has a function of the system fail for paths of that ending."""
    real = getattr(os, function)

    def failing(path, *args, **kwargs):
        if str(path).endswith(ending):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, function, failing)


@pytest.mark.parametrize(("kind", "ending"), CASES)
def test_a_file_that_cannot_be_read_now_stops_and_is_all_there_afterwards(
    load, tmp_path, monkeypatch, kind, ending
):
    write, split, _, _ = FORMATS[kind]
    path = str(write(tmp_path / "own"))
    for number in PASSING:
        with monkeypatch.context() as patch:
            fail_at(patch, "open", ending, number)
            with pytest.raises(errors.MachineError, match=ending) as caught:
                load(kind, split, path=path)
        assert os.strerror(number) in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.array_record*"))
    whole = datasets.load(kind, split, path=str(write(tmp_path / "twin")), cache_dir=tmp_path / "x")
    assert names(load(kind, split, path=path, max_unreadable_fraction=None)) == names(whole)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("function", ["scandir", "stat"])
def test_a_folder_that_cannot_be_read_is_named_and_never_taken_for_empty(
    load, tmp_path, monkeypatch, capsys, kind, function
):
    write, split, _, folder = FORMATS[kind]
    path = str(write(tmp_path / "own"))
    fail_at(monkeypatch, function, folder, errno.EACCES)
    with pytest.raises(errors.MachineError, match=f"{folder}: Permission denied"):
        load(kind, split, path=path)
    assert check.main([path]) == 2
    assert f"{folder}: Permission denied" in capsys.readouterr().err


def test_a_lost_and_found_that_only_root_may_read_is_no_part_of_a_dataset(
    load, tmp_path, monkeypatch
):
    path = write_coco(tmp_path / "own")
    (path / "lost+found").mkdir()
    fail_at(monkeypatch, "scandir", "lost+found", errno.EACCES)
    assert load("coco", "train2017", path=str(path))


@pytest.mark.parametrize("trouble", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate")])
def test_memory_that_runs_out_while_decoding_is_no_fault_of_the_image(
    load, tmp_path, monkeypatch, trouble
):
    path = str(write_voc(tmp_path / "own"))
    with monkeypatch.context() as patch:
        patch.setattr(readers, "decode_size", lambda *_, **__: (_ for _ in ()).throw(trouble))
        assert "free memory" in refusal(load, "folder", "all", path=path)
    assert len(load("folder", "all", path=path).source) == 3


@pytest.mark.parametrize("number", PASSING)
def test_archives_that_cannot_be_read_now_are_not_called_broken(
    load, tmp_path, monkeypatch, number
):
    archives = voc_tree.write_archives(tmp_path)
    coco_tree.write_archives(archives, "val2017", [coco_tree.image(1)], [coco_tree.thing(1, 1)])
    import builtins
    import io

    def failing(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    for dataset, split in (("voc", "2007/train"), ("coco", "val2017")):
        with monkeypatch.context() as patch:
            patch.setattr(files, "open_regular", failing)
            patch.setattr(builtins, "open", failing)
            patch.setattr(io, "open", failing)
            with pytest.raises(errors.MachineError, match=os.strerror(number)):
                load(dataset, split, archives=str(archives))
        assert len(
            load(dataset, split, archives=str(archives), max_unreadable_fraction=None).source
        )


def test_threads_that_cannot_be_started_are_no_fault_of_the_data(load, tmp_path, monkeypatch):
    import threading

    path = str(write_voc(tmp_path / "own"))

    def start(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(errors.MachineError, match="ulimit -u"):
            examine.examine(voc.read_folder(path))


def test_a_full_disk_is_one_line_and_leaves_nothing(load, tmp_path):
    """A limit on the size of files ends a write as a full disk does."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    root = voc_tree.write(
        tmp_path / "own",
        images={f"{n}.png": voc_tree.encoded(noise, "PNG") for n in range(60)},
        annotations={f"{n}": voc_tree.xml(voc_tree.box()) for n in range(60)},
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(errors.MachineError, match="File too large: make room") as caught:
            load("folder", "all", path=str(root))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("incomplete*"))
    assert len(load("folder", "all", path=str(root)).source) == 60


@pytest.mark.parametrize("words", ["No space left on device", "Too many open files"])
def test_trouble_that_a_library_tells_in_words_is_the_machines(monkeypatch, words):
    def fail():
        try:
            raise RuntimeError(f"write() failed: {words}; writing x; at byte 61440")
        except RuntimeError as error:
            raise ValueError("while writing a shard") from error

    with (
        pytest.raises(errors.MachineError, match=f"^cache: {words}"),
        machine.blaming("cache"),
    ):
        fail()
    with pytest.raises(KeyError), machine.blaming("cache"):
        raise KeyError("a mistake of ours")


def test_what_killed_preparations_left_is_removed_and_what_lives_is_not(load, tmp_path):
    cache = tmp_path / "cache"
    dead = cache / "folder-own-0123/ssd_own/incomplete.ABCDEF_1.4.0"
    living = cache / "voc2007-4567/ssd_voc/2007/incomplete.ABCDEF_1.4.0"
    anothers = cache / "data/coco/2017/incomplete.ABCDEF_1.0.0"  # of tfds itself
    for folder in (dead, living, anothers):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
    path = str(write_voc(tmp_path / "own"))
    with locks.alone(cache / ".voc2007-4567.lock"):
        load("folder", "all", path=path)
        assert [folder.exists() for folder in (dead, living, anothers)] == [False, True, True]
    assert not dead.parent.parent.exists()
    load("folder", "train", path=path)
    assert [folder.exists() for folder in (living, anothers)] == [False, True]


def test_leftovers_of_the_built_in_dataset_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "SYNTHETIC", {"train": 2, "test": 1, "seed": 0})
    left = tmp_path / ".synthetic-0123-xyz"
    left.mkdir()
    monkeypatch.setattr(synthetic, "write", lambda folder, **_: shutil.copytree(made, folder))
    made = voc_tree.write_plain(tmp_path / "made", 2, splits={"train": ["000001", "000002"]})
    datasets.load("synthetic", "train", cache_dir=tmp_path)
    assert not left.exists()


def test_a_process_that_makes_the_built_in_images_tells_that_the_disk_is_full(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        synthetic._write_share_in_a_process(str(tmp_path / "gone"), (1, 0), 0, 0, 1)
    assert caught.value.errno == errno.ENOENT


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    with (
        locks.alone(tmp_path / "a.lock") as first,
        locks.alone(tmp_path / "a.lock", wait=False) as second,
    ):
        assert (first, second) == (True, False)
    with locks.alone(tmp_path / "a.lock", wait=False) as later:
        assert later


def test_preparing_needs_no_name_of_the_user(load, tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert len(load("folder", "all", path=str(write_voc(tmp_path / "own"))).source) == 3
    assert pwd.getpwuid is unknown


def test_what_another_decoder_may_read_is_tried_again(load, tmp_path, monkeypatch):
    path = str(write_voc(tmp_path / "own"))
    real = readers.decode_size

    def decode_size(data, *, name, **options):
        if name.endswith("000002.jpg"):
            raise errors.UserError("of no known format")
        return real(data, name=name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "conditions", lambda: {"pillow": "0.1"})
        patch.setattr(readers, "decode_size", decode_size)
        for _ in range(2):
            assert len(load("folder", "all", path=path).source) == 2
    for _ in range(2):
        assert len(load("folder", "all", path=path, max_unreadable_fraction=None).source) == 3


def test_a_good_dataset_is_not_prepared_again_for_another_decoder(load, tmp_path, monkeypatch):
    path = str(write_voc(tmp_path / "own"))
    first = load("folder", "all", path=path).source._stretches
    monkeypatch.setattr(metadata, "conditions", lambda: {"pillow": "999"})
    assert load("folder", "all", path=path).source._stretches == first


def test_a_image_that_comes_later_is_found(load, tmp_path):
    root = write_voc(tmp_path / "own")
    late = root / "JPEGImages/000002.jpg"
    content = late.read_bytes()
    late.unlink()
    assert len(load("folder", "all", path=str(root)).source) == 2
    late.write_bytes(content)
    assert len(load("folder", "all", path=str(root)).source) == 3


# --- Nothing to train on ---


def test_a_split_without_an_object_is_not_trained_on(shared, tmp_path):
    from ssd_jax import config

    made = config.DataConfig(dataset="yolo", train_split="train", eval_split="val")
    made.path, made.cache_dir = str(shared / "cases/no_objects_to_train/data"), str(tmp_path)
    message = refusal(data_lib.open_splits, made)
    assert message.startswith("config.data.train_split='train': none of its 8 images has an object")


def one_of(**flags):
    whole = {name: np.zeros(1, bool) for name in ("difficult", "crowd", "degenerate")}
    return {**whole, **{name: np.array([value]) for name, value in flags.items()}}


@pytest.mark.parametrize("flag", ["crowd", "degenerate", "difficult"])
def test_objects_that_training_leaves_out_are_nothing_to_train_on(flag):
    records = [one_of(**{flag: True})] * 3
    check_all = functools.partial(loader.check_objects, split="train")
    message = refusal(check_all, records, difficult=False)
    assert "its 3 objects are crowds, difficult or without area" in message
    check_all([*records, one_of()], difficult=False)
    if flag == "difficult":
        check_all(records, difficult=True)


def test_the_checker_names_splits_without_objects(capsys, shared):
    path = shared / "cases/no_objects_to_train/data"
    assert check.main([str(path)]) == 1
    assert f"{path}: split 'train': no image has an object to train on" in capsys.readouterr().out


# --- As many steps as there are things ---


class Counted(str):
    """A text that counts how often it is compared and hashed."""

    count = 0

    def __eq__(self, other):
        Counted.count += 1
        return str(self) == str(other)

    def __hash__(self):
        Counted.count += 1
        return hash(str(self))


def steps(work, number):
    Counted.count = 0
    work([Counted(f"a{index}") for index in range(number)])
    return Counted.count


@pytest.mark.parametrize(
    "work",
    [
        lambda texts: yolo._distinct(dict(enumerate(texts)), pathlib.Path("a")),
        lambda texts: examine._split_by_order(texts, {}),
    ],
    ids=["names of YOLO", "splits by order"],
)
def test_twice_as_many_take_twice_as_long(work):
    assert steps(work, 2000) <= 2.2 * steps(work, 1000)


def test_images_of_one_id_are_not_all_named_for_each():
    images_of_one_id = [{"id": 1, "file_name": f"{number}.jpg"} for number in range(1000)]
    found = coco_json.images_of(images_of_one_id, "a.json", [])
    assert len(found) == 1000
    assert max(len(fault) for _, fault in found) < 200


def test_a_linked_subfolder_is_read_once(load, tmp_path):
    root = write_voc(tmp_path / "own")
    for kind in ("JPEGImages", "Annotations"):
        (root / kind).rename(tmp_path / kind)
        (root / kind).mkdir()
        (root / kind / "day1").symlink_to(tmp_path / kind)
        (root / kind / "day2").symlink_to(tmp_path / kind)
        (tmp_path / kind / "loop").symlink_to(root / kind)
    split = load("folder", "all", path=str(root))
    assert names(split) == [f"day1/{number:06d}.jpg" for number in (1, 2, 3)]
