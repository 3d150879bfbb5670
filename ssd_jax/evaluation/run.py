"""Evaluation of a detector on a split: images -> detections -> VOC's and COCO's figures."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ssd_jax import build, distributed, errors, visualize
from ssd_jax import detector as detector_lib
from ssd_jax.data import annotations, datasets, images, loader
from ssd_jax.evaluation import coco, results, voc

SAMPLES = 16  # images of a split that are drawn with their detections
SAMPLE_SIDE = 800  # pixels of a sample's longer side, at most


class Truth(NamedTuple):
    """Ground truth by image name in both conventions.

    Attributes:
      voc: Ground truth from `datasets.ground_truth`.
      coco: Ground truth from `datasets.coco_ground_truth`.
    """

    voc: voc.GroundTruthById
    coco: coco.GroundTruthById


class Evaluation(NamedTuple):
    """Figures of a detector on a split.

    Attributes:
      voc07: VOC 2007's 11-point metric.
      area: VOC 2010's metric, the area under the interpolated curve.
      coco: COCO's 12 numbers.
      images: How many images were evaluated.
      detections: Detections for `voc.evaluate` that the metrics were computed from.
      ground_truth: Ground truth for `voc.evaluate`.
    """

    voc07: voc.Result
    area: voc.Result
    coco: dict[str, float]
    images: int
    detections: voc.DetectionsById
    ground_truth: voc.GroundTruthById


def evaluate(
    detector: detector_lib.Detector,
    split: datasets.Split,
    *,
    max_images: int = 0,
    on_image: Callable[[int], None] = lambda done: None,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Runs a detector over a split and computes all figures.

    Args:
      detector: The detector; its classes have to be those of the split.
      split: The split to evaluate on.
      max_images: Evaluate only the first `max_images` images; 0: all.
      on_image: Called with the number of images done, for a progress display.
      on_batch: Called before each batch, as often in each of several processes.

    Raises:
      UserError: While reading, if an image does not decode.
    """
    truth = truth_of(split, max_images=max_images)
    found = detect(detector, split, count=len(truth.voc), on_image=on_image, on_batch=on_batch)
    return figures(found, truth, class_names=split.class_names)


def truth_of(split: datasets.Split, *, max_images: int = 0) -> Truth:
    """Returns the ground truth of a split, or of its first `max_images` images.

    Raises:
      UserError: If the split holds an image twice, or has no annotations.
    """
    if not split.annotated:
        raise errors.UserError(
            "the split has no annotations to evaluate with; evaluate.py detects in it, and its "
            "results go to the dataset's server"
        )
    truth, of_coco = datasets.ground_truth(split), datasets.coco_ground_truth(split)
    names = dict.fromkeys(list(truth)[: max_images or None])
    return Truth(
        voc={name: truth[name] for name in names},
        coco={name: objects for name, objects in of_coco.items() if name in names},
    )


def figures(found: results.Found, truth: Truth, *, class_names: Sequence[str]) -> Evaluation:
    """All figures of detections; those in images that `truth` does not have are passed over.

    Raises:
      UserError: If a label has no name.
    """
    of_voc = {name: rows for name, rows in found.voc.items() if name in truth.voc}
    of_coco = {name: rows for name, rows in found.coco.items() if name in truth.coco}
    curves = voc.precision_recall(of_voc, truth.voc, class_names=class_names)
    return Evaluation(
        voc07=voc.summarize(curves, use_07_metric=True),
        area=voc.summarize(curves, use_07_metric=False),
        coco=coco.evaluate(of_coco, truth.coco, class_names=class_names),
        images=len(truth.voc),
        detections=of_voc,
        ground_truth=truth.voc,
    )


