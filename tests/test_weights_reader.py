import errno
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import fuzz_readers
import h5py
import ml_dtypes
import numpy as np
import pytest
import weight_files

from ssd_jax import errors
from ssd_jax.weights import reader

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "conv.bias": np.arange(3, dtype=np.float16),
    "double": np.linspace(0, 1, 5),
    "steps": np.array(7),
    "nothing": np.zeros((0, 2), np.float32),
}
TERABYTE = 2**40


def refusal(path):
    with pytest.raises(errors.UserError) as caught:
        reader.read(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def equal(got, expected):
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)
    return True


@pytest.mark.parametrize(
    "write",
    [
        weight_files.torch_zip,
        weight_files.torch_legacy,
        weight_files.safetensors,
        weight_files.hdf5,
        *fuzz_readers.NPZ.values(),
    ],
)
def test_what_was_written_is_read_whatever_the_ending(write, tmp_path):
    write(tmp_path / "weights.txt", ARRAYS)
    assert equal(reader.read(tmp_path / "weights.txt"), ARRAYS)


def test_containers_are_entered_and_all_but_tensors_left_out(tmp_path):
    content = {
        "model": ARRAYS,
        "optimizer": {"state": {0: {"momentum": ARRAYS["double"]}}, "groups": [{"lr": 0.1}]},
        "history": [None, True, "text", (ARRAYS["steps"],)],
    }
    weight_files.torch_zip(tmp_path / "w", content)
    expected = {f"model.{name}": array for name, array in ARRAYS.items()}
    expected |= {"optimizer.state.0.momentum": ARRAYS["double"], "history.3.0": ARRAYS["steps"]}
    assert equal(reader.read(tmp_path / "w"), expected)


def test_views_of_one_storage_are_read(tmp_path):
    # A transposed view, and a row of the same six numbers; bfloat16.
    numbers = np.arange(6).astype(ml_dtypes.bfloat16)
    put = weight_files.TorchPickle({})._put
    views = {"t": ((3, 2), (1, 3), 0), "row": ((3,), (1,), 3)}
    items = b"".join(
        put(name)
        + weight_files.rebuild(
            "BFloat16Storage", "0", 6, shape=shape, strides=strides, offset=offset, put=put
        )
        for name, (shape, strides, offset) in views.items()
    )
    weight_files.torch_zip_of(tmp_path / "w", b"\x80\x02}(" + items + b"u.", {"0": numbers})
    expected = {"t": numbers.reshape(2, 3).T, "row": numbers[3:]}
    assert equal(reader.read(tmp_path / "w"), expected)


@pytest.mark.parametrize("old", [False, True])
def test_caffes_blobs_are_read(tmp_path, old):
    layers = {"conv1_1": [ARRAYS["conv.weight"], np.arange(2.0)], "relu1_1": []}
    weight_files.caffe(tmp_path / "w", layers, old=old)
    got = reader.read(tmp_path / "w")
    assert list(got) == ["conv1_1/0", "conv1_1/1"]
    shape = (1, 2, 3, 4) if old else (2, 3, 4)
    np.testing.assert_array_equal(got["conv1_1/0"], ARRAYS["conv.weight"].reshape(shape))


def test_hdf5_with_many_groups_attributes_and_links_is_read(tmp_path):
    rng = np.random.default_rng(0)
    types = [np.float32, np.float16, np.float64, np.int32, np.uint8, ">f4"]
    arrays = {
        f"group_{index % 37}/layer_{index}/kernel:0": rng.normal(size=(3, index % 5 + 1))
        .astype(types[index % 6])
        for index in range(300)
    }  # fmt: skip
    weight_files.hdf5(tmp_path / "w", arrays)
    with h5py.File(tmp_path / "w", "a") as file:
        file.attrs["layer_names"] = [f"layer_{index}".encode() for index in range(300)]
        file["text"] = "left out"
        file["link"] = h5py.SoftLink("/group_1")
    assert equal(reader.read(tmp_path / "w"), arrays)


