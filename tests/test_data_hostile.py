"""What strangers put into a dataset is read within bounds, or refused in one line."""

import io
import json
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile

import coco_tree
import pytest
import voc_tree
import yaml
from test_coco_data import write_plain as write_coco
from test_data_fuzz import faults
from test_datasets import refusal
from test_yolo_data import write_plain as write_yolo

from ssd_jax import errors
from ssd_jax.data import annotations, check, coco, coco_official, examine, parsing, voc, yolo


def nested(last, levels=12, each=10):
    """YAML of some hundred bytes whose last line names `each` to the power of `levels` values."""
    lines = [f"a0: &a0 [{','.join('x' * each)}]"]
    for level in range(1, levels):
        alias = ",".join([f"*a{level - 1}"] * each)
        lines.append(f"a{level}: &a{level} [{alias}]")
    return "\n".join([*lines, last.format(f"*a{levels - 1}")]) + "\n"


BOMBS = {
    "names": nested("train: images/train\nnames: [{}]"),
    "nc": nested("train: images/train\nnames: [cat, dog]\nnc: {}"),
    "train": nested("names: [cat, dog]\ntrain: {}"),
    "path": nested("names: [cat, dog]\ntrain: images/train\npath: {}"),
    "kpt_shape": nested("names: [cat, dog]\ntrain: images/train\nkpt_shape: {}"),
    "merge": "m0: &m0 {a: 1, b: 2}\n"
    + "".join(f"m{k}: &m{k} {{<<: [{','.join([f'*m{k - 1}'] * 10)}]}}\n" for k in range(1, 12)),
    "itself": "train: images/train\nnames: &a [*a]\n",
    "sexagesimal": f"train: images/train\nnames: [cat]\nnc: {'1:' * 300_000}1\n",
    "hexadecimal": f"train: images/train\nnames: [cat]\nnc: 0x{'f' * 500_000}\n",
    "deep": "names: " + "[" * 100_000,
    "blocks": "- " * 100_000,
    "flat": f"train: images/train\nnames: [{'a,' * 110_000}]\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_unfolds_is_refused_at_once_and_in_little_memory(tmp_path, name):
    root = write_yolo(tmp_path / "own")
    (root / "data.yaml").write_text(BOMBS[name])
    tracemalloc.start()
    begun = time.process_time()
    message = refusal(yolo.files, str(root))
    seconds, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "data.yaml" in message
    assert len(message) < 700
    assert seconds < 20  # for ever, or many minutes, without the bounds; tracing slows it tenfold
    assert peak < 100e6


@pytest.mark.parametrize("name", ["yaml_names", "yaml_nc"])
def test_the_cases_of_nested_aliases_are_refused(shared, capsys, name):
    assert check.main([str(shared / "cases/hostile" / name)]) == 1
    assert "its aliases unfold to more than 100000 values" in capsys.readouterr().out


def test_aliases_that_repeat_little_are_fine(tmp_path):
    root = write_yolo(tmp_path / "own")
    (root / "data.yaml").write_text("train: &t images/train\nval: *t\nnames: [cat, dog]\n")
    assert faults("yolo", str(root)) == []


def test_as_many_names_as_any_dataset_has_are_read(tmp_path):
    """ImageNet-21k, the most that public sets have."""
    names = [f"class {number}" for number in range(21_841)]
    root = write_yolo(tmp_path / "own")
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": names}))
    assert len(yolo.Reader(str(root)).categories(["class 0"])) == 21_841


@pytest.mark.parametrize(
    "value",
    [
        *([[[0] * 10**6] * 3] * 2, {"a" * 10**6: ["b" * 10**6]}, 10**5000, "x" * 10**7, 1e400),
        *(None, "\x1b[2J", {1, 2}, b"\xff" * 10**6),
    ],
    ids=range(9),
)
def test_a_value_is_short_in_a_message(value):
    assert 0 < len(parsing.shown(value)) <= 200
    assert "\x1b" not in parsing.shown(value)


def test_a_short_value_is_shown_as_it_is():
    for value in ("a", 3, 1.5, None, [17, 0], {"id": 1, "name": 5}, True):
        assert parsing.shown(value) == repr(value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"images": ' + "[" * 200_000,
        '{"a":' * 200_000,
        '{"images": [], "annotations": [], "categories": [{"id": '
        + "9" * 10_000
        + ', "name": 1}]}',
        "\0" * 5000,
        "x" * 5000,
        "",
    ],
    ids=range(7),
)
def test_json_that_is_none_is_one_short_line(tmp_path, text):
    file = tmp_path / "instances_a.json"
    file.write_text(text)
    message = refusal(coco.read_folder, str(file))
    assert message.startswith(f"{file}: not JSON (")
    assert len(message) < 600


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity", "9" * 400])
def test_numbers_that_no_float_holds_cost_their_image(tmp_path, number):
    root = write_coco(tmp_path / "own")
    file = root / "annotations/instances_train2017.json"
    file.write_text(file.read_text().replace('"bbox": [2', f'"bbox": [{number}', 1))
    (line,) = faults("coco", str(root))
    assert "not four numbers x, y, width, height" in line
    assert len(line) < 700


