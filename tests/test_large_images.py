"""Large images, pipes and devices: what of them is in memory at a time, and what is refused."""

import dataclasses
import os
import weakref

import numpy as np
import pytest
import voc_tree
from PIL import Image

from ssd_jax import config as config_lib
from ssd_jax import config_checks, config_files, errors, visualize
from ssd_jax import detector as detector_lib
from ssd_jax.data import datasets, examine, images, yolo
from ssd_jax.detection import Detections
from ssd_jax.evaluation import gallery, run

SIDE = 2 * run.SAMPLE_SIDE
BOX = np.array([[0.25, 0.25, 0.75, 0.5]], np.float32)


def config(**data):
    """Of a detector that takes batches of four."""
    return config_lib.Config(
        data=config_lib.DataConfig(canvas=64, **data), eval=config_lib.EvalConfig(batch_size=4)
    )


def detector(options):
    """Finds BOX, in [0, 1], in each image."""

    def predict(params, canvases, valid_sizes):
        rows = len(canvases)
        return Detections(
            np.tile(BOX, (rows, 1, 1)), np.full((rows, 1), 0.9), np.ones((rows, 1), int)
        )

    return detector_lib.Detector(options, ("cat",), None, predict=predict)


@pytest.fixture
def alive(monkeypatch):
    """How many decoded images there were at each decoding, this one among them."""
    living, counts, decode = weakref.WeakSet(), [], images.decode

    class Counted(np.ndarray):
        """An array that can be counted."""

        __hash__ = object.__hash__

    def counted(data, **options):
        image = decode(data, **options).view(Counted)
        living.add(image)
        counts.append(len(living))
        return image

    monkeypatch.setattr(images, "decode", counted)
    return counts


def records(count, height=SIDE, width=SIDE):
    pixels = np.full((height, width, 3), 40, np.uint8)
    data = voc_tree.encoded(pixels, "JPEG")
    return [{"name": f"{number}.jpg", "image": data} for number in range(count)]


class Split:
    """What `draw_samples` asks of a split."""

    class_names = ("cat",)

    def __init__(self, source):
        self.source = source


def test_of_an_evaluations_samples_one_at_a_time_is_there_in_full(alive):
    samples = run.draw_samples(detector(config()), Split(records(9)), count=6)
    assert alive == [1] * 6
    assert [sample.shape for sample in samples] == [(run.SAMPLE_SIDE, run.SAMPLE_SIDE, 3)] * 6


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE // 2), (100, 300)])
def test_boxes_of_a_sample_are_where_they_are_in_the_image(height, width):
    (sample,) = run.draw_samples(detector(config()), Split(records(1, height, width)))
    rows, columns = sample.shape[:2]
    assert (rows, columns) == ((800, 400) if height == SIDE else (100, 300))
    plain = np.full_like(sample, 40)
    expected = visualize.draw(
        plain, BOX * np.tile([columns, rows], 2), np.array([1]), [0.9], class_names=("cat",)
    )
    np.testing.assert_array_equal(sample, expected)


def test_a_detector_holds_one_image_at_a_time_in_full(alive, tmp_path):
    paths = [tmp_path / record["name"] for record in records(6, 200, 300)]
    for path, record in zip(paths, records(6, 200, 300), strict=True):
        path.write_bytes(record["image"])
    found = detector(config())(paths)
    assert alive == [1] * 6
    np.testing.assert_allclose(found[5].boxes, [[75, 50, 225, 100]])
    assert detector(config())([]) == []


def test_a_page_shows_images_as_small_as_it_needs_them(alive):
    read = gallery.image_reader(Split(records(1)), ["0.jpg"], config().data)
    assert max(read("0.jpg").shape) <= 400


# --- How large an image may be ---


def test_the_field_bounds_what_a_detector_reads(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(records(1, 200, 300)[0]["image"])
    small, large = (detector(config(max_megapixels=most)) for most in (0.05, 0.06))
    line = "300 x 200 pixels are more than 0.05 megapixels.*config.data.max_megapixels"
    for read in (lambda: small([path]), lambda: small.draw(path, Detections([], [], []))):
        with pytest.raises(errors.UserError, match=line):
            read()
    assert len(large([path])) == 1
    assert len(detector(config(max_megapixels=float("inf")))([path])) == 1


@pytest.mark.parametrize("most", [0, -1, float("nan")])
def test_a_bound_that_is_none_is_refused(most):
    with pytest.raises(
        errors.UserError, match=r"config\.data\.max_megapixels is (0|-1|nan); it must be"
    ):
        config_checks.validate(config(max_megapixels=most))


def test_a_run_can_resume_with_another_bound():
    there, here = config(), config(max_megapixels=500.0)
    assert config_lib.differences(there, here) == {}
    assert config_lib.DataConfig().max_megapixels == images.MAX_MEGAPIXELS


@pytest.fixture
def labeled(tmp_path):
    """A folder in YOLO's form: two images, of which one is larger and has a fault."""
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/labels").mkdir()
    (tmp_path / "data/data.yaml").write_text("train: images\nnames: [cat]\n")
    for name, record in (("a", records(1, 20, 30)[0]), ("b", records(1, 40, 60)[0])):
        data = record["image"]
        if name == "b":
            data = data[:11] + b"\2" + data[12:]  # JFIF's revision
        (tmp_path / f"data/images/{name}.jpg").write_bytes(data)
        (tmp_path / f"data/labels/{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return tmp_path


def test_a_fault_that_costs_no_pixel_is_a_remark(labeled):
    examined = examine.examine(yolo.Reader(str(labeled / "data")))
    assert [len(split) for split in examined.splits.values()] == [2]
    (remark,) = examined.remarks
    assert "b.jpg: the JPEG has a fault that costs no pixel (Warning: unknown JFIF" in remark


def test_a_larger_bound_prepares_what_was_too_large(labeled):
    def names(most):
        split = datasets.load(
            "yolo",
            "train",
            path=str(labeled / "data"),
            cache_dir=labeled / "cache",
            max_unreadable_fraction=0.5,
            max_megapixels=most,
        )
        return [record["name"] for record in split.source]

    assert names(0.001) == ["images/a.jpg"]
    assert names(0.01) == ["images/a.jpg", "images/b.jpg"]


# --- What is no file ---


def test_pipes_and_devices_are_one_line_and_not_read(tmp_path):
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero"):
        with pytest.raises(errors.UserError, match=f"^{path}: not a regular file but a pipe or"):
            detector_lib.read_image(path)


def test_a_file_that_is_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(10**12)  # takes no room
    with pytest.raises(errors.UserError, match=f"^{path}: larger than .* bytes"):
        detector_lib.read_image(path)


def test_what_the_machine_denies_is_not_the_files_fault(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path)

    def denied(*args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(errors.MachineError, match=f"^{path}: Permission denied: give the perm"):
        detector_lib.read_image(path)
    monkeypatch.undo()
    with pytest.raises(errors.UserError, match=r"none\.png: No such file") as caught:
        detector_lib.read_image(tmp_path / "none.png")
    assert not isinstance(caught.value, errors.MachineError)
    with pytest.raises(errors.UserError, match="null byte"):
        detector_lib.read_image("a\0.png")


def test_the_config_of_before_has_the_bound_of_today():
    values = dataclasses.asdict(config_lib.Config())
    del values["data"]["max_megapixels"]
    assert config_files.from_mapping(values, where="a").data.max_megapixels == images.MAX_MEGAPIXELS