def test_hdf5_of_another_form_is_refused(tmp_path):
    with h5py.File(tmp_path / "latest", "w", libver="latest") as file:
        file["a"] = np.ones(3)
    assert "by the default" in refusal(tmp_path / "latest")
    with h5py.File(tmp_path / "zipped", "w") as file:
        file.create_dataset("a", data=np.ones(1000), compression="gzip")
    assert "a is compressed" in refusal(tmp_path / "zipped")
    with h5py.File(tmp_path / "outside", "w") as file:
        outside = [(str(tmp_path / "zipped"), 0, 24)]
        file.create_dataset("a", (3,), np.float64, external=outside)
    assert "a lies in another file" in refusal(tmp_path / "outside")


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_nothing_in_a_pickle_runs(tmp_path, form, protocol):
    mark = tmp_path / "it ran"
    data = pickle.dumps({"weight": Evil(f"touch '{mark}'")}, protocol=protocol)
    path = tmp_path / "w.pth"
    if form == "zip":
        weight_files.torch_zip_of(path, data)
    else:
        begin = (weight_files.LEGACY_MAGIC, 1001, {}) if form == "legacy" else ()
        parts = [weight_files.TorchPickle(part).data for part in begin]
        path.write_bytes(b"".join(parts) + data)
    assert "posix.system, which is neither a tensor nor a container" in refusal(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00__class__K\x01sb(i__main__\nX\n.",
        b"\x80\x02(K\x01K\x02d.",
        b"\x80\x02}(]K\x01u.",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02X\x00\x00\x00\x00Q.",
        b"\x80\x02t.",
        b"\x80\x02",
    ],
)
def test_pickles_of_other_instructions_are_refused(tmp_path, data):
    weight_files.torch_zip_of(tmp_path / "w", data)
    refusal(tmp_path / "w")


def claims_in_zip(path):
    put = weight_files.TorchPickle({})._put
    tensor = weight_files.rebuild(
        "FloatStorage", "0", TERABYTE // 4, shape=(TERABYTE // 4,), strides=(1,), put=put
    )
    weight_files.torch_zip_of(
        path, b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s.", {"0": np.ones(2)}
    )


