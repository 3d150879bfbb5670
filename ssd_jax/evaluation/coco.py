"""COCO's 12 numbers, by faster-coco-eval: the same numbers as pycocotools, sooner."""

from collections.abc import Mapping, Sequence
from typing import Any

import faster_coco_eval
import numpy as np

from ssd_jax.evaluation import voc

DetectionsById = Mapping[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]
GroundTruthById = Mapping[Any, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]

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
    detections: DetectionsById,
    ground_truth: GroundTruthById,
    *,
    class_names: Sequence[str],
) -> dict[str, float]:
    """Average precision and recall as COCO defines them.

    Boxes are COCO's, (x, y, width, height) in continuous pixels, the first of which starts at 0,
    and taken as they are. A detection inside a crowd counts neither as hit nor as miss, and several
    may be excused by the same one. Of equal scores, those of the earlier image come first; COCO's
    own order is that of the images' ids.

    Args:
      detections: Image id -> (bboxes `[N, 4]`, scores `[N]`, labels `[N]`).
      ground_truth: Image id -> (bboxes `[M, 4]`, labels `[M]`, crowd `[M]` bool, areas `[M]`, by
        which objects are small, medium or large: COCO's are those of the outlines).
      class_names: Label k is `class_names[k - 1]`; rows with label 0 are padding.

    Returns:
      `METRICS` in [0, 1]: AP over the IoUs 0.5 to 0.95, at 0.5 and at 0.75; AP of small (area up to
      32^2), medium (96^2) and large objects; recall with 1, 10 and 100 detections of a class and
      image; recall of small, medium and large objects. -1 where there is no object of a kind, as
      in pycocotools.

    Raises:
      UserError: If a detection's image has no ground truth, or a label has no name.
      ValueError: If the arrays of an image differ in length.

    Source: Lin et al. 2014, and COCOeval.summarize of pycocotools.
    """
    without_areas = {image: row[:3] for image, row in ground_truth.items()}
    found, objects = voc.flatten(detections, without_areas, class_names=class_names)
    areas = [np.asarray(row[3], float)[np.asarray(row[1]) > 0] for row in ground_truth.values()]
    frame = {
        "info": {},
        "images": [{"id": image} for image in range(len(ground_truth))],
        "categories": [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)],
    }
    truth = _annotations(
        objects,
        {"iscrowd": objects.values.astype(int), "area": np.concatenate([np.zeros(0), *areas])},
    )
    results = _annotations(
        found, {"score": found.values, "area": np.prod(found.boxes[:, 2:], axis=1)}
    )
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
    columns = {
        "image_id": rows.image,
        "category_id": rows.labels,
        "bbox": rows.boxes,
        "iscrowd": np.zeros(len(rows.image), int),
        **values,
    }
    records = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {"id": k, **dict(zip(columns, record, strict=True))}
        for k, record in enumerate(records, start=1)
    ]


def _silence(*_: object) -> None:
    """Suppresses the output of the evaluator."""
