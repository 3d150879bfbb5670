import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import optax
import pytest
import scripts
from PIL import Image

from ssd_jax import build, config_files
from ssd_jax import config as config_lib
from ssd_jax.data import synthetic_shapes
from ssd_jax.media import video as video_lib
from ssd_jax.training import checkpoint, step


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """What `train.py` leaves of a network with random parameters."""
    return write_workdir(tmp_path_factory.mktemp("runs") / "workdir")


def write_workdir(folder):
    """A run of a tiny network."""
    folder.mkdir()
    config = config_lib.Config()
    config.data.dataset, config.data.canvas = "synthetic", 64
    config.model.width = 0.125
    config.eval.batch_size, config.eval.max_detections = 4, 3
    config_files.save(folder / "config.json", config, synthetic_shapes.CLASS_NAMES)
    model = build.model(config.model, len(synthetic_shapes.CLASS_NAMES))
    state = step.init_state(model, optax.sgd(0.1), build.input_size(config.model), seed=0)
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, state, run={}, mean_ap=0.5)
        manager.wait_until_finished()
    return folder


refused = scripts.refused
detect = functools.partial(scripts.run, "detect.py")


def noise(path, *, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_images_and_videos_are_annotated_and_listed(workdir, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    sizes = {"a.jpg": (90, 60), "b.png": (50, 70)}
    for name, size in sizes.items():
        noise(photos / name, size=size)
    with video_lib.video_writer(tmp_path / "video.mp4", (48, 64), rate=Fraction(10)) as write:
        for level in range(6):
            write(np.full((48, 64, 3), 40 * level, np.uint8), Fraction(level, 10))
    done = detect(
        "--workdir", workdir, photos, tmp_path / "video.mp4", "--output", output,
        "--score_threshold", 0,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((output / "detections.json").read_text(encoding="utf-8"))
    assert list(found) == [
        str(photos / "a.jpg"),
        str(photos / "b.png"),
        str(tmp_path / "video.mp4"),
    ]
    video = found.pop(str(tmp_path / "video.mp4"))
    assert (video["fps"], video["size"], len(video["frames"])) == (10, [64, 48], 6)
    assert (output / "video.mp4").exists()
    for path, size in zip(found, sizes.values(), strict=True):
        boxes = np.array(found[path]["boxes"])
        assert boxes.shape == (len(found[path]["scores"]), 4)
        assert 1 <= len(boxes) <= 3
        assert (boxes >= 0).all()
        assert (boxes <= [*size, *size]).all()
        assert set(found[path]["labels"]) <= set(synthetic_shapes.CLASS_NAMES)
        assert f"{path}: " in done.stdout
        with Image.open(output / Path(path).name) as copy:
            assert copy.size == size


def test_cocos_results_have_the_ids_of_the_annotations(workdir, tmp_path):
    path = noise(tmp_path / "b.png", size=(50, 70))
    categories = [
        {"id": 3 * k, "name": n} for k, n in enumerate(synthetic_shapes.CLASS_NAMES, start=1)
    ]
    content = {"images": [{"id": 42, "file_name": "b.png"}], "categories": categories}
    (tmp_path / "x.json").write_text(json.dumps(content))
    given = "--workdir", workdir, "--coco", tmp_path / "x.json", "--score_threshold", 0
    done = detect(*given, path, "--output", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    found = json.loads((tmp_path / "out" / "detections.json").read_text())[str(path)]
    assert len(rows) == len(found["scores"]) > 0
    name_of = {3 * k: n for k, n in enumerate(synthetic_shapes.CLASS_NAMES, start=1)}
    assert [name_of[row["category_id"]] for row in rows] == found["labels"]
    assert {row["image_id"] for row in rows} == {42}
    other = noise(tmp_path / "other.png", size=(50, 70))
    assert refused(detect(*given, path, other, "--output", tmp_path / "none"), other, "x.json")
    assert not (tmp_path / "none").exists()


def test_a_broken_image_is_named_and_the_others_are_done(workdir, tmp_path):
    """One whose name begins like a flag is named behind two dashes."""
    good, broken = noise(tmp_path / "--good.png", size=(40, 40)), tmp_path / "broken.jpg"
    broken.write_text("no image")
    step_folder = workdir / "checkpoints" / "0"
    done = detect(
        "--checkpoint", step_folder, broken, f"--output={tmp_path / 'out'}", "--", good.name,
        cwd=tmp_path,
    )  # fmt: skip
    assert refused(done, broken)
    assert list(json.loads((tmp_path / "out" / "detections.json").read_text())) == [good.name]
    assert (tmp_path / "out" / good.name).exists()
    assert f"{good.name}: " in done.stdout


def test_a_broken_video_is_named_and_its_beginning_done(workdir, tmp_path):
    path = tmp_path / "video.mp4"
    pixels = np.random.default_rng(0)
    with video_lib.video_writer(path, (48, 64), rate=Fraction(10)) as write:
        for k in range(20):
            write(pixels.integers(0, 256, (48, 64, 3), dtype=np.uint8), Fraction(k, 10))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    done = detect("--workdir", workdir, path, "--output", tmp_path / "out")
    assert refused(done, path, "frames are kept")
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert 5 <= len(found[str(path)]["frames"]) < 20


def test_a_second_run_gets_a_folder_of_its_own(workdir, tmp_path):
    path = noise(tmp_path / "a.png", size=(40, 40))
    for folder in ("detections", "detections-2"):
        done = detect("--workdir", workdir, path, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{folder}/detections.json" in done.stdout
        assert (tmp_path / folder / "a.png").exists()
    assert refused(detect("--workdir", workdir, path, "--output", "detections", cwd=tmp_path))


def test_a_camera_replaces_no_video_of_its_name(workdir, tmp_path):
    with video_lib.video_writer(tmp_path / "camera.mp4", (48, 64), rate=Fraction(10)) as write:
        write(np.zeros((48, 64, 3), np.uint8), Fraction(0))
    done = detect(
        "--workdir", workdir, "camera.mp4", "--camera", "lavfi:testsrc=size=32x32:rate=10",
        "--seconds", "0.1", "--output", "out", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    sizes = [video["size"] for video in found.values()]
    assert sizes == [[64, 48], [32, 32]]
    for name, size in zip(("camera.mp4", "camera-2.mp4"), sizes, strict=True):
        with av.open(str(tmp_path / "out" / name)) as container:
            video = container.streams.video[0]
            assert [video.width, video.height] == size


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_camera_whole(workdir, tmp_path, number):
    """Ctrl-C is its usual end; SIGTERM is told by the exit status."""
    heeding = (  # whatever started the tests may ignore the signal
        f"import os, signal, sys; signal.signal({number:d}, signal.SIG_DFL); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [
        sys.executable, "-c", heeding, scripts.ROOT / "detect.py", "--workdir", workdir,
        "--output", "out", "--camera", "lavfi:testsrc=size=32x32:rate=10", "--crops",
        "--score_threshold", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.glob("out/crops/*/*.jpg")):
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == (0 if number == signal.SIGINT else 143), said
    assert said.count("\n") == (number == signal.SIGTERM)
    [video] = json.loads((tmp_path / "out/detections.json").read_text()).values()
    with av.open(str(tmp_path / "out/camera.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(video["frames"]) > 0


def test_where_nothing_is_found_it_says_what_was_looked_for(workdir, tmp_path):
    path = noise(tmp_path / "a.png", size=(40, 40))
    any_name = f"object of the {len(synthetic_shapes.CLASS_NAMES)} classes"
    for threshold, flags, names in (
        (1, [], any_name),
        (1, ["--classes", "ring,star"], "ring or star"),
        (0, [], None),
    ):
        done = detect(
            "--workdir", workdir, path, "--score_threshold", threshold, *flags, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, "")
        said = " ".join(done.stdout.split())
        if names:
            assert "a.png: nothing -> " in said
            assert f"No {names} scores more than 1: a lower --score_threshold shows more." in said
        else:
            assert "scores more than" not in said


def test_no_input_is_refused(workdir):
    assert refused(detect("--workdir", workdir), "image")


def test_a_missing_file_is_named(workdir, tmp_path):
    assert refused(detect("--workdir", workdir, tmp_path / "none.jpg"), tmp_path / "none.jpg")


def test_an_empty_folder_is_named(workdir, tmp_path):
    assert refused(detect("--workdir", workdir, tmp_path), tmp_path)


def test_no_workdir_is_refused(tmp_path):
    image = noise(tmp_path / "a.png", size=(40, 40))
    assert refused(detect(image), "--workdir")


def test_a_workdir_without_a_checkpoint_is_named(workdir, tmp_path):
    image, empty = noise(tmp_path / "a.png", size=(40, 40)), tmp_path / "empty"
    empty.mkdir()
    assert refused(detect("--workdir", empty, image), empty)
    shutil.copy(workdir / "config.json", empty)
    assert refused(detect("--workdir", empty, image), empty)
    assert not (tmp_path / "detections").exists()


@pytest.mark.parametrize("step_folder", ["nonsense", "{workdir}/checkpoints/99"])
def test_a_checkpoint_that_is_none_is_refused(workdir, tmp_path, step_folder):
    image = noise(tmp_path / "a.png", size=(40, 40))
    refused(detect("--checkpoint", step_folder.format(workdir=workdir), image))


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--score_threshold=2", "score_threshold"),
        ("--no_such_flag=1", "no_such_flag"),
        ("--config.eval.x=1", "Field x "),
    ],
)
def test_a_wrong_flag_is_named(workdir, flag, named):
    assert refused(detect("--workdir", workdir, flag, "a.png"), named)


def test_help_shows_the_usage():
    done = detect("--help")
    assert done.returncode == 0
    assert "python detect.py --workdir" in done.stdout
    assert "--score_threshold" in done.stdout