def detect(
    detector: detector_lib.Detector,
    split: datasets.Split,
    *,
    count: int,
    on_image: Callable[[int], None] = lambda done: None,
    on_batch: Callable[[], None] = lambda: None,
) -> results.Found:
    """Detections in the first `count` images of a split.

    Several processes share the images, and each gets all detections.
    """
    processes = jax.process_count()
    rows: list[tuple[Any, ...]] = []
    for number, raw in raw_detections(detector, split, count=count, on_batch=on_batch):
        rows.append((number, *raw))
        on_image(min(len(rows) * processes, count))
    found = results.Found({}, {})
    most = detector.config.eval.max_detections
    for index, boxes, scores, labels in _of_all_processes(rows, count, most):
        used = scores > 0
        record = split.source[index]
        size = record["height"], record["width"]
        rest = scores[used], labels[used]
        found.voc[record["name"]] = annotations.to_voc_pixels(boxes[used], *size), *rest
        found.coco[record["name"]] = annotations.to_bboxes(boxes[used], *size), *rest
    return found


def raw_detections(
    detector: detector_lib.Detector,
    split: datasets.Split,
    *,
    count: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, detector_lib.Detections]]:
    """(index, detections in [0, 1], all D rows) of this process's share of `count` images."""
    devices = jax.local_device_count()
    batches = loader.evaluation_batches(
        split.source,
        count=count,
        batch_size=-(-detector.config.eval.batch_size // devices) * devices,
        decoding=build.decoding(detector.config.data),
        shard=loader.Shard(jax.process_index(), jax.process_count()),
    )
    return detector.predict_batches(_told(batches, on_batch))


def _told(batches: Iterator[loader.Batch], on_batch: Callable[[], None]) -> Iterator[loader.Batch]:
    for batch in batches:
        on_batch()
        yield batch


def _of_all_processes(
    rows: Sequence[tuple[Any, ...]], count: int, max_detections: int
) -> list[tuple[Any, ...]]:
    """Rows (index, boxes, scores, labels) of the images of every process, by index."""
    if jax.process_count() == 1:
        return list(rows)
    share = -(-count // jax.process_count())
    filler = (
        -1,
        np.zeros((max_detections, 4), np.float32),
        np.zeros(max_detections, np.float32),
        np.zeros(max_detections, np.int32),
    )
    padded = [*rows, *[filler] * (share - len(rows))]
    columns = distributed.gather(tuple(np.stack(column) for column in zip(*padded, strict=True)))
    flat = [column.reshape(-1, *column.shape[2:]) for column in columns]
    everyone = zip(*flat, strict=True)
    return sorted((row for row in everyone if row[0] >= 0), key=lambda row: row[0])


def draw_samples(
    detector: detector_lib.Detector, split: datasets.Split, *, count: int = SAMPLES
) -> list[np.ndarray]:
    """Detections drawn on the first images of a split.

    Only one image at a time is held at full size.

    Returns:
      `[H, W, 3]` uint8 each, neither side longer than `SAMPLE_SIDE`.
    """
    shown: list[tuple[np.ndarray, np.ndarray]] = []

    def decoded() -> Iterator[np.ndarray]:
        for index in range(min(count, len(split.source))):
            image = build.image(detector.config.data, split.source[index])
            small = images.shrink(image, height=SAMPLE_SIDE, width=SAMPLE_SIDE)
            scale = np.divide(small.shape[1::-1], image.shape[1::-1], dtype=np.float32)
            shown.append((small, np.tile(scale, 2)))
            yield image
            del image  # before the next one is decoded

    found = detector(decoded())
    return [
        draw(image, one._replace(boxes=one.boxes * scale), class_names=split.class_names)
        for (image, scale), one in zip(shown, found, strict=True)
    ]


def draw(
    image: np.ndarray, found: detector_lib.Detections, *, class_names: Sequence[str]
) -> np.ndarray:
    """Draws detections, with boxes in pixels, on a `[H, W, 3]` uint8 copy of an image."""
    boxes, scores, labels = map(np.asarray, found)
    return visualize.draw(image, boxes, labels, scores, class_names=class_names)


def check_classes(detector: detector_lib.Detector, split: datasets.Split) -> None:
    """Checks that a detector has the classes of a split.

    Raises:
      UserError: If the names, their number or their order differ.
    """
    if detector.class_names != split.class_names:
        raise errors.UserError(
            f"the checkpoint has {len(detector.class_names)} classes "
            f"({', '.join(detector.class_names)}), dataset {detector.config.data.dataset!r} has "
            f"{len(split.class_names)} ({', '.join(split.class_names)})"
        )