def claims_by_stride_zero(path):
    put = weight_files.TorchPickle({})._put
    tensor = weight_files.rebuild("FloatStorage", "0", 1, shape=(TERABYTE,), strides=(0,), put=put)
    one = {"0": np.ones(1, np.float32)}
    weight_files.torch_zip_of(path, b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s.", one)


def claims_in_legacy(path):
    weight_files.torch_legacy(path, {"w": np.ones(2, np.float32)})
    data = path.read_bytes()
    path.write_bytes(data[:-16] + struct.pack("<q", TERABYTE) + data[-8:])


def claims_in_safetensors(path):
    weight_files.safetensors(path, {"w": np.ones(2, np.float32)})
    data = path.read_bytes().replace(b"[2]", str([TERABYTE]).encode())
    path.write_bytes(struct.pack("<Q", len(data) - 16) + data[8:])


def claims_a_header_in_safetensors(path):
    path.write_bytes(struct.pack("<Q", TERABYTE) + b'{"w": {}}')


def claims_in_npz(path):
    header = str({"descr": "<f4", "fortran_order": False, "shape": (TERABYTE,)}).encode() + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"1234"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", array)


def claims_by_unpacking(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00")
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24  # of the size in the archive's directory
    data[place : place + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(data)


def claims_in_hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (TERABYTE // 4,), np.float32)  # never written


def claims_in_caffe(path):
    blob = weight_files.field(5, b"1234").replace(b"\x04", weight_files.varint(TERABYTE))
    path.write_bytes(b"\x0a\x03net" + weight_files.field(100, weight_files.field(7, blob)))


def claims_of_a_long_name_in_a_pickle(path):
    # A container of a long name, in it the same empty container and the same tensor many times.
    put = weight_files.TorchPickle({})._put
    tensor = weight_files.rebuild("FloatStorage", "0", 1, shape=(1,), strides=(1,), put=put)
    items = b"]q\x00" + tensor + b"q\x01" + b"h\x00h\x01" * 20_000
    data = b"\x80\x02}" + weight_files.text("n" * 100_000) + b"(" + items + b"ts."
    weight_files.torch_zip_of(path, data, {"0": np.ones(1, np.float32)})


def claims_of_a_long_name_in_caffe(path):
    nothing = weight_files.field(7, b"\x08\x00")  # a blob of num 0
    layer = weight_files.field(1, b"n" * 100_000) + nothing * 20_000
    path.write_bytes(b"\x0a\x03net" + weight_files.field(100, layer))


def hdf5_of(path, size, root):
    """An HDF5 file of some bytes, and a function that writes structures into it."""
    path.write_bytes(bytes(size))

    def put(place, form, *values):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(struct.pack(form, *values))

    put(0, "<8s5xBB", b"\x89HDF\r\n\x1a\n", 8, 8)
    put(64, "<Q", root)
    return put


def group(put, place, *, tree, heap):
    """The header of a group: one message, which says where its tree and its names are."""
    put(place, "<BxHII4x", 1, 1, 1, 24)
    put(place + 16, "<HH4xQQ", 17, 16, tree, heap)
    put(heap, "<4s20xQ", b"HEAP", heap + 32)


def claims_by_overlapping_symbols(path):
    # A tree of 100 leaves that begin one entry apart and claim 2,000 each.
    leaves, entries, first = 100, 2_000, 4_000
    put = hdf5_of(path, first + 40 * (leaves + entries) + 8, 100)
    group(put, 100, tree=300, heap=200)
    put(300, "<4sBBH", b"TREE", 0, 0, leaves)
    for leaf in range(leaves):
        put(300 + 24 + 16 * leaf + 8, "<Q", first + 40 * leaf)
        put(first + 40 * leaf, "<4sHH", b"SNOD", 1, entries)


def claims_by_overlapping_trees(path):
    # Trees in trees that begin one child apart and claim 2,000 each.
    nodes, children, first = 1_000, 2_000, 1_000
    put = hdf5_of(path, first + 40 * nodes + 16 * children + 24, 100)
    group(put, 100, tree=first, heap=200)
    for node in range(first, first + 40 * nodes, 40):
        put(node, "<4sBBH24xQ", b"TREE", 0, 0, children, node + 40)


def claims_by_overlapping_arrays(path):
    with h5py.File(path, "w") as file:
        for index in range(150):
            file[f"w{index}"] = np.ones(25_000 if index == 0 else 1, np.float32)
    data = path.read_bytes()
    with h5py.File(path) as file:
        first, *others = (file[f"w{index}"].id.get_offset() for index in range(150))
    for other in others:
        data = data.replace(struct.pack("<QQ", other, 4), struct.pack("<QQ", first, 100_000))
    shape = struct.pack("<QQ", 1, 1)
    path.write_bytes(data.replace(shape, struct.pack("<QQ", 25_000, 25_000)))


@pytest.mark.parametrize("write", [value for key, value in globals().items() if "claims" in key])
def test_a_terabyte_is_refused_before_memory_is_taken(write, tmp_path):
    write(tmp_path / "w")
    tracemalloc.start()
    try:
        assert "claim" in refusal(tmp_path / "w")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def aliases(depth=60):
    """Pairs of a pair of a pair ...: some hundred bytes, and 2 ** depth to write out or hash."""
    steps = (b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(depth))
    return b")" + b"".join(steps)


FLOAT = weight_files.glob("torch", "FloatStorage")
DICTIONARY = weight_files.glob("collections", "OrderedDict")
REBUILD = weight_files.glob("torch._utils", "_rebuild_tensor_v2")
WORDS = weight_files.text
LONG_KEY = b"X" + struct.pack("<I", 10**6) + b"y" * 10**6
PUT = weight_files.TorchPickle({})._put
TENSOR = weight_files.rebuild("FloatStorage", "0", 4, shape=(4,), strides=(1,), put=PUT)
HOSTILE_PICKLES = {
    "a global by aliases": aliases() + aliases() + b"\x93",
    "a key of aliases": b"}" + aliases() + b"K\x01s",
    "pairs of aliases": DICTIONARY + b"(](" + aliases() + b"K\x01\x86etR",
    "a call of aliases": REBUILD + aliases() + b"R",
    "a call of a long text": DICTIONARY + LONG_KEY + b"R",
    "a storage of aliases": b"(" + WORDS("storage") + FLOAT + aliases() + WORDS("cpu") + b"K\x01tQ",
    "a type of aliases": b"(" + WORDS("storage") + aliases() + 2 * WORDS("0") + b"K\x01tQ",
    "a list of itself": b"]q\x00h\x00a",
    "a state of aliases": b"}" + aliases() + b"b",
    "a huge number as a key": b"}\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"K\x01s",
    "a huge decimal number": b"L" + b"9" * 10**6 + b"L\n",
    "tuples in tuples": b")" + b"\x85" * 50_000,
    "equal keys, long": b"}" + LONG_KEY + b"K\x01s" + LONG_KEY + b"q\x01" + b"K\x01sh\x01" * 9999,
    "a long name": b"c" + b"m" * 10**6 + b"\nn\n",
    "many names of one tensor": b"](" + TENSOR + b"q\x05" + b"h\x05" * 30_000 + b"e",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_PICKLES)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_hostile_pickle_is_one_line_at_once(tmp_path, kind, form):
    data, path = b"\x80\x02" + HOSTILE_PICKLES[kind] + b".", tmp_path / "w"
    if form == "zip":
        weight_files.torch_zip_of(path, data, {"0": np.ones(4, np.float32)})
    else:
        begin = (weight_files.LEGACY_MAGIC, 1001, {})
        path.write_bytes(b"".join(weight_files.TorchPickle(p).data for p in begin) + data)
    assert_cheap(path)


def assert_cheap(path):
    """Refused in one short line, in little more memory than the file's own size."""
    began = time.process_time()
    message = refusal(path)
    assert time.process_time() - began < 3  # a second, where nothing else runs
    assert "\n" not in message
    assert len(message) < 800
    tracemalloc.start()
    try:
        if path.stat().st_size < 10**6:  # Python is slow while it traces
            refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_the_keys_of_an_old_file_are_words(tmp_path):
    begin = (weight_files.LEGACY_MAGIC, 1001, {}, {})
    keys = b"\x80\x02]" + aliases() + b"a."
    (tmp_path / "w").write_bytes(b"".join(weight_files.TorchPickle(p).data for p in begin) + keys)
    assert_cheap(tmp_path / "w")


def test_the_case_beside_the_repository_is_refused_at_once(shared):
    assert_cheap(shared / "cases" / "hostile" / "stack_global.pth")


@pytest.mark.parametrize("lies", [False, True])
@pytest.mark.parametrize("name", ["archive/data.pkl", "w.npy"])
def test_what_unpacks_to_much_more_is_not_unpacked(tmp_path, name, lies):
    path = tmp_path / "w"
    header = str({"descr": "<f4", "fortran_order": False, "shape": (25_000_000,)}).encode() + b"\n"
    begin = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as to:
        to.write(begin if name == "w.npy" else b"\x80\x02")
        to.write(bytes(10**8))
    if lies:  # in the archive's directory, of its size
        data = bytearray(path.read_bytes())
        place = data.rindex(b"PK\x01\x02") + 24
        data[place : place + 4] = struct.pack("<I", 200)
        path.write_bytes(data)
    assert_cheap(path)


def test_an_encrypted_archive_is_named_so(tmp_path):
    weight_files.torch_zip(tmp_path / "w", ARRAYS)
    data = bytearray((tmp_path / "w").read_bytes())
    place = -1
    while (place := data.find(b"PK\x01\x02", place + 1)) >= 0:
        data[place + 8] |= 1
    (tmp_path / "w").write_bytes(data)
    assert "is encrypted; save it without a password" in refusal(tmp_path / "w")


def test_an_archive_of_very_many_files_is_not_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("0.npy", "")
    data = (tmp_path / "w").read_bytes()
    begin = data.index(b"PK\x01\x02")
    entry, end = data[begin : data.index(b"PK\x05\x06")], data[data.index(b"PK\x05\x06") :]
    directory = entry * 50_000
    end = end[:8] + struct.pack("<HHI", 50_000, 50_000, len(directory)) + end[16:]
    (tmp_path / "w").write_bytes(data[:begin] + directory + end)
    assert "more files than any network has arrays" in refusal(tmp_path / "w")


def safetensors_of(header):
    data = header.encode()
    return struct.pack("<Q", len(data)) + data + bytes(16)


ENTRY = '"dtype": "F32", "shape": [4], "data_offsets": [0, 16]'
DIGITS = ", ".join(["9" * 4000] * 500)


@pytest.mark.parametrize(
    "data",
    [
        safetensors_of('{"w": {' + ENTRY.replace("[4]", f"[{DIGITS}]") + "}}"),
        safetensors_of('{"w": {' + ENTRY.replace("16", "9" * 4000) + "}}"),
        safetensors_of("{" + ", ".join(f'"{n}": {{{ENTRY}}}' for n in range(9999)) + "}"),
        safetensors_of('{"w": ' + "[" * 100_000),
        safetensors_of('{"w": {' + ENTRY.replace('"F32"', "[" * 500 + "]" * 500) + "}}"),
        safetensors_of('{"w": {' + ENTRY.replace("F32", "F" * 100_000) + "}}"),
        safetensors_of('{"' + "n" * 100_000 + '": {' + ENTRY + "}}"),
        safetensors_of('{"w": {' + ENTRY.replace("[4]", "[true, -4]") + "}}"),
        b"\x0a\x03net" + b"\x08\x01" * 500_000,
        b"\x0a\x03net"
        + weight_files.field(
            100, weight_files.field(7, weight_files.field(7, weight_files.field(1, b"\1" * 10**6)))
        ),
    ],
    ids=range(10),
)
def test_hostile_headers_are_one_line_at_once(tmp_path, data):
    (tmp_path / "w").write_bytes(data)
    assert_cheap(tmp_path / "w")


def test_a_tensor_may_have_two_names_and_not_a_thousand(tmp_path):
    numbers = np.ones(10_000, np.float32)
    tensor = weight_files.rebuild(
        "FloatStorage", "0", 10_000, shape=(10_000,), strides=(1,), put=PUT
    )
    for names in (2, 1000):
        items = b"".join(b"h\x05" for _ in range(names - 1))
        data = b"\x80\x02](" + tensor + b"q\x05" + items + b"e."
        weight_files.torch_zip_of(tmp_path / str(names), data, {"0": numbers})
    assert equal(reader.read(tmp_path / "2"), {"0": numbers, "1": numbers})
    assert "its tensors claim 40,000,000 bytes" in refusal(tmp_path / "1000")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert "not a regular file but a pipe or device" in refusal(path)


def test_a_file_of_a_terabyte_is_not_read(tmp_path):
    (tmp_path / "w").write_bytes(b"\x80\x02")
    os.truncate(tmp_path / "w", TERABYTE)
    assert "1,099,511,627,776 bytes; weights have" in refusal(tmp_path / "w")


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "too many"), MemoryError()], ids=repr)
def test_trouble_of_the_machine_is_no_broken_file(tmp_path, monkeypatch, error):
    def fail(file):
        raise error

    weight_files.safetensors(tmp_path / "w", {"w": np.ones(4, np.float32)})
    monkeypatch.setattr(reader.safetensors, "parse", fail)
    with pytest.raises(errors.MachineError, match=rf"^{tmp_path / 'w'}: .*run the same command"):
        reader.read(tmp_path / "w")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("write", [weight_files.torch_zip, weight_files.torch_legacy,
                                   weight_files.safetensors, weight_files.hdf5, fuzz_readers.caffe,
                                   *fuzz_readers.NPZ.values()])  # fmt: skip
def test_a_file_that_was_cut_off_is_refused(write, share, tmp_path):
    write(tmp_path / "w", {"a": np.arange(5000, dtype=np.float32)})
    data = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(data[: int(share * len(data))])
    assert "download it again" in refusal(tmp_path / "w")


@pytest.mark.parametrize("content", [b"", b"no weights", b"<!DOCTYPE html>", b"PK\x03\x04 broken"])
def test_what_is_nothing_known_is_refused(tmp_path, content):
    (tmp_path / "w.npz").write_bytes(content)
    refusal(tmp_path / "w.npz")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "nowhere.npz")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize("place", [8, 40, 62])
