import functools
import hashlib
import http.server
import pathlib
import re
import threading
import zipfile

import coco_tree
import numpy as np
import pytest
from coco_tree import image, thing

from ssd_jax import download, errors
from ssd_jax.data import builder, coco_official, datasets


@pytest.fixture
def load(tmp_path):
    return functools.partial(datasets.load, "coco", cache_dir=tmp_path / "cache")


@pytest.fixture
def archives(tmp_path):
    """val2017 and train2017 of two and three images."""
    folder = tmp_path / "archives"
    things = [thing(1, 139, category_id=1), thing(2, 139, iscrowd=1), thing(3, 632)]
    coco_tree.write_archives(folder, "val2017", [image(632), image(139)], things)
    images = [image(9), image(25), image(30)]
    return coco_tree.write_archives(folder, "train2017", images, [thing(4, 9)])


def names(split):
    return [split.source[index]["name"] for index in range(len(split.source))]


def refusal(load, *args, **kwargs):
    """The message of the UserError, which has to be one line."""
    with pytest.raises(errors.UserError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_official_archives_are_read_in_place(load, archives):
    before = sorted(archives.parent.rglob("*"))
    split = load("val2017", archives=str(archives))
    made = set(archives.parent.rglob("*")) - set(before)
    assert not [path for path in made if path.suffix == ".jpg"]
    assert names(split) == ["000000000632.jpg", "000000000139.jpg"]
    with zipfile.ZipFile(archives / "val2017.zip") as archive:
        assert split.source[0]["image"] == archive.read("val2017/000000000632.jpg")
    record = split.source[1]
    assert record["image_id"] == 139
    assert record["labels"].tolist() == [1, 80]
    assert record["crowd"].tolist() == [False, True]
    np.testing.assert_array_equal(record["bboxes"], [[2.12, 3.34, 18.05, 15.51]] * 2)
    np.testing.assert_array_equal(record["areas"], [100.25, 100.25])


def test_archives_are_looked_for_once(load, archives, monkeypatch):
    folders = []
    real = coco_official.find_archives
    monkeypatch.setattr(
        coco_official,
        "find_archives",
        lambda folder, split: folders.append(folder) or real(folder, split),
    )
    load("val2017", archives=str(archives))
    assert folders == [str(archives)]


def test_the_80_classes_have_the_official_ids(load, archives):
    split = load("train2017", archives=str(archives))
    assert len(split.class_names) == len(split.category_ids) == 80
    assert (split.category_ids[0], split.category_ids[-1]) == (1, 90)
    # From the official JSON: ids behind the gaps.
    known = dict(zip(split.category_ids, split.class_names, strict=True))
    assert known[13] == "stop sign"
    assert known[27] == "backpack"
    assert known[67] == "dining table"
    assert known[70] == "toilet"
    assert known[84] == "book"
    assert known[90] == "toothbrush"
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91} & set(known)


def test_splits_need_their_own_archives_only_and_add_up(load, archives):
    both = load("train2017[:2]+val2017[:1]", archives=str(archives))
    assert names(both) == ["000000000009.jpg", "000000000025.jpg", "000000000632.jpg"]
    assert both.max_objects == 1
    (archives / "train2017.zip").unlink()
    assert len(load("val2017", archives=str(archives)).source) == 2
    message = refusal(load, "train2017", archives=str(archives))
    assert f"config.data.archives={archives}: no train2017.zip in it" in message


@pytest.mark.parametrize("split", ["train2014", "val2014"])
def test_2014_is_read_too(load, tmp_path, split):
    coco_tree.write_archives(tmp_path / "a", split, [image(5)], [thing(1, 5)])
    assert names(load(split, archives=str(tmp_path / "a"))) == ["000000000005.jpg"]


@pytest.mark.parametrize("split", ["test2017", "testdev2017"])
def test_test_splits_have_images_and_ids_only(load, tmp_path, split):
    coco_tree.write_archives(tmp_path / "a", split, [image(1), image(16)], [])
    found = load(split, archives=str(tmp_path / "a"))
    assert not found.annotated
    assert [found.source[index]["image_id"] for index in (0, 1)] == [1, 16]
    assert found.source[0]["bboxes"].shape == (0, 4)
    assert found.source[0]["areas"].shape == (0,)
    assert found.class_names == tuple(coco_official.CATEGORIES.values())


def test_only_test_splits_lack_annotations(load, archives):
    coco_tree.write_archives(archives, "test2017", [image(1)], [])
    assert load("val2017", archives=str(archives)).annotated
    assert not load("val2017+test2017", archives=str(archives)).annotated


def test_a_split_is_written_in_several_shards(load, tmp_path, monkeypatch):
    images = [image(number) for number in range(1, 13)]
    coco_tree.write_archives(tmp_path / "a", "val2017", images, [thing(1, 7)])
    monkeypatch.setattr(builder, "_SHARD_BYTES", 2500)
    split = load("val2017", archives=str(tmp_path / "a"))
    shards = list((tmp_path / "cache").rglob("*.array_record*"))
    assert len(shards) > 3
    assert names(split) == [entry["file_name"] for entry in images]
    assert [len(split.source[i]["labels"]) for i in range(12)] == [0] * 6 + [1] + [0] * 5


