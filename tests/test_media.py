import contextlib
import errno
import io
import itertools
import json
import os
import subprocess
import sys
import types
import unicodedata
from collections import Counter
from concurrent import futures
from fractions import Fraction
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich import console

import ssd_jax
from ssd_jax import adapters, build, errors, load, version
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.data import synthetic_shapes
from ssd_jax.detection import Detections
from ssd_jax.media import annotate as annotate_lib
from ssd_jax.media import crops as crops_lib
from ssd_jax.media import files as media_files
from ssd_jax.media import outputs
from ssd_jax.media import video as video_lib

ROOT = Path(__file__).parent.parent
NAMES = ("ring", "cross")


class FakeDetector:
    """Finds a cross in the upper left quarter of every image, and keeps the sizes of batches."""

    class_names = NAMES

    def __init__(self, batch_size=4):
        self.config = config_lib.Config(eval=config_lib.EvalConfig(batch_size=batch_size))
        self.batches = []

    def __call__(self, images, *, score_threshold):
        self.batches.append(len(images))
        return [self._find(image, score_threshold) for image in images]

    def _find(self, image, score_threshold):
        height, width = image.shape[:2]
        found = Detections(
            np.array([[0, 0, width / 2, height / 2]], np.float32),
            np.array([0.75], np.float32),
            np.array([2], np.int32),
        )
        return found if score_threshold < 0.75 else Detections(*(values[:0] for values in found))


