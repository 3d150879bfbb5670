"""Matching, encoding, mining and loss of 32 images: ours beside torchvision's.

  pip install -e . torch torchvision
  python benchmarks/objective.py [--runs 15] [--batch 32]

Images of 1 to 40 objects, outputs of SSD300 with 21 classes; the loss and its gradients to the
outputs. Both get the same arrays and take turns in one process; the table shows medians and the
median of the ratios of neighbors.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
import torchvision
import turns

from ssd_jax import priors

SIDE, CLASSES = 300, 21
PRIORS = priors.default_boxes(priors.SSD300_VOC)
Run = Callable[[], object]


class Batch(NamedTuple):
    """Outputs `[B, P, 4]` and `[B, P, C]`, boxes `[B, G, 4]` in 0..1, labels `[B, G]`."""

    loc: np.ndarray
    conf: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def make_batch(count: int) -> Batch:
    """A batch of so many images."""
    return Batch(
        *turns.outputs("dense", count, PRIORS, CLASSES), *turns.ground_truth(count, CLASSES)
    )


def ours(batch: Batch) -> Run:
    """Our matching and loss, compiled."""
    return turns.compiled(functools.partial(turns.objective, PRIORS), *map(jax.device_put, batch))


def torchvisions(batch: Batch) -> Run:
    """Torchvision's SSD loss for outputs and targets."""
    model = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=CLASSES
    )
    low, high = PRIORS[:, :2] - PRIORS[:, 2:] / 2, PRIORS[:, :2] + PRIORS[:, 2:] / 2
    anchors = [torch.from_numpy(np.concatenate([low, high], axis=1)) * SIDE] * len(batch.loc)
    outputs = {
        "bbox_regression": torch.from_numpy(batch.loc).requires_grad_(),
        "cls_logits": torch.from_numpy(batch.conf).requires_grad_(),
    }
    targets = [
        {
            "boxes": torch.from_numpy(own[names > 0] * SIDE),
            "labels": torch.from_numpy(names[names > 0].astype(np.int64)),
        }
        for own, names in zip(batch.boxes, batch.labels, strict=True)
    ]

    def run() -> object:
        matched = [
            model.proposal_matcher(torchvision.ops.box_iou(target["boxes"], own))
            for own, target in zip(anchors, targets, strict=True)
        ]
        loss = sum(model.compute_loss(targets, outputs, anchors, matched).values())
        return torch.autograd.grad(loss, list(outputs.values()))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    batch = make_batch(options.batch)
    mine, theirs = turns.measure([ours(batch), torchvisions(batch)], options.runs)
    ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    print("| images | ours, ms | torchvision, ms | ratio |\n|---|---|---|---|")
    print(
        f"| {options.batch} | {statistics.median(mine):.1f} | {statistics.median(theirs):.1f} | "
        f"{ratio:.2f} |"
    )


if __name__ == "__main__":
    main()