@pytest.mark.parametrize(
    ("xml", "word"),
    [
        (b"<annotation>" + b"<a>" * 400_000, "not well-formed"),
        (b"<" + b"a" * 10**6 + b"/>", "its root is <aaa"),
        (voc_tree.xml(voc_tree.box("x" * 10**6)), "has 1000000 characters; rename the class"),
        (voc_tree.xml(voc_tree.box(corners=("9" * 10**6, 1, 2, 3))), "<xmin> is '999"),
        (voc_tree.xml(voc_tree.box(corners=("x" * 10**6, 1, 2, 3))), "<xmin> is 'xxx"),
    ],
    ids=range(5),
)
def test_endless_parts_of_xml_are_one_short_line(xml, word):
    with pytest.raises(errors.UserError) as caught:
        annotations.parse(xml, name="a.xml", image_size=(24, 32))
    assert word in str(caught.value)
    assert len(str(caught.value)) < 400


def test_deep_xml_is_read(tmp_path):
    deep = b"<annotation>" + b"<a>" * 300_000 + b"</a>" * 300_000 + b"</annotation>"
    assert annotations.parse(deep, name="a.xml", image_size=(24, 32)).names == ()


# --- What is no file ---


@pytest.mark.parametrize(
    ("kind", "write", "name"),
    [
        ("folder", lambda root: voc_tree.write_plain(root, 3), "JPEGImages/000002.jpg"),
        ("folder", lambda root: voc_tree.write_plain(root, 3), "Annotations/000002.xml"),
        ("coco", write_coco, "train2017/000000000009.jpg"),
        ("coco", write_coco, "annotations/instances_train2017.json"),
        ("yolo", write_yolo, "images/train/a.jpg"),
        ("yolo", write_yolo, "labels/train/a.txt"),
        ("yolo", write_yolo, "data.yaml"),
    ],
)
@pytest.mark.parametrize("other", ["pipe", "device", "folder", "loop"])
def test_what_is_no_file_is_one_line_and_never_waited_for(tmp_path, kind, write, name, other):
    place = write(tmp_path / "own") / name
    place.unlink()
    if other == "pipe":
        os.mkfifo(place)
    elif other == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero" if other == "device" else place)
    lines = faults(kind, str(tmp_path / "own"))
    assert lines
    assert all("\n" not in line for line in lines)


def test_files_larger_than_any_of_their_kind_are_not_read(tmp_path):
    """Sparse files, which take no room on the disk."""
    root = write_yolo(tmp_path / "own")
    for name, size in (("images/train/a.jpg", 1 << 31), ("labels/train/b.txt", 1 << 30)):
        with (root / name).open("r+b") as file:
            file.truncate(size)
    lines = faults("yolo", str(root))
    assert ["larger than" in line for line in lines] == [True, True]
    with (root / "data.yaml").open("r+b") as file:
        file.truncate(1 << 30)
    assert "larger than" in refusal(yolo.files, str(root))


# --- Archives ---


def official(folder, compression=zipfile.ZIP_DEFLATED):
    """Archives of val2017, repacked with a compression."""
    coco_tree.write_archives(folder, "val2017", [coco_tree.image(1)], [coco_tree.thing(1, 1)])
    for archive in coco_official.archives_of("val2017"):
        with zipfile.ZipFile(folder / archive.filename) as whole:
            content = {name: whole.read(name) for name in whole.namelist()}
        with zipfile.ZipFile(folder / archive.filename, "w", compression) as packed:
            for name, data in content.items():
                packed.writestr(name, data)
    return folder


def with_header(data, offset, value, central):
    """A zip with two bytes of each header of a file, and of the central directory, replaced."""
    data = bytearray(data)
    for mark, place in ((b"PK\x03\x04", offset), (b"PK\x01\x02", central)):
        found = data.find(mark)
        while found >= 0:
            struct.pack_into("<H", data, found + place, value)
            found = data.find(mark, found + 4)
    return bytes(data)