def test_archives_that_are_not_there_or_broken_are_named(load, archives, tmp_path):
    assert "no such folder" in refusal(load, "val2017", archives=str(tmp_path / "none"))
    message = refusal(load, "val2014", archives=str(archives))
    assert "no val2014.zip in it, which val2014 needs" in message
    file = archives / "val2017.zip"
    whole = file.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        file.write_bytes(content)
        assert f"{file}: not in a whole zip archive" in refusal(
            load, "val2017", archives=str(archives)
        )
    # A flipped bit within an image, which still decodes perhaps: the archive's CRC tells.
    at = whole.index(b"\xff\xda") + 40
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    message = refusal(load, "val2017", archives=str(archives))
    assert f"{file}/val2017/000000000632.jpg: not in a whole zip archive (Bad CRC-32" in message
    file.write_bytes(whole)
    with zipfile.ZipFile(archives / "annotations_trainval2017.zip", "w") as archive:
        archive.writestr("annotations/captions_val2017.json", "{}")
    message = refusal(load, "val2017", archives=str(archives))
    assert "holds no annotations/instances_val2017.json; is it another archive?" in message


def test_images_that_the_archive_lacks_are_named(load, tmp_path):
    folder = coco_tree.write_archives(tmp_path / "a", "val2017", [image(1)], [thing(1, 1)])
    with zipfile.ZipFile(folder / "val2017.zip", "w") as archive:
        archive.writestr("val2017/other.jpg", b"")
    message = refusal(load, "val2017", archives=str(folder))
    assert f"000000000001.jpg: no such image in {folder}/val2017.zip/val2017" in message


def test_categories_that_coco_does_not_have_are_refused(load, tmp_path):
    others = [*coco_tree.CATEGORIES, {"id": 91, "name": "hair brush"}]
    write = functools.partial(coco_tree.write_archives, split="val2017", images=[image(1)])
    folder = write(tmp_path / "a", things=[], categories=others)
    message = refusal(load, "val2017", archives=str(folder))
    assert "category 91 (hair brush) is none of COCO's 80" in message
    folder = write(tmp_path / "b", things=[thing(7, 1, category_id=12)])
    message = refusal(load, "val2017", archives=str(folder))
    assert "annotation 7: there is no category 12" in message


def test_splits_that_coco_does_not_have_are_named(load, archives):
    message = refusal(load, "val2018", archives=str(archives))
    assert message.startswith("split 'val2018': COCO has train2017, val2017, ")
    assert "2017/val2017" in refusal(load, "2017/val2017", archives=str(archives))


def test_a_path_is_your_own_data(load, archives, tmp_path):
    message = refusal(load, "val2017", path=str(tmp_path / "mine"), archives=str(archives))
    assert "config.data.path=" in message


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files`, in parts where they are asked for; `dying` connections end half-way."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (reset for each test)
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012
    dying = 0

    def do_GET(self):
        asked = self.headers.get("Range")
        Handler.asked.append((self.path, asked))
        data = self.files.get(self.path)
        if data is None:
            return self.send_error(404)
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        end = begin + (len(data) - begin) // 2 if Handler.dying else len(data)
        Handler.dying = max(0, Handler.dying - 1)
        self.wfile.write(data[begin:end])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def host(archives, monkeypatch):
    """Serves val2017's archives as the official host does."""
    official = coco_official.SPLITS["val2017"]
    found = {}
    for field in ("images", "tables"):
        archive = getattr(official, field)
        data = (archives / archive.filename).read_bytes()
        found[f"/{archive.path}"] = data
        own = archive._replace(sha256=hashlib.sha256(data).hexdigest())
        official = official._replace(**{field: own})
    monkeypatch.setitem(coco_official.SPLITS, "val2017", official)
    Handler.files, Handler.asked, Handler.dying = found, [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(coco_official, "HOST", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(download, "_PAUSE_S", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def test_archives_are_downloaded_once_and_taken_up_where_a_connection_broke(load, host, tmp_path):
    Handler.dying = 1
    assert len(load("val2017").source) == 2
    half = len(Handler.files["/zips/val2017.zip"]) // 2
    assert Handler.asked == [
        ("/zips/val2017.zip", None),
        ("/zips/val2017.zip", f"bytes={half}-"),
        ("/annotations/annotations_trainval2017.zip", None),
    ]
    Handler.asked = []
    assert len(load("val2017[:1]").source) == 1
    assert Handler.asked == []


def test_what_is_not_the_official_archive_is_refused(load, host, monkeypatch, tmp_path):
    Handler.files["/zips/val2017.zip"] += b"x"
    message = refusal(load, "val2017")
    assert "SHA-256" in message
    assert message.endswith("--config.data.archives=DIR")
    assert not list((tmp_path / "cache").rglob("val2017.zip"))
    del Handler.files["/zips/val2017.zip"]
    assert "val2017.zip cannot be downloaded" in refusal(load, "val2017")


def test_the_official_archives_are_those_of_tfds():
    import tensorflow_datasets as tfds

    table = pathlib.Path(tfds.__file__).parent / "url_checksums" / "coco.txt"
    lines = {line.split("\t")[0]: line.split("\t")[2] for line in table.read_text().splitlines()}
    for split in coco_official.SPLITS:
        for archive in coco_official.archives_of(split):
            assert lines[coco_official.HOST + archive.path] == archive.sha256
