"""COCO's 12 numbers, by faster-coco-eval: the same numbers as pycocotools, sooner."""

from collections.abc import Sequence
from typing import Any

import faster_coco_eval
import numpy as np

from ssd_jax.evaluation import voc

METRICS = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)


def evaluate(
    detections: voc.DetectionsById,
    ground_truth: voc.GroundTruthById,
    *,
    class_names: Sequence[str],
) -> dict[str, float]:
    """Average precision and recall as COCO defines them, from the inputs of `voc.evaluate`.

    Boxes become COCO's: the first pixel's left edge is 0, so x = xmin - 1 and w = xmax - xmin + 1.
    Difficult objects become crowds (`iscrowd` = 1): a detection inside one counts neither as hit
    nor as miss, but several may be excused by the same one. An object's area is that of its box.

    Args:
      detections: Image id -> (boxes `[N, 4]` pixels, scores `[N]`, labels `[N]`).
      ground_truth: Image id -> (boxes `[M, 4]` pixels, labels `[M]`, difficult `[M]`).
      class_names: Label k is `class_names[k - 1]`; rows with label 0 are padding.

    Returns:
      `METRICS` in [0, 1]: AP over the IoUs 0.5 to 0.95, at 0.5 and at 0.75; AP of small (area up to
      32^2), medium (96^2) and large objects; recall with 1, 10 and 100 detections of a class and
      image; recall of small, medium and large objects. -1 where there is no object of a kind, as
      in pycocotools.

    Raises:
      UserError: A detection's image has no ground truth, or a label has no name.
      ValueError: The arrays of an image differ in length.

    Source: Lin et al. 2014, and COCOeval.summarize of pycocotools.
    """
    found, objects = voc.flatten(detections, ground_truth, class_names=class_names)
    frame = {
        "info": {},
        "images": [{"id": image} for image in range(len(ground_truth))],
        "categories": [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)],
    }
    truth = _annotations(objects, {"iscrowd": objects.values.astype(int)})
    results = _annotations(found, {"score": found.values})
    evaluator = faster_coco_eval.COCOeval_faster(
        faster_coco_eval.COCO({**frame, "annotations": truth}),
        faster_coco_eval.COCO({**frame, "annotations": results}),
        iouType="bbox",
        print_function=_silence,
    )
    evaluator.run()
    return {name: float(value) for name, value in zip(METRICS, evaluator.stats[:12], strict=True)}


def _annotations(rows: voc.Rows, values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """COCO's records of the boxes; ids count from 1, since 0 means unmatched."""
    corner, extent = rows.boxes[:, :2] - 1, rows.boxes[:, 2:] - rows.boxes[:, :2] + 1
    columns = {
        "image_id": rows.image,
        "category_id": rows.labels,
        "bbox": np.concatenate([corner, extent], axis=1),
        "area": np.prod(extent, axis=1),
        "iscrowd": np.zeros(len(rows.image), int),
        **values,
    }
    records = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {"id": k, **dict(zip(columns, record, strict=True))}
        for k, record in enumerate(records, start=1)
    ]


def _silence(*_: object) -> None:
    """Prints nothing."""
