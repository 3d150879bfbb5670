"""A video of moving objects, from training on images of them to the boxes in it."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import reference
import tiny_run
from PIL import Image

from ssd_jax.data import synthetic_scenes, synthetic_shapes

RATE, SECONDS = 10, 20  # frames a second
SIDES = 240, 360  # height and width
LANE = 120  # columns that each object has for itself
NAMES = ("ball", "ring", "star")


def moving(name, *, lane, seed):
    """An object that goes up and down its lane: what paints it into a frame, and its box there."""
    shape = synthetic_shapes.silhouette(np.random.default_rng(seed), name, 90.0)
    solid = np.argwhere(shape.coverage >= 0.5)
    low, high = solid.min(axis=0), solid.max(axis=0) + 1

    def paint(frame, number):
        room = SIDES[0] - high[0] + low[0]
        row = round(room * (0.5 - 0.5 * np.cos(2 * np.pi * (number / 60 + lane / 3))))
        column = lane * LANE + 15 + round(8 * np.sin(number / 9))
        offset = (row - low[0], column - low[1])
        painted = synthetic_scenes._pasted(
            np.random.default_rng(seed), frame, name, shape, offset, 1.0
        )
        (y0, x0), (y1, x1) = low + offset, high + offset
        return painted, [x0, y0, x1, y1]

    return paint


def scene():
    """Moving objects on a cluttered ground: what gives a frame and its boxes, `[objects, 4]`."""
    ground = synthetic_scenes._ground(np.random.default_rng(5), *SIDES)
    objects = [moving(name, lane=lane, seed=lane) for lane, name in enumerate(NAMES)]

    def at(number):
        frame, boxes = ground, []
        for paint in objects:
            frame, box = paint(frame, number)
            boxes.append(box)
        return np.round(255 * frame).astype(np.uint8), boxes

    return at


def write_video(path, at):
    """Twenty seconds of a scene; its boxes, `[frames, objects, 4]`."""
    truth = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width = SIDES
        stream.bit_rate = 8_000_000
        for number in range(RATE * SECONDS):
            pixels, boxes = at(number)
            truth.append(boxes)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return np.array(truth)


def write_images(folder, at):
    """Moments of a scene that its video does not have, in YOLO's form."""
    for split, numbers in (("train", range(40)), ("val", range(40, 44))):
        for name in ("images", "labels"):
            (folder / name / split).mkdir(parents=True)
        for number in numbers:
            pixels, boxes = at(4.7 * number + 0.5)
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            corners = np.array(boxes) / [*SIDES[::-1], *SIDES[::-1]]
            center, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
            lines = [
                " ".join(map(str, (label, *row)))
                for label, row in enumerate(np.concatenate([center, size], 1))
            ]
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("\n".join(NAMES))


def watched(path):
    """Frames, frames a second and seconds of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        seconds = float(stream.duration * stream.time_base)
        return sum(1 for _ in container.decode(stream)), stream.average_rate, seconds


def found(frame, name, box):
    """Whether a detection of that class overlaps the box by more than half."""
    return any(
        label == name and reference.iou(detected, box) > 0.5
        for label, detected in zip(frame["labels"], frame["boxes"], strict=True)
    )


# The quickstart with half its channels and a smaller input, for fewer steps.
_CONFIG = """
from configs import quickstart


def get_config():
    cfg = quickstart.get_config()
    cfg.model.width, cfg.model.image_size = 0.125, 257
    cfg.data.dataset, cfg.data.path, cfg.data.cache_dir = "yolo", {path!r}, {cache!r}
    cfg.data.eval_split = "val"
    cfg.train.steps = 120
    return cfg
"""


def run(*command):
    ((status, stderr),) = tiny_run.ends([tiny_run.start(*command)], timeout=1200)
    assert status == 0, stderr


@pytest.mark.slow
def test_a_short_training_finds_the_objects_of_a_video(tmp_path):
    config, video, at = tmp_path / "short.py", tmp_path / "video.mp4", scene()
    write_images(tmp_path / "images", at)
    truth = write_video(video, at)
    paths = {"path": str(tmp_path / "images"), "cache": str(tmp_path / "cache")}
    config.write_text(_CONFIG.format(**paths))
    run("train.py", "--config", config, "--workdir", tmp_path / "run")
    run("detect.py", "--workdir", tmp_path / "run", video, "--output", tmp_path / "out")
    assert watched(tmp_path / "out/video.mp4") == watched(video) == (200, Fraction(10), 20.0)
    listed = json.loads((tmp_path / "out/detections.json").read_text(encoding="utf-8"))
    frames = listed[str(video)]["frames"]
    for place, name in enumerate(NAMES):
        hits = [
            found(frame, name, boxes[place]) for frame, boxes in zip(frames, truth, strict=True)
        ]
        assert np.mean(hits) > 0.9, name