def encrypted(data):
    return with_header(data, 6, 1, 8)


def deflate64(data):
    return with_header(data, 8, 9, 10)


def damaged(data):
    middle = data.index(b"PK\x01\x02") - 40
    return (
        data[:middle]
        + bytes(byte ^ 0x5A for byte in data[middle : middle + 20])
        + data[middle + 20 :]
    )


def central_damaged(data):
    place = data.index(b"PK\x01\x02") + 20
    return data[:place] + b"\xff" * 26 + data[place + 26 :]


SPOIL = [encrypted, deflate64, damaged, central_damaged, lambda data: data[: len(data) // 2]]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("spoil", SPOIL, ids=range(5))
@pytest.mark.parametrize("which", [0, 1])
def test_zips_that_cannot_be_unpacked_are_one_line(tmp_path, compression, spoil, which):
    official(tmp_path, compression)
    place = tmp_path / coco_official.archives_of("val2017")[which].filename
    place.write_bytes(spoil(place.read_bytes()))

    def read():
        reader = coco_official.read_archives(
            *coco_official.find_archives(str(tmp_path), "val2017"), "val2017"
        )
        (failures,) = examine.examine(reader).skipped.values()
        for failure in failures.values():
            raise errors.UserError(failure)

    message = refusal(read)
    assert str(place) in message
    assert message.endswith(("download it again", "download the archive again"))


def test_a_small_zip_that_unpacks_to_a_large_table_is_not_unpacked(tmp_path, monkeypatch):
    official(tmp_path)
    tables = tmp_path / coco_official.archives_of("val2017")[1].filename
    with zipfile.ZipFile(tables, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/instances_val2017.json", b" " * (coco_official._ROOM + 1))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    paths = coco_official.find_archives(str(tmp_path), "val2017")
    message = refusal(coco_official.read_archives, *paths, "val2017")
    assert f"unpacks from {65_000}"[:-4] in message
    assert f"to {coco_official._ROOM + 1} bytes, more than is read of such a file" in message


def tar_of(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_tar_that_is_cut_off_between_two_members_is_not_taken_for_whole(tmp_path):
    path = tar_of(tmp_path / "a.tar", {f"VOC2007/{name}": b"x" * 512 for name in "abc"})
    whole = path.read_bytes()
    assert voc.TarTree(path, root="VOC2007").files() == ["a", "b", "c"]
    for cut in (1024, 2048, 2048 + 100):
        path.write_bytes(whole[:cut])
        assert "not a whole, uncompressed tar archive" in refusal(voc.TarTree, path, root="VOC2007")
    path.write_bytes(whole[:1024] + b"\xff" * 512 + whole[1536:])  # a header in the middle
    assert "not a whole, uncompressed tar archive" in refusal(voc.TarTree, path, root="VOC2007")


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"-1\0", b"9" * 12])
def test_a_tar_that_says_it_holds_more_than_it_does_is_one_line(tmp_path, size):
    path = tar_of(tmp_path / "a.tar", {f"VOC2007/{name}": b"x" * 512 for name in "abc"})
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(data[:1024] + header + data[1536:])
    assert "not a whole, uncompressed tar archive" in refusal(voc.TarTree, path, root="VOC2007")


def test_members_of_a_tar_that_lead_elsewhere_are_never_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(f"VOC2007/{name}")
            member.type, member.linkname = kind, str(tmp_path / "secret")
            archive.addfile(member)
        for name in ("/VOC2007/absolute", "../../VOC2007/up", "VOC2007/../up2"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"data"))
    tree = voc.TarTree(path, root="VOC2007")
    assert tree.files() == ["../up2", "absolute", "up"]
    assert {tree.read(name, at_most=10) for name in tree.files()} == {b"data"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar", "secret"]


def test_annotations_of_one_long_name_cost_no_more_than_the_file(tmp_path):
    root = write_coco(tmp_path / "own")
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "x" * 10**6
    content["categories"][0]["name"] = "y" * 10**6
    content["annotations"] *= 100
    file.write_text(json.dumps(content))
    (line,) = faults("coco", str(root))
    assert "rename the class" in line
    content["categories"][0]["name"] = "y"
    file.write_text(json.dumps(content))
    assert max(map(len, faults("coco", str(root)))) < 1000
