"""The kernels of matching, loss and post-processing, each beside the plain form that it replaces.

  python benchmarks/kernels.py [--runs 15] [--batch 32]

SSD300's priors and 21 classes; cross-entropy and the 1x1 convolution with their gradients; NMS and
the convolution of a quarter of the batch. `dense` are random logits, of which nearly every box
passes the score threshold; `trained` are those of a few objects over a confident background. The
two forms take turns in one process; the table shows medians, and the median of the ratios of
neighbors. Other convolutions have benchmarks of their own, depthwise.py and kernel_gradient.py.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import turns

from ssd_jax import boxes, detection, matching, priors
from ssd_jax.kernels import batched_nms, convolutions, cross_entropy, row_matching, selection

CLASSES, THRESHOLD = 21, 0.01
PRIORS = priors.default_boxes(priors.SSD300_VOC)
NMS = {"iou_threshold": 0.45, "max_detections": 200}
Row = tuple[str, Callable, Callable, tuple]


def plain_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    log_softmax = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_softmax, labels[..., None], axis=-1)[..., 0]


def plain_nms(boxes: jax.Array, scores: jax.Array, rows: jax.Array) -> batched_nms.Found:
    """Each class on its own; the arguments are those of `batched_nms.batched_nms`."""
    nms = functools.partial(
        detection.nms, iou_threshold=NMS["iou_threshold"], max_outputs=NMS["max_detections"]
    )
    index, valid = jax.vmap(nms)(boxes[rows], scores)
    kept = jnp.where(valid, jnp.take_along_axis(scores, index, axis=1), 0)
    rows = jnp.take_along_axis(rows, index, axis=1).ravel()
    best, place = jax.lax.top_k(kept.ravel(), NMS["max_detections"])
    return boxes[rows[place]], best, place // NMS["max_detections"] + 1


def plain_detect(boxes: jax.Array, conf: jax.Array) -> batched_nms.Found:
    """Softmax and ranking of all priors."""
    return tuple(detection.multiclass_nms(boxes, jax.nn.softmax(conf), top_k=400, **NMS))


def summed(function: Callable) -> Callable:
    """Gradient of the sum of its outputs, without integers, by the first two arguments."""

    def gradient(x: jax.Array, other: jax.Array) -> object:
        numbers = (0, 1) if jnp.issubdtype(other.dtype, jnp.floating) else 0
        return jax.value_and_grad(lambda *of: jnp.sum(function(*of) ** 2), numbers)(x, other)

    return gradient


def losses(batch: int) -> Iterator[Row]:
    """Matching and the loss of a batch."""
    gt_boxes, gt_labels = turns.ground_truth(batch, CLASSES)
    corners = np.tile(np.asarray(boxes.cxcywh_to_xyxy(PRIORS)), (batch, 1, 1))
    by_rows = functools.partial(row_matching.overlaps, least_overlap=1e-6)
    given = gt_boxes, gt_labels > 0, corners
    yield "matching by rows", jax.vmap(matching._overlaps), jax.vmap(by_rows), given
    _, conf = turns.outputs("dense", batch, PRIORS, CLASSES)
    k = np.linspace(1, 1000, batch).astype(np.int32)
    by_sorting, found = (lambda x, k: jnp.sort(x)[-k]), selection.kth_largest
    yield "k-th largest", jax.vmap(by_sorting), jax.vmap(found), (conf[..., 0], k)
    labels = np.argmax(conf, axis=-1).astype(np.int32)
    ways = summed(plain_cross_entropy), summed(cross_entropy.cross_entropy)
    yield "cross-entropy", *ways, (conf, labels)


def post_processing(batch: int) -> Iterator[Row]:
    """Post-processing with NMS of a quarter of the batch."""
    few = functools.partial(
        batched_nms.of_few_priors,
        otherwise=plain_detect,
        score_threshold=THRESHOLD,
        top_k=400,
        **NMS,
    )
    together = functools.partial(batched_nms.batched_nms, **NMS)
    for kind in ("trained", "dense"):
        loc, conf = turns.outputs(kind, max(1, batch // 4), PRIORS, CLASSES)
        decoded = boxes.decode(loc, np.broadcast_to(PRIORS, loc.shape))
        scores = jax.nn.softmax(conf)[..., 1:].swapaxes(1, 2)
        ranked = jax.lax.top_k(jnp.where(scores > THRESHOLD, scores, 0), 400)
        yield f"NMS, {kind}", jax.vmap(plain_nms), jax.vmap(together), (decoded, *ranked)
        yield f"few priors, {kind}", jax.vmap(plain_detect), jax.vmap(few), (decoded, conf)


def pointwise(batch: int) -> Iterator[Row]:
    """A 1x1 convolution of MobileNetV2, of a quarter of the batch."""
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((max(1, batch // 4), 40, 40, 192), (1, 1, 192, 32))
    )
    ways = summed(convolutions.plain), summed(convolutions.pointwise)
    yield "1x1 convolution", *ways, (x, kernel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    print("| kernel | plain, ms | kernel, ms | plain / kernel |\n|---|---|---|---|")
    for rows in (losses, post_processing, pointwise):
        for name, *ways, given in rows(options.batch):
            runs = [turns.compiled(way, *given) for way in ways]
            plain, ours = turns.measure(runs, options.runs)
            ratio = statistics.median(a / b for a, b in zip(plain, ours, strict=True))
            medians = f"{statistics.median(plain):.1f} | {statistics.median(ours):.1f}"
            print(f"| {name} | {medians} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
