"""Writes the outputs of an evaluation: metrics, detections and the report."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax import build, config_files, files
from ssd_jax import config as config_lib
from ssd_jax.data import datasets
from ssd_jax.evaluation import evaluated, gallery, report, run


def write(
    folder: Path,
    result: run.Evaluation,
    *,
    origin: str,
    network: bool = True,
    config: config_lib.Config,
    split: datasets.Split,
    metrics: Sequence[Mapping[str, Any]],
    samples: Sequence[np.ndarray],
) -> dict[str, Path]:
    """Writes `evaluation.json`, `detections.npz` and `report.html`.

    Args:
      folder: Output folder; it is created if needed.
      result: The figures, and what they were computed from.
      origin: Source of the detections: a checkpoint or a file.
      network: Whether the detections are those of the network that `config` describes. If not, the
        report shows the dataset's settings alone, and no default boxes.
      config: The config of the run.
      split: The split that was evaluated.
      metrics: Rows of `metrics.jsonl`, for the training curves.
      samples: Images with their detections drawn, `[H, W, 3]` uint8 each.

    Returns:
      The path of each file by a word for its content.

    Raises:
      UserError: If the report can't be written.
      OSError: If another file can't be written.
    """
    places = {
        "figures": folder / "evaluation.json",
        "detections": folder / evaluated.NAME,
        "report": folder / "report.html",
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.write(places["figures"], json.dumps(_figures(result), indent=2) + "\n")
    as_json = config_files.to_dict(config)
    source = evaluated.Evaluated(
        config=as_json if network else {"data": as_json["data"]},
        class_names=split.class_names,
        sizes=_sizes(split, result.images),
        detections=result.detections,
        ground_truth=result.ground_truth,
    )
    evaluated.save(folder, source)
    report.write(
        places["report"],
        title=f"{'SSD' if network else 'Detections'} on {config.data.dataset}, "
        f"{config.data.eval_split}",
        settings={
            "detections": origin,
            "images": str(result.images),
            **evaluated.settings(source.config),
        },
        source=source,
        coco=result.coco,
        priors_cxcywh=_priors(config.model, split) if network else None,
        metrics=metrics,
        samples=samples,
        read_image=gallery.image_reader(split, list(source.sizes), config.data),
    )
    return places


def _figures(result: run.Evaluation) -> dict[str, Any]:
    """Content of `evaluation.json`; undefined values are null."""
    return {
        "images": result.images,
        "mean_ap_voc07": _plain(result.voc07.mean_ap),
        "mean_ap_area": _plain(result.area.mean_ap),
        "ap_voc07": {name: _plain(ap) for name, ap in result.voc07.ap.items()},
        "ap_area": {name: _plain(ap) for name, ap in result.area.ap.items()},
        "coco": {name: _plain(value) for name, value in result.coco.items()},
    }


def _plain(value: float) -> float | None:
    """Converts a number to JSON: NaN becomes null."""
    return None if math.isnan(value) else float(value)


def _sizes(split: datasets.Split, count: int) -> dict[str, tuple[int, int]]:
    """(height, width) in pixels of the first `count` images of a split, by name."""
    records = (split.source[index] for index in range(count))
    return {record["name"]: (record["height"], record["width"]) for record in records}


def _priors(config: config_lib.ModelConfig, split: datasets.Split) -> np.ndarray:
    """`[P, 4]` default boxes of the network, cxcywh."""
    model = build.model(config, len(split.class_names))
    return build.priors(config, model)
