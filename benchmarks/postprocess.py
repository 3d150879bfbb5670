"""Post-processing (decode, softmax, NMS, top-k) of 8 images: ours beside torchvision's.

  pip install -e . torch torchvision
  python benchmarks/postprocess.py [--runs 15]

Both get the same outputs and take turns in one process, A B A B; the table shows medians and the
median of the ratios of neighbors. `dense` are random logits, of which nearly every box passes the
score threshold; `trained` are logits of a few objects an image over a confident background, as a
trained detector gives.
"""

import argparse
import statistics
from collections.abc import Callable

import jax
import numpy as np
import torch
import torchvision
import turns

from ssd_jax import detection, priors

BATCH = 8
PRIORS = priors.default_boxes(priors.SSD300_VOC)


def ours(loc: np.ndarray, conf: np.ndarray) -> Callable[[], object]:
    """Our post-processing of the batch, compiled."""
    detect = jax.vmap(detection.detect, in_axes=(0, 0, None))
    return turns.compiled(detect, *jax.device_put((loc, conf, PRIORS)))


def torchvisions(loc: np.ndarray, conf: np.ndarray) -> Callable[[], object]:
    """Torchvision's `SSD.postprocess_detections` of the same outputs."""
    model = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=conf.shape[-1]
    )
    head = {"bbox_regression": torch.from_numpy(loc), "cls_logits": torch.from_numpy(conf)}
    size = torch.tensor([300.0, 300.0, 300.0, 300.0])
    low, high = PRIORS[:, :2] - PRIORS[:, 2:] / 2, PRIORS[:, :2] + PRIORS[:, 2:] / 2
    anchors = torch.from_numpy(np.concatenate([low, high], axis=1)) * size

    def run() -> object:
        with torch.inference_mode():
            return model.postprocess_detections(head, [anchors] * BATCH, [(300, 300)] * BATCH)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    device = jax.devices()[0].device_kind
    print(
        f"jax {jax.__version__} on {device}; torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {torch.get_num_threads()} threads; {runs} runs\n"
    )
    print("| outputs | classes | ours, ms | torchvision, ms | ratio |\n|---|---|---|---|---|")
    for kind in ("trained", "dense"):
        for classes in (21, 81):
            arrays = turns.outputs(kind, BATCH, PRIORS, classes)
            ways = [ours(*arrays), torchvisions(*arrays)]
            ways[1]()
            mine, theirs = turns.measure(ways, runs)
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            medians = f"{statistics.median(mine):.1f} | {statistics.median(theirs):.1f}"
            print(f"| {kind} | {classes} | {medians} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
