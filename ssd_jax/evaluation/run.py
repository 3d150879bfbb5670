"""Evaluation of a detector on a split: pictures -> detections -> VOC's and COCO's figures."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax import distributed, errors, visualize
from ssd_jax.data import annotations, datasets, images, loader
from ssd_jax.evaluation import coco, report, voc

SAMPLES = 16  # pictures of a split that are drawn with their detections


class Evaluation(NamedTuple):
    """Figures of a detector on a split.

    Attributes:
      voc07: VOC 2007's 11-point metric.
      area: VOC 2010's metric, the area under the interpolated curve.
      coco: COCO's 12 numbers.
      images: How many pictures were evaluated.
    """

    voc07: voc.Result
    area: voc.Result
    coco: dict[str, float]
    images: int


def evaluate(
    detector: detector_lib.Detector,
    split: datasets.Split,
    *,
    max_images: int = 0,
    on_picture: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Runs a detector over a split and computes all figures.

    Args:
      detector: The detector; its classes have to be those of the split.
      split: What to evaluate on.
      max_images: Evaluate only the first so many pictures; 0: all.
      on_picture: Called with the number of pictures done, for a progress display.

    Raises:
      UserError: While reading, if a picture does not decode.
    """
    truth = datasets.ground_truth(split)
    names = list(truth)[: max_images or None]
    found = detect(detector, split, count=len(names), on_picture=on_picture)
    truth = {name: truth[name] for name in names}
    curves = voc.precision_recall(found, truth, class_names=split.class_names)
    return Evaluation(
        voc07=voc.summarize(curves, use_07_metric=True),
        area=voc.summarize(curves, use_07_metric=False),
        coco=coco.evaluate(found, truth, class_names=split.class_names),
        images=len(names),
    )


def detect(
    detector: detector_lib.Detector,
    split: datasets.Split,
    *,
    count: int,
    on_picture: Callable[[int], None] = lambda done: None,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Detections in the first `count` pictures of a split, as `voc.evaluate` takes them.

    Several processes share the pictures, and each gets all detections.

    Returns:
      By picture's name: boxes `[N, 4]` in VOC's pixels (1-based, inclusive), scores and labels.
    """
    processes = jax.process_count()
    rows: list[tuple[Any, ...]] = []
    for number, raw in raw_detections(detector, split, count=count):
        rows.append((number, *raw))
        on_picture(min(len(rows) * processes, count))
    found = {}
    most = detector.config.eval.max_detections
    for index, boxes, scores, labels in _of_all_processes(rows, count, most):
        used = scores > 0
        record = split.source[index]
        boxes = annotations.to_voc_pixels(boxes[used], record["height"], record["width"])
        found[record["name"]] = boxes, scores[used], labels[used]
    return found


def raw_detections(
    detector: detector_lib.Detector, split: datasets.Split, *, count: int
) -> Iterator[tuple[int, detector_lib.Detections]]:
    """(index, detections in [0, 1], all D rows) of this process's share of `count` pictures."""
    data, options = detector.config.data, detector.config.eval
    devices, processes = jax.local_device_count(), jax.process_count()
    batches = loader.evaluation_batches(
        split.source,
        count=count,
        batch_size=-(-options.batch_size // devices) * devices,
        canvas=data.canvas,
        process=jax.process_index(),
        processes=processes,
        threads=data.threads,
    )
    return detector.predict_batches(batches)


def _of_all_processes(
    rows: Sequence[tuple[Any, ...]], count: int, max_detections: int
) -> list[tuple[Any, ...]]:
    """Rows (index, boxes, scores, labels) of the pictures of every process, by index."""
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
    """Detections drawn on the first pictures of a split, `[H, W, 3]` uint8 each."""
    records = [split.source[index] for index in range(min(count, len(split.source)))]
    pictures = [images.decode(record["image"], name=record["name"]) for record in records]
    return [
        draw(picture, found, class_names=split.class_names)
        for picture, found in zip(pictures, detector(pictures), strict=True)
    ]


def draw(
    picture: np.ndarray, found: detector_lib.Detections, *, class_names: Sequence[str]
) -> np.ndarray:
    """`[H, W, 3]` uint8 copy of a picture with its detections, whose boxes are in its pixels."""
    boxes, scores, labels = map(np.asarray, found)
    return visualize.draw(picture, boxes, labels, scores, class_names=class_names)


def open_split(
    config: config_lib.DataConfig, split: str, *, training: bool = False
) -> datasets.Split:
    """Opens a split of a config's dataset, which is prepared first where it is not yet.

    Args:
      config: Which dataset.
      split: Which of its splits.
      training: Leave out what cannot be read, up to `config.max_bad_share`; evaluation skips none.

    Raises:
      UserError: If the dataset or the split does not exist, or is broken.
    """
    return datasets.load(
        config.dataset,
        split,
        path=config.path,
        archives=config.archives,
        cache_dir=Path(config.cache_dir).expanduser(),
        max_bad_share=config.max_bad_share if training else None,
    )


def check_classes(detector: detector_lib.Detector, split: datasets.Split) -> None:
    """Makes sure that a detector knows the classes of a split.

    Raises:
      UserError: If the names, their number or their order differ.
    """
    if detector.class_names != split.class_names:
        raise errors.UserError(
            f"the checkpoint has {len(detector.class_names)} classes "
            f"({', '.join(detector.class_names)}), dataset {detector.config.data.dataset!r} has "
            f"{len(split.class_names)} ({', '.join(split.class_names)})"
        )


def write(
    folder: Path,
    result: Evaluation,
    *,
    config: config_lib.Config,
    metrics: Sequence[Mapping[str, Any]],
    pictures: Sequence[np.ndarray],
) -> dict[str, Path]:
    """Writes `evaluation.json` and `report.html`.

    Args:
      folder: Where to.
      result: The figures.
      config: Of the run.
      metrics: Rows of `metrics.jsonl`, for the curves.
      pictures: `[H, W, 3]` uint8 each, for the gallery.

    Returns:
      What was written: a word for it, and where it lies.
    """
    places = {"figures": folder / "evaluation.json", "report": folder / "report.html"}
    figures = {
        "images": result.images,
        "mean_ap_voc07": _plain(result.voc07.mean_ap),
        "mean_ap_area": _plain(result.area.mean_ap),
        "ap_voc07": {name: _plain(ap) for name, ap in result.voc07.ap.items()},
        "ap_area": {name: _plain(ap) for name, ap in result.area.ap.items()},
        "coco": {name: _plain(value) for name, value in result.coco.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    places["figures"].write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    report.write(
        places["report"],
        title=f"SSD on {config.data.dataset}, {config.data.eval_split}",
        settings=_settings(config),
        voc07=result.voc07,
        area=result.area,
        coco=result.coco,
        metrics=metrics,
        pictures=pictures,
    )
    return places


def _plain(value: float) -> float | None:
    """NaN, which JSON does not know, as null."""
    return None if math.isnan(value) else float(value)


def _settings(config: config_lib.Config) -> dict[str, str]:
    """The fields of a config by their dotted names."""
    flat = {"seed": str(config.seed)}
    for part in ("model", "data", "train", "eval"):
        fields = dataclasses.asdict(getattr(config, part))
        flat |= {f"{part}.{name}": str(value) for name, value in fields.items()}
    return flat