@pytest.mark.parametrize("byte", b"('\\\x00#L")
def test_an_npz_with_another_byte_is_refused_without_a_warning(tmp_path, place, byte):
    # In the header of an array that is longer than what zipfile checks at once.
    np.savez(tmp_path / "w", a=np.zeros(3000, np.float32))
    data = bytearray((tmp_path / "w.npz").read_bytes())
    data[data.index(b"\x93NUMPY") + place] = byte
    (tmp_path / "w.npz").write_bytes(data)
    assert "download it again" in refusal(tmp_path / "w.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write_are_refused(tmp_path, method):
    # LZMA's header alone may ask for 4 GiB.
    fuzz_readers.npz(method)(tmp_path / "w", ARRAYS)
    assert "conv.weight.npy is compressed" in refusal(tmp_path / "w")


def test_a_broken_file_is_to_be_deleted_before_it_is_downloaded_again(tmp_path):
    # A name would find the same file in the cache again.
    for content in (b"", b"PK\x03\x04 broken", b"\x80\x02broken"):
        (tmp_path / "w").write_bytes(content)
        assert "delete it and" in refusal(tmp_path / "w")


def test_pickled_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.array([{}], dtype=object))
    refusal(tmp_path / "w.npz")


@pytest.mark.slow
def test_two_thousand_damaged_files_are_read_or_refused(tmp_path):
    # In a process of 2 GiB, which a crash or an endless loop would end badly.
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "error", str(tests / "fuzz_readers.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    counts = list(map(int, done.stdout.split()))
    assert sum(counts[:2]) == fuzz_readers.FILES
    assert sum(counts[2:4]) == fuzz_readers.NETWORKS
    assert sum(counts[4:6]) == fuzz_readers.DOCUMENTS
    assert len(counts) == 8
    assert min(counts) > 100