@pytest.fixture(scope="module")
def tiny():
    """A network with random parameters, and 8 images a batch."""
    config = config_lib.Config()
    config.model.width, config.data.canvas = 0.125, 64
    config.eval.batch_size, config.eval.max_detections = 8, 5
    model = build.model(config.model, len(NAMES))
    image = jax.ShapeDtypeStruct((1, 300, 300, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    values = np.random.default_rng(0)
    params = jax.tree.map(lambda x: values.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
    return detector_lib.Detector(config, NAMES, params)


def image_file(path, *, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 200 if mode in ("L", "I;16") else None).save(path, **options)
    return path


CODECS = {".flv": "flv", ".mpeg": "mpeg2video", ".mpg": "mpeg2video", ".webm": "libvpx"}


def video_file(
    path, *, frames=20, size=(64, 48), rate=Fraction(30000, 1001), rotation=0, seed=0, times=None,
    aspect=None,
):  # fmt: skip
    """A video of noise, its frames brighten, over and over from black; size is (width, height).

    With `times`, whole milliseconds, the frames come at these, whatever rate its header states.
    """
    pixels = np.random.default_rng(seed)
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        codec = CODECS.get(path.suffix, "mpeg4")
        stream = container.add_stream(
            codec, rate=rate, options={"g": "1"}
        )  # no frame needs another
        stream.width, stream.height = size
        stream.bit_rate = 8_000_000
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for k in range(frames):
            image = pixels.integers(0, 40, (size[1], size[0], 3)) + 10 * (k % 20)
            image[: size[1] // 2, : size[0] // 2] = 0  # a dark upper left corner
            frame = av.VideoFrame.from_ndarray(np.clip(image, 0, 255).astype(np.uint8), "rgb24")
            frame.pts, frame.time_base = (
                (k, 1 / rate) if times is None else (times[k], Fraction(1, 1000))
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path):
    """Frames, rate and problem of a video."""
    with av.open(str(path)) as container:
        video = video_lib.VideoReader(container)
        return [image for _, image in video], video.rate, video.problem


def times_of(path):
    """When the frames of a video are due by FFmpeg, and how long it is, in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = np.array([float(frame.time) for frame in container.decode(stream)])
        return times, container.duration / av.time_base


def annotate(paths, output, detector=None, **options):
    output.mkdir(exist_ok=True)
    targets = media_files.places(paths, output)
    return list(
        annotate_lib.annotate_inputs(
            detector or FakeDetector(), targets, score_threshold=0.5, **options
        )
    )


def test_a_folder_gives_its_images_sorted_and_nothing_else(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.jpg"):
        image_file(tmp_path / name)
    for name in ("notes.txt", ".hidden.jpg", "video.mp4"):
        (tmp_path / name).touch()
    assert media_files.find([str(tmp_path)]).paths == [tmp_path / "a.jpg", tmp_path / "b.PNG"]


def test_a_glob_gives_images_and_videos_sorted(tmp_path):
    for name in ("b.jpg", "a.mp4", "c.txt", "deep/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert media_files.find([f"{tmp_path}/*"]).paths == [tmp_path / "a.mp4", tmp_path / "b.jpg"]
    assert tmp_path / "deep/d.jpg" in media_files.find([f"{tmp_path}/**"]).paths


def test_files_come_once_in_the_order_of_their_names(tmp_path):
    b, a = image_file(tmp_path / "b[1].jpg"), image_file(tmp_path / "a.jpg")
    assert media_files.find([str(b), str(tmp_path), str(a)]).paths == [b, a]


@pytest.mark.parametrize("name", ["missing.jpg", "*.jpg", "empty", "text/*", "x" * 300])
def test_a_name_without_images_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text").mkdir()
    Path("text/notes.txt").touch()
    with pytest.raises(errors.UserError) as error:
        media_files.find([name])
    assert str(error.value).startswith(f"{name}: ")


def test_copies_never_share_a_name():
    paths = [Path("one/a.jpg"), Path("two/a.jpg"), Path("two/A.JPG"), Path("a-2.jpg")]
    chosen = list(media_files.places(paths, Path("out")).values())
    assert chosen[:2] == [Path("out/a.jpg"), Path("out/a-2.jpg")]
    assert len({str(place).lower() for place in chosen}) == len(paths)


def test_copies_of_many_files_of_one_name_take_their_places_at_once(monkeypatch):
    looked, real = [], media_files.os.path.islink
    monkeypatch.setattr(
        media_files.os.path, "islink", lambda path: looked.append(path) or real(path)
    )
    paths = [Path(f"{k}/a.jpg") for k in range(2000)]
    assert len(set(media_files.places(paths, Path("out")).values())) == 2000
    assert len(looked) < 5 * 2000


@pytest.mark.parametrize("ending", [".jpg", ".ts", ".gif"])
@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u72ac", "\udcff"])
def test_copies_of_the_longest_names_can_be_written(tmp_path, ending, letter):
    size = len(os.fsencode(letter))
    names = [f"{letter * ((250 - len(ending)) // size)}{k}{ending}" for k in range(2)]
    places = list(media_files.places([tmp_path / name for name in names], tmp_path).values())
    assert len(set(places)) == 2
    for place in places:
        place.with_name(f"{place.name}-000001-100.jpg").touch()
        place.with_name(f"{place.name}.part").touch()


def test_names_that_some_file_systems_take_for_one_are_two():
    names = [unicodedata.normalize(form, "\u00c9.jpg") for form in ("NFC", "NFD")]
    names.append(names[0].lower())
    paths = [Path(f"{k}/{name}") for k, name in enumerate(names)]
    chosen = [place.name for place in media_files.places(paths, Path("out")).values()]
    folded = {unicodedata.normalize("NFC", name).casefold() for name in chosen}
    assert len(folded) == 3


def test_a_copy_replaces_no_file_that_an_input_leads_to(tmp_path):
    (tmp_path / "out").mkdir()
    real = image_file(tmp_path / "out/a.jpg")
    (tmp_path / "a.jpg").symlink_to(real)
    assert list(media_files.places([tmp_path / "a.jpg"], tmp_path / "out").values()) != [real]


def test_an_empty_name_is_not_the_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(image_file(tmp_path / "a.jpg").parent)
    with pytest.raises(errors.UserError, match="empty"):
        media_files.find([""])


def test_a_folder_that_cannot_be_searched_is_told_with_what_was_found(tmp_path, monkeypatch):
    found = media_files.globs.Expansion(
        [tmp_path / "a.jpg"], ["b: its content cannot be listed: no"]
    )
    monkeypatch.setattr(media_files.globs, "expand", lambda name: found)
    assert media_files.find(["*.jpg", "**/*.jpg"]) == (found.paths, found.problems)
    monkeypatch.setattr(media_files.globs, "expand", lambda name: found._replace(paths=[]))
    with pytest.raises(errors.UserError, match=r"^b: its content"):
        media_files.find(["*.jpg"])


def test_a_copy_never_replaces_an_input(tmp_path):
    paths = [tmp_path / "a.jpg", tmp_path / "a-2.jpg", tmp_path / "a.mp4"]
    assert not set(media_files.places(paths, tmp_path).values()) & set(paths)


def test_a_camera_has_a_place_of_its_own(tmp_path):
    paths = [Path("camera.mp4"), tmp_path / "camera-2.mp4"]
    targets = media_files.places(paths, tmp_path)
    assert media_files.camera_place({}, tmp_path) == tmp_path / "camera.mp4"
    assert media_files.camera_place(targets, tmp_path) not in {*paths, *targets.values()}


@pytest.mark.parametrize("ending", media_files.VIDEOS)
def test_videos_of_every_ending_are_videos(tmp_path, ending):
    path = tmp_path / f"a{ending.upper()}"
    path.touch()
    assert media_files.is_video(path)
    assert media_files.find([f"{tmp_path}/*"]).paths == [path]


def test_usual_endings_of_videos_are_known():
    asked = {".3gp", ".flv", ".mpeg", ".mpg", ".mts", ".ts", ".wmv"}
    assert asked <= set(media_files.VIDEOS)


@pytest.mark.parametrize(
    ("name", "copy"),
    [("a.JPEG", "a.JPEG"), ("a.gif", "a.png"), ("a", "a.png"), ("a.webm", "a.mp4")],
)
def test_copies_are_of_kinds_that_can_be_written(name, copy):
    assert media_files.places([Path(name)], Path("out")) == {Path(name): Path("out") / copy}


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "L"), ("a.jpg", "CMYK"), ("a.png", "I;16"), ("a.png", "RGBA"), ("a.gif", "P")],
)
def test_images_of_every_mode_are_annotated(tmp_path, name, mode):
    [outcome] = annotate([image_file(tmp_path / name, mode=mode)], tmp_path / "out")
    assert outcome.problem is None
    assert outcome.found == {"boxes": [[0, 0, 20, 15]], "scores": [0.75], "labels": ["cross"]}
    with Image.open(outcome.place) as copy:
        assert (copy.size, copy.mode) == ((40, 30), "RGB")


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 900), pytest.param((8000, 6000), marks=pytest.mark.slow)]
)
def test_images_of_any_size_are_annotated(tmp_path, tiny, size):
    path = image_file(tmp_path / "a.png", size=size)
    width, height = size
    [outcome] = annotate([path], tmp_path / "fake")
    assert outcome.found["boxes"] == [[0, 0, width / 2, height / 2]]
    (tmp_path / "out").mkdir()
    [outcome] = annotate_lib.annotate_inputs(
        tiny, media_files.places([path], tmp_path / "out"), score_threshold=0.0
    )
    assert outcome.problem is None
    boxes = np.array(outcome.found["boxes"])
    assert 1 <= len(boxes) <= 5
    assert (boxes >= 0).all()
    assert (boxes <= [width, height, width, height]).all()
    with Image.open(outcome.place) as copy:
        assert copy.size == size


def test_boxes_belong_to_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the stored rows are columns
    stored = Image.new("RGB", (40, 30))
    stored.paste((250, 20, 20), (24, 0, 40, 8))  # upper right, which is upright lower right
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    [outcome] = annotate([tmp_path / "a.jpg"], tmp_path / "out")
    assert outcome.found["boxes"] == [[0, 0, 15, 20]]
    with Image.open(outcome.place) as copy:
        pixels = np.asarray(copy).astype(int)
    assert pixels.shape == (40, 30, 3)
    np.testing.assert_allclose(pixels[28:, 24:].mean(axis=(0, 1)), (250, 20, 20), atol=10)
    assert pixels[28:, :20].max() < 40


def test_an_image_is_read_decoded_and_converted_once(tmp_path, monkeypatch):
    """From the file to the drawn boxes; of a larger image the detector shrinks a copy."""
    path = image_file(tmp_path / "a.jpg", size=(400, 300))
    one = Detections(np.float32([[[0, 0, 0.5, 0.5]]]), np.float32([[0.75]]), np.int32([[2]]))
    detector = detector_lib.Detector(config_lib.Config(), NAMES, {}, predict=lambda *_: one)
    assert detector.config.data.canvas >= 400
    counts = Counter()

    def count(owner, name):
        counted = getattr(owner, name)

        def call(*args, **options):
            counts[name] += 1
            return counted(*args, **options)

        monkeypatch.setattr(owner, name, call)

    count(annotate_lib.files, "open_regular")
    count(annotate_lib.image_files, "decode")
    count(annotate_lib.image_files, "rgb")
    count(Image, "fromarray")  # copies an array's pixels
    count(Image.Image, "tobytes")  # copies an image's pixels, as `np.asarray` of it does
    count(Image.Image, "convert")
    [outcome] = annotate([path], tmp_path / "out", detector)
    assert outcome.found["labels"] == ["cross"]
    assert counts == {"open_regular": 1, "decode": 1, "fromarray": 1}


def test_broken_images_stop_nothing(tmp_path):
    paths = [image_file(tmp_path / f"{k}.png") for k in range(6)]
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    paths[3].write_text("no image")
    paths[5].unlink()
    outcomes = {outcome.path: outcome for outcome in annotate(paths, tmp_path / "out")}
    assert list(outcomes) == [paths[k] for k in (0, 2, 4, 1, 3, 5)]
    for k, path in enumerate(paths):
        assert outcomes[path].place.exists() == (outcomes[path].found is not None) == (k % 2 == 0)
        assert outcomes[path].problem is None if k % 2 == 0 else str(path) in outcomes[path].problem


def test_a_copy_that_cannot_be_written_keeps_what_was_found(tmp_path):
    path = image_file(tmp_path / "a.png")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    [outcome] = annotate([path], tmp_path / "out")
    assert outcome.found["labels"] == ["cross"]
    assert str(path) in outcome.problem


def test_batches_are_bounded_in_number_and_in_pixels(tmp_path, monkeypatch):
    paths = [image_file(tmp_path / f"{k}.png") for k in range(7)]
    detector = FakeDetector(batch_size=3)
    annotate(paths, tmp_path / "out", detector)
    assert detector.batches == [3, 3, 1]
    monkeypatch.setattr(annotate_lib, "_BATCH_PIXELS", 2 * 40 * 30)
    detector = FakeDetector(batch_size=3)
    annotate(paths, tmp_path / "out", detector)
    assert detector.batches == [2, 2, 2, 1]


class SeeingDetector(FakeDetector):
    """Finds, as a ring, the one thing in an image that is brighter than its ground."""

    def _find(self, image, score_threshold):
        rows, columns = np.nonzero(image.min(axis=2) > 100)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return Detections(np.float32([box]), np.float32([0.9]), np.int32([1]))


def test_twenty_seconds_of_moving_objects_keep_their_frames_and_get_boxes(tmp_path):
    shape = synthetic_shapes.silhouette(np.random.default_rng(0), "ring", 40).coverage[..., None]
    rows, columns = shape.shape[:2]
    rate, size = Fraction(10), (160, 240)
    with video_lib.video_writer(tmp_path / "video.mp4", size, rate=rate) as write:
        for k in range(200):
            frame = np.full((*size, 3), 40.0)
            top = 50 + round(40 * np.sin(k / 7))
            left = 20 + round(k * (size[1] - columns - 40) / 200)
            frame[top : top + rows, left : left + columns] += 200 * shape
            write(np.clip(frame, 0, 255).astype(np.uint8), k / rate)
    before, *_ = read(tmp_path / "video.mp4")
    [outcome] = annotate([tmp_path / "video.mp4"], tmp_path / "out", SeeingDetector())
    after, copied_rate, problem = read(outcome.place)
    assert (outcome.problem, problem, copied_rate) == (None, None, rate)
    assert len(after) == len(before) == len(outcome.found["frames"]) == 200
    lefts = []
    for was, now, found in zip(before, after, outcome.found["frames"], strict=True):
        changed = np.abs(now.astype(int) - was).max(axis=2) > 40
        [[x0, y0, x1, y1]] = np.round(found["boxes"]).astype(int).tolist()
        for edge in (
            changed[y1 - 2 : y1 + 2, x0:x1].any(axis=0),
            changed[y0:y1, x0 - 2 : x0 + 2].any(axis=1),
            changed[y0:y1, x1 - 2 : x1 + 2].any(axis=1),
        ):
            assert edge.mean() > 0.9
        assert not changed[y1 + 5 :].any()
        lefts.append(x0)
    assert lefts[-1] - lefts[0] > 100


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize(
    "name", ["a.mp4", "a.avi", "a.mkv", "a.webm", "a.3gp", "a.flv", "a.mpg", "a.mts", "a.wmv"]
)
def test_a_video_keeps_its_frames_rate_and_size(tmp_path, monkeypatch, name, encoder):
    if encoder not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {encoder}")
    monkeypatch.setattr(video_lib, "_ENCODERS", {encoder: video_lib._ENCODERS[encoder]})
    source = video_file(tmp_path / name, frames=10)
    before, rate, _ = read(source)
    seen, detector = [], FakeDetector(batch_size=4)
    [outcome] = annotate([source], tmp_path / "out", detector, on_frame=lambda *a: seen.append(a))
    after, copied_rate, problem = read(outcome.place)
    assert outcome.problem is problem is None
    assert detector.batches == [4, 4, 2]
    assert seen == [(source, 4), (source, 8), (source, 10)]
    assert len(after) == len(before) == len(outcome.found["frames"]) == 10
    assert copied_rate == rate
    assert outcome.found["fps"] == pytest.approx(29.97, abs=0.01)
    assert outcome.found["size"] == [64, 48]
    assert outcome.found["frames"][0] == {
        "boxes": [[0, 0, 32, 24]],
        "scores": [0.75],
        "labels": ["cross"],
    }
    assert after[0].shape == before[0].shape
    for k in range(10):  # away from the box and its caption
        assert after[k][30:, 40:].mean() == pytest.approx(before[k][30:, 40:].mean(), abs=4)


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_video_of_uneven_times_keeps_its_length(tmp_path, monkeypatch, name, encoder):
    if encoder not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {encoder}")
    monkeypatch.setattr(video_lib, "_ENCODERS", {encoder: video_lib._ENCODERS[encoder]})
    gaps = np.linspace(20, 210, 69).astype(int)
    stamps = [0, *np.cumsum(gaps).tolist()]  # of 8 s, where 30 a second would be 2.3 s
    source = video_file(tmp_path / name, frames=70, rate=Fraction(30), times=stamps)
    np.testing.assert_allclose(times_of(source)[0], np.array(stamps) / 1000, atol=1e-3)
    [outcome] = annotate([source], tmp_path / "out")
    times, length = times_of(outcome.place)
    assert outcome.problem is None
    assert len(outcome.found["frames"]) == 70
    np.testing.assert_allclose(times, np.array(stamps) / 1000, atol=1.1e-3)
    np.testing.assert_allclose(outcome.found["times"], times, atol=3e-5)
    assert stamps[-1] / 1000 < length < stamps[-1] / 1000 + 0.21


def test_times_that_restart_are_counted_on(tmp_path):
    """As in recordings that are strung together."""
    source = video_file(tmp_path / "a.ts", frames=10, rate=Fraction(25))
    source.write_bytes(2 * source.read_bytes())
    [outcome] = annotate([source], tmp_path / "out")
    times, length = times_of(outcome.place)
    np.testing.assert_allclose(times, outcome.found["times"], atol=1e-4)
    assert np.diff(times).min() == pytest.approx(1 / 25, abs=1e-4)
    assert length == pytest.approx(20 / 25, abs=1e-4)  # FFmpeg loses a frame where they join


@pytest.mark.parametrize("color", [(220, 40, 90), (30, 200, 60), (40, 60, 230)])
def test_a_written_video_keeps_colors_and_odd_sizes(tmp_path, color):
    image = np.full((65, 97, 3), color, np.uint8)
    with video_lib.video_writer(tmp_path / "a.mp4", (65, 97), rate=Fraction(24)) as write:
        write(image, Fraction(0))
    frames, rate, _ = read(tmp_path / "a.mp4")
    assert (len(frames), rate, frames[0].shape) == (1, 24, (66, 98, 3))
    np.testing.assert_allclose(frames[0][:65, :97], image, atol=8)


@pytest.mark.parametrize(
    ("rotation", "size", "corner"),
    [
        (0, (64, 48), (slice(0, 20), slice(0, 28))),
        (90, (48, 64), (slice(36, 64), slice(0, 20))),  # counterclockwise: to the lower left
        (-90, (48, 64), (slice(0, 28), slice(28, 48))),
        (180, (64, 48), (slice(28, 48), slice(36, 64))),
    ],
)
def test_a_video_is_turned_the_way_up_that_it_says(tmp_path, rotation, size, corner):
    frames, *_ = read(video_file(tmp_path / "a.mp4", rotation=rotation))
    image = frames[-1].astype(float)
    assert image.shape[:2] == size[::-1]
    assert image[corner].mean() < 20 < image.mean()


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.webm"])
def test_a_video_that_breaks_off_keeps_the_frames_before(tmp_path, name):
    path = video_file(tmp_path / name, frames=60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    [outcome] = annotate([path], tmp_path / "out")
    frames, _, problem = read(outcome.place)
    assert str(path) in outcome.problem
    assert "broken off at" in outcome.problem
    assert 10 <= len(outcome.found["frames"]) == len(frames) < 60
    assert problem is None


def test_a_file_that_is_no_video_is_named(tmp_path):
    for name, data in (("text.mp4", b"hello"), ("empty.mkv", b"")):
        (tmp_path / name).write_bytes(data)
        [outcome] = annotate([tmp_path / name], tmp_path / "out")
        assert outcome.found is None
        assert outcome.problem.startswith(f"{tmp_path / name}: not a readable video")


def test_a_video_copy_that_cannot_be_written_keeps_what_was_found(tmp_path):
    source = video_file(tmp_path / "video.mp4")
    place = tmp_path / "out" / "video.mp4"
    place.mkdir(parents=True)
    [outcome] = annotate([source], tmp_path / "out")
    assert outcome.problem == f"{source}: {place} was not written: Is a directory"
    assert len(outcome.found["frames"]) == 20


def until_trouble(targets, output, **options):
    """Outcomes up to a trouble of the machine, and that."""
    output.mkdir(exist_ok=True)
    outcomes = []
    try:
        for outcome in annotate_lib.annotate_inputs(
            FakeDetector(), targets, score_threshold=0.5, **options
        ):
            outcomes.append(outcome)
    except errors.MachineError as error:
        return outcomes, str(error)
    raise AssertionError("no trouble")


@pytest.mark.parametrize("frames", [9, 20])
def test_a_full_disk_is_not_the_videos_fault(tmp_path, monkeypatch, frames):
    """At the 10th frame, after which nothing may be written, and in what is written at the end."""
    ended = []

    @contextlib.contextmanager
    def full(path, size, *, rate, aspect):
        written = []

        def write(image, due):
            if len(written) == frames:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(due)

        yield write
        ended.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video_lib, "video_writer", full)
    source = video_file(tmp_path / "video.mp4")
    place = tmp_path / "out" / "video.mp4"
    [outcome], line = until_trouble({source: place}, tmp_path / "out")
    assert line.startswith(f"{place}: No space left on device: make room")
    assert len(outcome.found["frames"]) == len(outcome.found["times"]) == 20
    assert ended == [place] * (frames == 20)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("frames", [2, 60])
def test_a_device_that_is_full_ends_a_copy_alone(tmp_path, frames):
    """With 2 frames at the end, with 60 amid them."""
    source = video_file(tmp_path / "video.mp4", frames=frames, size=(320, 240))
    outcomes, line = until_trouble({source: Path("/dev/full")}, tmp_path / "out")
    assert line == ("/dev/full: No space left on device: make room, and run the same command again")
    assert [len(outcome.found["frames"]) for outcome in outcomes] == [frames]


@pytest.mark.parametrize(
    "name",
    [
        "12:30:05.mp4",
        "concat:a.mp4",
        "file:a.mp4",
        "pipe:0.mp4",
        "%03d.mp4",
        "-a.mp4",
        "http:/a.mp4",
    ],
)
def test_a_file_is_a_file_whatever_it_is_called(tmp_path, monkeypatch, name):
    """FFmpeg takes these names for addresses, numbers and pipes; the copy has them too."""
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    video_file(tmp_path / "video.mp4", frames=3).rename(name)
    [outcome] = annotate(media_files.find([name]).paths, Path("out"))
    assert (outcome.problem, len(outcome.found["frames"])) == (None, 3)
    assert str(outcome.path) == name
    with (tmp_path / outcome.place).open("rb") as file, video_lib.open_file(file) as copy:
        assert len(list(video_lib.VideoReader(copy))) == 3


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.avi"])
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
    ],
)
def test_a_file_that_leads_to_others_is_no_video(tmp_path, name, text):
    (tmp_path / name).write_text(text.format(video_file(tmp_path / "part.ts", frames=3)))
    [outcome] = annotate([tmp_path / name], tmp_path / "out")
    assert outcome.found is None
    assert outcome.problem.startswith(f"{tmp_path / name}: not a readable video (")


def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path):
    for name in ("a.jpg", "a.mp4"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "b.jpg").symlink_to("nowhere")
    (tmp_path / "c.jpg").symlink_to("c.jpg")
    (tmp_path / "d.mp4").mkdir()
    names = "a.jpg", "a.mp4", "b.jpg", "c.jpg", "d.mp4"
    outcomes = annotate([tmp_path / name for name in names], tmp_path / "out")
    assert {outcome.path.name: outcome.found for outcome in outcomes} == dict.fromkeys(names)
    assert all(outcome.problem.count(str(outcome.path)) == 1 for outcome in outcomes)


def test_the_first_size_holds_for_all_frames_and_boxes(tmp_path):
    pixels = [(64, 48), (160, 120), (64, 48)]
    parts = [video_file(tmp_path / f"{k}.ts", frames=6, size=size) for k, size in enumerate(pixels)]
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    [outcome] = annotate([tmp_path / "joined.ts"], tmp_path / "out")
    assert outcome.found["size"] == [64, 48]
    assert {str(frame["boxes"]) for frame in outcome.found["frames"]} == {
        "[[0.0, 0.0, 32.0, 24.0]]"
    }
    frames, *_ = read(tmp_path / "joined.ts")
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert len(frames) == len(outcome.found["frames"]) > 12  # FFmpeg loses some where they join
    for frame in frames[1:]:
        assert frame[:20, :28].mean() < frame[28:, 36:].mean() + 5
    copied, *_ = read(outcome.place)
    assert [frame.shape for frame in copied] == [(48, 64, 3)] * len(frames)


def aspect_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, stream.sample_aspect_ratio, stream.display_aspect_ratio


def test_the_shared_videos_keep_size_and_aspect(tmp_path, shared):
    folder = shared / "cases/video"
    if not folder.is_dir():
        pytest.skip("no folder cases/video in ../shared")
    changing, wide = annotate(
        [folder / "size_changes.ts", folder / "pixels_64_45.mp4"], tmp_path / "out"
    )
    assert (changing.found["size"], len(changing.found["frames"])) == ([320, 240], 36)
    boxes = {str(frame["boxes"]) for frame in changing.found["frames"]}
    assert boxes == {"[[0.0, 0.0, 160.0, 120.0]]"}
    assert aspect_of(changing.place)[:2] == (320, 240)
    assert wide.found["size"] == [360, 288]
    assert aspect_of(wide.place) == (360, 288, Fraction(64, 45), Fraction(16, 9))


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize(
    ("rotation", "size", "aspect"),
    [
        (0, (64, 48), Fraction(64, 45)),
        (180, (64, 48), Fraction(64, 45)),
        (90, (48, 64), Fraction(45, 64)),
        (-90, (48, 64), Fraction(45, 64)),
    ],
)
def test_pixels_that_are_not_square_stay_so(tmp_path, monkeypatch, encoder, rotation, size, aspect):
    if encoder not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {encoder}")
    monkeypatch.setattr(video_lib, "_ENCODERS", {encoder: video_lib._ENCODERS[encoder]})
    source = video_file(tmp_path / "a.mp4", frames=3, rotation=rotation, aspect=Fraction(64, 45))
    [outcome] = annotate([source], tmp_path / "out")
    assert outcome.found["size"] == list(size)
    assert aspect_of(outcome.place)[:3] == (*size, aspect)


def test_an_absurd_aspect_is_not_believed(tmp_path):
    source = video_file(tmp_path / "a.mp4", frames=3, aspect=Fraction(250))
    [outcome] = annotate([source], tmp_path / "out")
    assert (outcome.problem, aspect_of(outcome.place)[2]) == (None, 1)


def test_frames_of_absurd_size_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(video_lib, "_MOST_PIXELS", 64 * 48 - 1)
    [outcome] = annotate([video_file(tmp_path / "a.mp4")], tmp_path / "out")
    assert outcome.found is None
    assert "frames of 64 x 48 pixels; at most 3071 are read" in outcome.problem


def streams(path, *sizes):
    """A video of several streams."""
    with av.open(str(path), "w") as container:
        made = []
        for size in sizes:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height = size
            made.append(stream)
        for k in range(3):
            for stream in made:
                image = np.full((stream.height, stream.width, 3), 50 * k, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        for stream in made:
            container.mux(stream.encode(None))
    return path


def test_of_several_streams_the_largest_is_taken(tmp_path):
    [outcome] = annotate([streams(tmp_path / "a.mkv", (32, 32), (64, 48))], tmp_path / "out")
    assert (outcome.found["size"], len(outcome.found["frames"])) == ([64, 48], 3)


def stand_in(stream):
    """A stream whose disposition can be set, which no muxer writes for a cover of many frames."""
    context = types.SimpleNamespace(width=stream.width, height=stream.height)
    return types.SimpleNamespace(disposition=stream.disposition, codec_context=context)


def holding(streams):
    return types.SimpleNamespace(streams=types.SimpleNamespace(video=streams))


def test_a_cover_is_not_the_video(tmp_path):
    with av.open(str(streams(tmp_path / "a.mkv", (128, 128), (64, 48)))) as container:
        cover, video = map(stand_in, container.streams.video)
    cover.disposition |= av.stream.Disposition.attached_pic
    assert video_lib._main_stream(holding([cover, video])) is video
    with pytest.raises(errors.UserError, match="no images"):
        video_lib._main_stream(holding([cover]))


def test_a_video_of_an_unknown_codec_is_one_line(tmp_path):
    path = video_file(tmp_path / "a.avi", frames=3)
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZQZQ"))
    [outcome] = annotate([path], tmp_path / "out")
    assert outcome.problem.endswith("coded in a way that FFmpeg does not know)")


def test_a_title_that_is_not_utf8_costs_nothing(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XXXX\u00e9"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
        container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert "XXXX\u00e9".encode() in data
    path.write_bytes(data.replace("\u00e9".encode(), b"\xe9\xe9"))
    [outcome] = annotate([path], tmp_path / "out")
    assert (outcome.problem, len(outcome.found["frames"])) == (None, 1)


def test_a_stopped_video_keeps_what_was_done(tmp_path):
    source, other = video_file(tmp_path / "a.mp4", frames=20), video_file(tmp_path / "b.mp4")
    seen = []
    outcomes = annotate(
        [source, other], tmp_path / "out",
        on_frame=lambda *a: seen.append(a), stopped=lambda: len(seen) >= 2,
    )  # fmt: skip
    assert [outcome.path for outcome in outcomes] == [source]
    kept = len(outcomes[0].found["frames"])
    assert 8 <= kept < 20
    assert outcomes[0].problem.endswith(f"s; {kept} frames are kept")
    assert "stopped at" in outcomes[0].problem
    frames, _, problem = read(outcomes[0].place)
    assert (len(frames), problem) == (kept, None)


def test_images_that_are_read_are_done_when_it_is_stopped(tmp_path):
    paths = [image_file(tmp_path / f"{k}.png") for k in range(10)]
    detector = FakeDetector(batch_size=4)
    outcomes = annotate(
        paths, tmp_path / "out", detector, stopped=lambda: len(detector.batches) == 1
    )
    assert [outcome.path for outcome in outcomes] == paths[:4]
    assert all(outcome.place.exists() for outcome in outcomes)


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get
)
def test_trouble_that_the_next_file_would_meet_too_ends_after_what_was_read(
    tmp_path, monkeypatch, number
):
    paths = [image_file(tmp_path / f"{k}.png") for k in range(4)]
    failing(monkeypatch, paths[2], number)
    outcomes, line = until_trouble(media_files.places(paths, tmp_path / "out"), tmp_path / "out")
    assert [outcome.path for outcome in outcomes if outcome.found] == paths[:2]
    assert line.startswith(f"{paths[2]}: {os.strerror(number)}: ")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_trouble_with_one_file_is_named_and_the_others_are_done(tmp_path, monkeypatch, number):
    paths = [image_file(tmp_path / f"{k}.png") for k in range(4)]
    failing(monkeypatch, paths[2], number)
    outcomes = annotate(paths, tmp_path / "out")
    problems = {outcome.path: outcome.problem for outcome in outcomes}
    assert problems == dict.fromkeys(paths) | {paths[2]: f"{paths[2]}: {os.strerror(number)}"}


def failing(monkeypatch, path, number):
    """Reading this file fails with the error of the system."""
    opened = annotate_lib.files.open_regular

    def open_regular(name):
        if name == path:
            raise OSError(number, os.strerror(number), str(name))
        return opened(name)

    monkeypatch.setattr(annotate_lib.files, "open_regular", open_regular)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_ends_after_the_batch_of_images(tmp_path):
    paths = [image_file(tmp_path / f"{k}.bmp") for k in range(9)]
    targets = media_files.places(paths, tmp_path / "out") | {paths[1]: Path("/dev/full")}
    original = Image.Image.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Image.Image, "save",
            lambda image, place, **options: original(image, place, **({"format": "png"} | options)),
        )  # fmt: skip
        outcomes, line = until_trouble(targets, tmp_path / "out")
    assert line.startswith("/dev/full: No space left on device: make room")
    assert [outcome.path for outcome in outcomes] == paths[:4]
    assert all(outcome.found and outcome.problem is None for outcome in outcomes)


def test_links_in_the_folder_of_results_are_replaced(tmp_path):
    """As somebody may have put them there, to have what they lead to overwritten."""
    secret, elsewhere = tmp_path / "secret", tmp_path / "elsewhere"
    secret.write_text("keep")
    elsewhere.mkdir()
    paths = [image_file(tmp_path / "a.png"), video_file(tmp_path / "b.mp4", frames=2)]
    out = tmp_path / "out"
    (out / "crops").mkdir(parents=True)
    for name in ("a.png", "b.mp4", "detections.json"):
        (out / name).symlink_to(secret)
    (out / "crops/cross").symlink_to(elsewhere)
    outcomes = annotate(paths, out, crops=out / "crops")
    outputs.write_json(out / "detections.json", outcomes)
    assert [outcome.problem for outcome in outcomes] == [None, None]
    assert secret.read_text() == "keep"
    assert not list(elsewhere.iterdir())
    assert len(list((out / "crops/cross").iterdir())) == 3
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_a_video_of_sound_alone_is_named(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    [outcome] = annotate([path], tmp_path / "out")
    assert outcome.found is None
    assert "no images" in outcome.problem


def test_only_the_classes_that_are_asked_for(tmp_path):
    paths = [image_file(tmp_path / "a.png")]
    (outcome,) = annotate(paths, tmp_path / "out", classes=["ring"])
    assert outcome.found == {"boxes": [], "scores": [], "labels": []}
    (outcome,) = annotate(paths, tmp_path / "out", classes=["cross", "ring"])
    assert outcome.found["labels"] == ["cross"]
    with pytest.raises(errors.UserError, match="dog: the detector has no such class; it has ring"):
        annotate(paths, tmp_path / "out", classes=["dog"])


def test_crops_are_the_objects(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    video_file(tmp_path / "video.mp4", frames=2)
    annotate(
        [tmp_path / "a.png", tmp_path / "video.mp4"], tmp_path / "out", crops=tmp_path / "crops"
    )
    names = [
        f"cross/{name}.jpg" for name in ("a.png-1", "video.mp4-000001-1", "video.mp4-000002-1")
    ]
    found = sorted((tmp_path / "crops").rglob("*.jpg"))
    assert [str(path.relative_to(tmp_path / "crops")) for path in found] == names
    with Image.open(found[0]) as crop:
        assert crop.size == (20, 15)
        means = np.asarray(crop, float).mean(axis=(0, 1))
    np.testing.assert_allclose(means, pixels[:15, :20].mean(axis=(0, 1)), atol=2)


def test_crops_of_files_of_one_stem_are_all_kept(tmp_path):
    paths = [image_file(tmp_path / name) for name in ("a.jpg", "a.png", "video-000001.jpg")]
    paths.append(video_file(tmp_path / "video.mp4", frames=1))
    annotate(paths, tmp_path / "out", crops=tmp_path / "crops")
    assert len(list((tmp_path / "crops/cross").iterdir())) == len(paths)


@pytest.mark.parametrize("name", ["..", ".", "", "../up", "a/b", "a\\b", "/", ".hidden"])
def test_crops_stay_in_their_folder_whatever_a_class_is_called(tmp_path, name):
    class Oddly(FakeDetector):
        class_names = ("ring", name)

    (outcome,) = annotate(
        [image_file(tmp_path / "a.png")], tmp_path / "out", Oddly(), crops=tmp_path / "deep/crops"
    )
    assert outcome.problem is None
    [crop] = tmp_path.rglob("*-1.jpg")
    assert crop.parent.parent == tmp_path / "deep/crops"
    assert not crop.parent.name.startswith(".")


CLASSES = (
    "a/b", "a b", "a_b", "A_B", "..", ".", "", "/", "CON", "con.txt", "nul", "x" * 300, "x" * 301,
    unicodedata.normalize("NFC", "caf\u00e9"), unicodedata.normalize("NFD", "caf\u00e9"), "a\0b",
    "a.", "\u72ac",
)  # fmt: skip


def test_every_class_has_a_folder_of_its_own_that_any_system_takes():
    names = crops_lib.folder_names(CLASSES)
    folded = {unicodedata.normalize("NFC", name).casefold() for name in names}
    assert len(folded) == len(CLASSES)
    assert names[-1] == "\u72ac"
    for name in names:
        assert 0 < len(name.encode()) <= 110
        assert not set(name) & set('/\\\0:*?"<>| ')
        assert name.strip(".") == name
        assert name.partition(".")[0].upper() not in ("CON", "NUL")
    assert crops_lib.folder_names(CLASSES) == names


def test_the_other_crops_are_written_where_one_fails(tmp_path):
    class Two(FakeDetector):
        def _find(self, image, score_threshold):
            boxes = np.float32([[0, 0, 9, 9], [0, 0, 8, 8], [0, 0, 7, 7]])
            return Detections(boxes, np.float32([0.9, 0.8, 0.7]), np.int32([1, 2, 1]))

    (tmp_path / "crops").mkdir()
    (tmp_path / "crops/ring").write_text("a file")
    (outcome,) = annotate(
        [image_file(tmp_path / "a.png")], tmp_path / "out", Two(), crops=tmp_path / "crops"
    )
    assert (tmp_path / "crops/cross/a.png-2.jpg").exists()
    assert str(tmp_path / "crops/ring") in outcome.problem
    assert outcome.problem.endswith("(and 1 more crops)")


def test_a_crop_has_a_pixel_at_least(tmp_path):
    """Boxes are clipped to the image: one may be all edge."""

    class Edge(FakeDetector):
        def _find(self, image, score_threshold):
            corner = image.shape[1], image.shape[0]
            boxes = np.array([[*corner, *corner], [3, 4, 3, 4]], np.float32)
            return Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([1, 2], np.int32))

    (outcome,) = annotate(
        [image_file(tmp_path / "a.png")], tmp_path / "out", Edge(), crops=tmp_path / "crops"
    )
    assert outcome.problem is None
    for path in (tmp_path / "crops/ring/a.png-1.jpg", tmp_path / "crops/cross/a.png-2.jpg"):
        with Image.open(path) as crop:
            assert crop.size == (1, 1)


def test_crops_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "crops").write_text("a file")
    paths = [image_file(tmp_path / "a.png")]
    (outcome,) = annotate(paths, tmp_path / "out", crops=tmp_path / "crops")
    assert outcome.found["labels"] == ["cross"]
    assert str(tmp_path / "crops") in outcome.problem


@pytest.fixture
def annotations(tmp_path):
    """COCO's JSON of two images, whose ids are not their order, and of a detector's classes."""
    content = {
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "val/a.png"}],
        "categories": [{"id": 10 * k, "name": name} for k, name in enumerate(NAMES, start=1)],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_what_is_found_is_written_as_cocos_results(tmp_path, annotations):
    paths = [image_file(tmp_path / name) for name in ("a.png", "b.png")]
    ids = adapters.read_coco_ids(annotations)
    outcomes = annotate(paths, tmp_path / "out")
    outputs.check_coco(ids, paths, NAMES)
    outputs.write_coco(tmp_path / "results.json", outcomes, ids)
    rows = json.loads((tmp_path / "results.json").read_text())
    again = adapters.from_coco(rows, category_ids=[10 * k for k in range(1, len(NAMES) + 1)])
    assert list(again) == [3, 7]
    for found, outcome in zip(again.values(), outcomes, strict=True):
        assert len(found.scores) > 0
        np.testing.assert_allclose(found.boxes, outcome.found["boxes"], atol=1e-4)
        np.testing.assert_allclose(found.scores, outcome.found["scores"], rtol=1e-6)
        assert [NAMES[k - 1] for k in found.labels] == outcome.found["labels"]


@pytest.mark.parametrize(
    ("paths", "names", "message"),
    [
        (["c.png"], [], r"^c.png: no image of .*instances.json"),
        (["b.mp4"], [], r"^b.mp4: no image of"),
        (["x/b.png", "y/b.png"], [], r"^y/b.png and x/b.png: both are the image b.png of "),
        (["b.png"], ["ant"], r"instances.json: no category of the detector's class 'ant'$"),
    ],
)
def test_what_has_no_id_is_named_before_anything_is_done(annotations, paths, names, message):
    ids = adapters.read_coco_ids(annotations)
    with pytest.raises(errors.UserError, match=message):
        outputs.check_coco(ids, map(Path, paths), names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "not JSON"),
        ("[]", "no list 'images'"),
        (
            '{"images": [{"id": "x", "file_name": "a"}]}',
            r"images\[0\] has no file_name or no number",
        ),
        (
            '{"images": [{"id": 1, "file_name": "x/a"}, {"id": 2, "file_name": "y/a"}]}',
            "images: a has the ids 1 and 2",
        ),
        ('{"images": []}', "no list 'categories'"),
        (None, "not read: No such file"),
    ],
)
def test_annotations_without_ids_are_one_line(tmp_path, text, message):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.UserError, match=message) as caught:
        adapters.read_coco_ids(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_annotations_that_are_no_file_or_too_large_are_one_line(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(errors.UserError, match=r"pipe.json: not a regular file"):
        adapters.read_coco_ids(tmp_path / "pipe.json")
    monkeypatch.setattr(adapters, "_MOST_BYTES", 10)
    (tmp_path / "large.json").write_text('{"images": []}')
    with pytest.raises(errors.UserError, match=r"large.json: larger than 10 bytes"):
        adapters.read_coco_ids(tmp_path / "large.json")


def test_a_camera_is_a_video_of_some_seconds(tmp_path, monkeypatch):
    source = "lavfi:testsrc=size=64x48:rate=10"  # which never ends
    monkeypatch.setattr(video_lib, "_clock", lambda: 0.0)
    detector = FakeDetector(batch_size=4)
    outcome = annotate_lib.annotate_camera(
        detector, source, tmp_path / "c.mp4", score_threshold=0.5, seconds=1.2
    )
    assert outcome.problem is None
    assert (outcome.found["fps"], outcome.found["size"]) == (10, [64, 48])
    assert detector.batches == [1] + [1] * 12  # the first is none of the camera's
    assert len(read(tmp_path / "c.mp4")[0]) == len(outcome.found["frames"]) == 12


class SlowDetector(FakeDetector):
    """Takes half a second for an image, by its clock."""

    now = 0.0

    def __call__(self, images, *, score_threshold):
        self.now += 0.5 * len(images)
        return super().__call__(images, score_threshold=score_threshold)


def test_a_slow_detector_takes_the_seconds_that_are_asked_for(tmp_path, monkeypatch):
    detector = SlowDetector()
    monkeypatch.setattr(video_lib, "_clock", lambda: detector.now)
    outcome = annotate_lib.annotate_camera(
        detector, "lavfi:testsrc=size=64x48:rate=30", tmp_path / "c.mp4",
        score_threshold=0.5, seconds=10,
    )  # fmt: skip
    assert detector.now == pytest.approx(10, abs=0.51)
    assert outcome.found["times"] == [k / 2 for k in range(20)]
    assert len(outcome.found["frames"]) == 20
    times, length = times_of(tmp_path / "c.mp4")
    np.testing.assert_allclose(times, np.arange(20) / 2, atol=1e-4)
    assert length == pytest.approx(10, abs=0.5)


def test_a_camera_whose_own_clock_is_slow_ends_by_ours(tmp_path, monkeypatch):
    readings = itertools.count()
    monkeypatch.setattr(video_lib, "_clock", lambda: next(readings) / 2)
    outcome = annotate_lib.annotate_camera(
        FakeDetector(), "lavfi:testsrc=size=64x48:rate=2", tmp_path / "c.mp4",
        score_threshold=0.5, seconds=6,
    )  # fmt: skip
    assert len(outcome.found["frames"]) == 4  # with four readings at the first, then three each


def test_a_camera_ends_where_its_video_cannot_be_written(tmp_path):
    (tmp_path / "c.mp4").mkdir()
    outcome = annotate_lib.annotate_camera(
        FakeDetector(), "lavfi:testsrc=size=64x48:rate=10", tmp_path / "c.mp4", score_threshold=0.5
    )
    assert "c.mp4 was not written: Is a directory" in outcome.problem
    assert outcome.found["frames"]  # until the encoder gave its first


def test_a_camera_ends_whole_when_stopped(tmp_path):
    seen = []
    outcome = annotate_lib.annotate_camera(
        FakeDetector(), "lavfi:testsrc=size=64x48:rate=10", tmp_path / "c.mp4",
        score_threshold=0.5, on_frame=lambda *a: seen.append(a), stopped=lambda: len(seen) == 5,
    )  # fmt: skip
    assert outcome.problem is None
    assert len(read(tmp_path / "c.mp4")[0]) == len(outcome.found["frames"]) == 5


@pytest.mark.parametrize(
    "camera",
    [97, "v4l2:/dev/none", "/dev/none", "front", "-1", "", "a{b}", "{}", "v4l2:{b}", "C:/x"],
)
def test_a_camera_that_is_not_there_is_one_line(tmp_path, camera):
    outcome = annotate_lib.annotate_camera(
        FakeDetector(), camera, tmp_path / "c.mp4", score_threshold=0.5
    )
    assert outcome.found is None
    assert outcome.problem.startswith(f"camera {camera}: not a camera that can be opened (")
    assert "\n" not in outcome.problem


def test_nothing_is_overwritten_unasked(tmp_path):
    media_files.make_folder(tmp_path / "out")
    media_files.make_folder(tmp_path / "out")
    image_file(tmp_path / "out/a.png")
    with pytest.raises(errors.UserError, match=r"there are files in it.*--overwrite"):
        media_files.make_folder(tmp_path / "out")
    media_files.make_folder(tmp_path / "out", overwrite=True)


def test_a_folder_of_its_own_for_each_run_that_names_none(tmp_path):
    path = tmp_path / "deep/out"
    assert media_files.new_folder(path) == path
    (tmp_path / "deep/out-2").write_text("a file")
    (tmp_path / "deep/out-3").symlink_to("nowhere")
    assert media_files.new_folder(path) == tmp_path / "deep/out-4"


def test_commands_that_start_at_once_have_a_folder_each(tmp_path):
    with futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(media_files.new_folder, [tmp_path / "out"] * 40))
    assert len(set(made)) == 40
    assert set(made) == set(tmp_path.iterdir())


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    def failed(given, default):
        with (
            contextlib.suppress(ZeroDivisionError),
            media_files.output_folder(given, default=default, overwrite=False) as folder,
        ):
            assert folder.is_dir()
            1 / 0  # noqa: B018
        return folder

    assert not failed(None, tmp_path / "out").exists()
    assert not failed(str(tmp_path / "given"), tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    assert failed(str(tmp_path / "mine"), tmp_path / "out").exists()
    with media_files.output_folder(None, default=tmp_path / "out", overwrite=False) as folder:
        (folder / "a.png").touch()
    assert (tmp_path / "out/a.png").exists()


def test_a_named_folder_is_one_commands_alone(tmp_path):
    options = {"default": tmp_path / "out", "overwrite": True}
    named = str(tmp_path / "named")
    with media_files.output_folder(named, **options) as folder:
        with pytest.raises(errors.UserError, match="named: another command is writing there"):
            media_files.output_folder(named, **options).__enter__()
        assert folder.exists()
        (folder / "a.png").touch()
    with media_files.output_folder(named, **options) as folder:
        assert folder == tmp_path / "named"


def test_counts_in_words():
    assert outputs.in_words({"labels": []}) == "nothing"
    assert outputs.in_words({"labels": ["person", "dog", "dog"]}) == "2 dog, 1 person"
    frames = [{"labels": ["dog"]}, {"labels": []}, {"labels": ["dog"]}]
    assert outputs.in_words({"frames": frames}) == "3 frames, 2 dog"


def test_json_holds_a_line_for_each_input_that_was_read(tmp_path):
    found = {"boxes": [], "scores": [], "labels": []}
    outcomes = [
        outputs.Outcome(Path('a "b".jpg'), Path("x"), found),
        outputs.Outcome(Path("c.jpg"), Path("y"), None, "c.jpg: broken"),
    ]
    outputs.write_json(tmp_path / "a.json", outcomes)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {'a "b".jpg': found}


def test_an_output_that_is_a_file_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(errors.UserError, match=r"--output .*out"):
        media_files.make_folder(tmp_path / "out")


@pytest.mark.parametrize(
    ("count", "most", "rows"), [(1, 8, 1), (2, 8, 2), (3, 8, 4), (5, 8, 8), (9, 12, 12), (1, 1, 1)]
)
def test_padded_rows(count, most, rows):
    assert detector_lib.padded_rows(count, most=most) == rows


def test_detections_do_not_depend_on_the_batch(tiny):
    pixels = np.random.default_rng(0)
    images = [
        pixels.integers(0, 256, (height, 50, 3), dtype=np.uint8) for height in (40, 64, 90, 30, 50)
    ]
    together = tiny(images, score_threshold=0.0)
    assert any(len(found.scores) for found in together)
    for image, found in zip(images, together, strict=True):
        [alone] = tiny([image], score_threshold=0.0)
        for a, b in zip(alone, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_batches_of_other_counts_are_not_compiled_again(tiny):
    image = np.zeros((20, 20, 3), np.uint8)
    tiny([image] * 8)
    compiled = tiny._predict._cache_size()
    for count in (5, 6, 7, 13):
        assert len(tiny([image] * count)) == count
    assert tiny._predict._cache_size() == compiled


def test_the_package_gives_a_detector_at_first_use():
    assert ssd_jax.load_detector is load.load_detector
    assert {"load_detector", "__version__"} <= set(dir(ssd_jax))
    with pytest.raises(AttributeError, match="nonsense"):
        ssd_jax.nonsense  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'jax', 'tensorflow', 'tensorflow_datasets', 'flax', 'orbax'}"
    code = f"import sys, ssd_jax; assert not {heavy} & set(sys.modules); print(ssd_jax.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == version.VERSION


def test_importing_paper_modules_imports_no_datasets():
    code = (
        "import sys; from ssd_jax import boxes; "
        "assert not {'tensorflow_datasets', 'ssd_jax.detector'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_prints_names_as_they_are(monkeypatch, terminal):
    written = io.StringIO()
    screen = console.Console(file=written, force_terminal=terminal, width=200, soft_wrap=True)
    monkeypatch.setattr(outputs.console, "stdout", screen)
    with outputs.Progress(2) as progress:
        progress.done(outputs.Outcome(Path("c.jpg"), Path("out/c.jpg"), None, "c.jpg: broken"))
        progress.frame(Path("[red]video.mp4"), 8)
        progress.done(outputs.Outcome(Path("[red]a\udcff.jpg"), Path("b.jpg"), {"labels": ["dog"]}))
    if terminal:
        assert "2/2" in written.getvalue()
        assert "[red]a\\udcff.jpg: 1 dog -> b.jpg" in written.getvalue()
    else:
        assert written.getvalue() == "[red]a\\udcff.jpg: 1 dog -> b.jpg\n"
