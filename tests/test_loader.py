import functools
import io
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import voc_tree
from PIL import Image

from ssd_jax import errors
from ssd_jax.data import loader


def record(index):
    """An image whose width tells its index, with `index % 3` objects."""
    return {**labeled(index), "image": png(40 + index, 30, index * 10)}


def photo(index):
    """A JPEG whose sides may be more or less than the canvas has, 64, or just as many."""
    height, width = [(30, 40), (90, 64), (64, 64), (20, 100), (140, 50)][index % 5]
    return {**labeled(index), "image": voc_tree.jpeg(height, width, seed=index)}


def png(width, height, gray):
    """A file of one gray."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (gray,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def labeled(index):
    """What a record says of its image, without the image."""
    objects = index % 3
    return {
        "name": f"{index}",
        "boxes": np.float32([[0.1, 0.2, 0.5, 0.6], [0.2, 0, 1, 0.01 * index]])[:objects],
        "labels": np.arange(1, objects + 1, dtype=np.int32),
        "difficult": np.arange(objects) == 1,
        "crowd": np.zeros(objects, bool),
        "degenerate": np.zeros(objects, bool),
        "truncated": np.zeros(objects, bool),
    }


RECORDS = [record(index) for index in range(10)]
PHOTOS = [photo(index) for index in range(10)]
DECODING = loader.Decoding(canvas=64)
OPTIONS = {"max_objects": 4, "seed": 3, "decoding": DECODING}


def with_decoding(**changes):
    return {**OPTIONS, "decoding": DECODING._replace(**changes)}


def positions_and_widths(batches, count):
    taken = list(itertools.islice(batches, count))
    return [
        (int(position), int(valid_size[1]))
        for batch in taken
        for position, valid_size in zip(batch["position"], batch["valid_size"], strict=True)
    ]


def test_each_epoch_holds_every_image_once_in_an_order_of_its_own():
    stream = loader.training_batches(RECORDS, batch_size=5, **OPTIONS)
    widths = [width for _, width in positions_and_widths(stream, 6)]
    epochs = [widths[:10], widths[10:20], widths[20:]]
    assert all(sorted(epoch) == list(range(40, 50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("threads", [1, 8])
def test_the_stream_resumes_from_any_position(threads):
    whole = positions_and_widths(loader.training_batches(RECORDS, batch_size=2, **OPTIONS), 12)
    rest = loader.training_batches(
        RECORDS, batch_size=2, start=14, **with_decoding(threads=threads)
    )
    assert positions_and_widths(rest, 5) == whole[14:]


def test_threads_and_workers_do_not_change_a_bit():
    """Two epochs, and again from the middle of the second."""
    stream = loader.training_batches(PHOTOS, batch_size=3, **with_decoding(threads=0))
    expected = list(itertools.islice(stream, 7))
    for options in ({"threads": 2}, {"threads": 8}, {"threads": 2, "workers": 2}):
        for first in (0, 5):
            again = loader.training_batches(
                PHOTOS, batch_size=3, start=3 * first, **with_decoding(**options)
            )
            again = itertools.islice(again, 7 - first)
            for batch, other in zip(expected[first:], again, strict=True):
                assert other.keys() == batch.keys()
                for name, values in batch.items():
                    np.testing.assert_array_equal(other[name], values, err_msg=f"{options} {name}")


def test_batch_size_does_not_change_what_a_position_holds():
    small = positions_and_widths(loader.training_batches(RECORDS, batch_size=2, **OPTIONS), 12)
    large = positions_and_widths(loader.training_batches(RECORDS, batch_size=8, **OPTIONS), 3)
    assert small == large


def test_processes_share_each_global_batch():
    stream = functools.partial(loader.training_batches, PHOTOS, batch_size=4, **OPTIONS)
    whole = list(itertools.islice(stream(), 6))
    for processes in (2, 4):
        parts = [
            list(itertools.islice(stream(shard=loader.Shard(process, processes)), 6))
            for process in range(processes)
        ]
        for number, batch in enumerate(whole):
            rows = [part[number] for part in parts]
            order = np.argsort(np.concatenate([share["position"] for share in rows]))
            for name, values in batch.items():
                joined = np.concatenate([share[name] for share in rows])[order]
                np.testing.assert_array_equal(joined, values, err_msg=f"{processes} {name}")
    with pytest.raises(ValueError, match=r"batch_size \(4\) must be divisible by 3 processes"):
        loader.training_batches(RECORDS, batch_size=4, shard=loader.Shard(0, 3), **OPTIONS)


def test_boxes_are_padded_and_the_image_lies_in_the_corner():
    batch = next(loader.training_batches([RECORDS[2]], batch_size=1, **OPTIONS))
    np.testing.assert_array_equal(batch["labels"], [[1, 2, 0, 0]])
    assert batch["boxes"].shape == (1, 4, 4)
    assert not batch["boxes"][0, 2:].any()
    np.testing.assert_array_equal(batch["valid_size"], [[30, 42]])
    assert (batch["image"][0, :30, :42] == 20).all()
    assert not batch["image"][0, 30:].any()
    assert not batch["image"][0, :, 42:].any()


def test_difficult_objects_are_left_out_on_demand():
    batch = next(loader.training_batches([RECORDS[2]], batch_size=1, difficult=False, **OPTIONS))
    np.testing.assert_array_equal(batch["labels"], [[1, 0, 0, 0]])


def test_crowds_are_always_left_out():
    crowded = {**RECORDS[2], "crowd": np.array([True, False])}
    batch = next(loader.training_batches([crowded], batch_size=1, **OPTIONS))
    np.testing.assert_array_equal(batch["labels"], [[2, 0, 0, 0]])


def test_larger_images_shrink_to_the_canvas():
    options = with_decoding(canvas=20)
    batch = next(loader.training_batches([RECORDS[0]], batch_size=1, **options))
    np.testing.assert_array_equal(batch["valid_size"], [[15, 20]])


def test_evaluation_gives_each_image_once_and_fills_up_the_last_batch():
    batches = list(loader.evaluation_batches(RECORDS, count=7, batch_size=3, decoding=DECODING))
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, [0, 1, 2, 3, 4, 5, 6, -1, -1])
    assert all(batch["image"].shape == (3, 64, 64, 3) for batch in batches)


def test_a_broken_image_is_named():
    broken = {**RECORDS[1], "image": b"no image", "name": "broken.jpg"}
    with pytest.raises(errors.UserError, match=r"broken\.jpg"):
        next(loader.training_batches([broken], batch_size=1, **OPTIONS))


def test_memory_serves_again_only_when_no_view_of_it_is_left():
    pool = loader.Pool()
    first = pool.empty((4, 3))
    first[:] = 1
    view = first[1:].reshape(-1)
    address = first.ctypes.data
    del first
    second = pool.empty((4, 3))
    assert second.ctypes.data != address
    second[:] = 2
    assert view.tolist() == [1] * 9
    del view
    assert pool.empty((4, 3)).ctypes.data == address


def test_batches_that_are_kept_do_not_change():
    stream = loader.training_batches(RECORDS, batch_size=2, **OPTIONS)
    kept = [next(stream) for _ in range(4)]
    copies = [{name: value.copy() for name, value in batch.items()} for batch in kept]
    for _ in range(4):
        next(stream)
    for batch, copy in zip(kept, copies, strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, copy[name])


def dies(number):
    """A source of whose records one ends the process that reads it, as the system does."""

    class Source(list):
        def __getitem__(self, index):
            os.kill(os.getpid(), number)

    return Source(RECORDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGBUS, "/dev/shm is full: .*--shm-size"), (signal.SIGKILL, "memory ran out")],
)
def test_a_worker_that_the_machine_ends_is_one_line_with_the_way_out(number, words):
    with pytest.raises(errors.MachineError, match=f"{words}.*config.data.workers=0") as caught:
        loader.training_batches(dies(number), batch_size=2, **with_decoding(workers=1))
    assert "\n" not in str(caught.value)


def test_too_little_shared_memory_is_said_before_workers_start(monkeypatch):
    """64 MB, what Docker gives: 32 images of 500 x 500 are 23 MB."""
    blocks = {**dict.fromkeys(("f_bsize", "f_frsize"), 4096), "f_bavail": (64 << 20) // 4096}
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(**blocks))
    options = functools.partial(with_decoding, canvas=500)
    with pytest.raises(
        errors.MachineError, match=r"/dev/shm has 64 MB free.* need 229 MB"
    ) as caught:
        loader.training_batches(RECORDS, batch_size=32, **options(workers=2))
    assert "--shm-size" in str(caught.value)
    assert "--config.data.workers=0" in str(caught.value)
    assert next(loader.training_batches(RECORDS, batch_size=32, **options(workers=0)))


@pytest.mark.slow
def test_no_shared_memory_keeps_a_name():
    """What has one when a process ends is called leaked by Python."""
    before = set(os.listdir("/dev/shm"))
    batches = loader.training_batches(RECORDS, batch_size=2, **with_decoding(workers=1))
    kept = [next(batches) for _ in range(3)]
    batches.close()
    gone = time.monotonic() + 20
    while set(os.listdir("/dev/shm")) - before and time.monotonic() < gone:
        time.sleep(0.05)  # what lay ready goes in a thread
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")}
    assert positions_and_widths(kept, 3) == positions_and_widths(
        loader.training_batches(RECORDS, batch_size=2, **OPTIONS), 3
    )


@pytest.mark.slow
def test_a_script_with_workers_ends_without_a_word(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import itertools, test_loader\n"
        "from ssd_jax.data import loader\n"
        "def main():\n"
        "    batches = loader.training_batches(\n"
        "        test_loader.RECORDS, batch_size=2, **test_loader.with_decoding(workers=2))\n"
        "    kept = list(itertools.islice(batches, 7))\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    here = pathlib.Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
