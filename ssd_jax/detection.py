"""From the network's outputs to detections: decode, non-maximum suppression (NMS), top-k."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import boxes as box_ops
from ssd_jax.kernels import batched_nms


class Detections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
      boxes: `[D, 4]` corners; [0, 1] of the image, or pixels where stated.
      scores: `[D]` in [0, 1]; 0 in an unused row.
      labels: `[D]` int32, classes from 1; 0 in an unused row.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array


def nms(
    boxes: jax.Array, scores: jax.Array, *, iou_threshold: float = 0.45, max_outputs: int
) -> tuple[jax.Array, jax.Array]:
    """Greedy NMS with a fixed number of outputs.

    Repeatedly takes the box with the highest score and drops all boxes whose IoU with it exceeds
    `iou_threshold`. Ties are broken by the lowest index.

    Args:
      boxes: `[N, 4]` corners.
      scores: `[N]`; only boxes with a score above 0 take part.
      iou_threshold: Boxes that overlap a taken one by more are dropped.
      max_outputs: D, the most boxes to take.

    Returns:
      `[D]` int32 index into `boxes`, best first, and `[D]` bool: which of them are valid. The index
      of the others is 0.

    Source: Liu et al. 2016, section 2.2 (0.45 jaccard overlap), and the authors' release.
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    chex.assert_shape(boxes, (None, 4))
    chex.assert_shape(scores, boxes.shape[:1])

    def some_left(state):
        scores, _, count = state
        return (count < max_outputs) & jnp.any(scores > 0)

    def take_best(state):
        scores, index, count = state
        best = jnp.argmax(scores)
        overlap = box_ops.pairwise_iou(boxes[best][None], boxes)[0]
        scores = jnp.where(overlap > iou_threshold, 0, scores).at[best].set(0)
        return scores, index.at[count].set(best.astype(jnp.int32)), count + 1

    start = jnp.where(scores > 0, scores, 0), jnp.zeros(max_outputs, jnp.int32), jnp.int32(0)
    _, index, count = jax.lax.while_loop(some_left, take_best, start)
    return index, jnp.arange(max_outputs) < count


def multiclass_nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 400,
    max_detections: int = 200,
) -> Detections:
    """NMS within each class, and the best detections of all classes.

    Args:
      boxes: `[P, 4]` corners, shared by the classes.
      scores: `[P, C]` probabilities, class 0 is background.
      score_threshold: Boxes of a class must score more.
      iou_threshold: Boxes that overlap a better one of their class by more are dropped.
      top_k: The most boxes of a class that enter NMS.
      max_detections: D, the most detections of the image.

    Returns:
      `[D]` detections, best first, not clipped; unused rows are 0.

    Source: Liu et al. 2016, section 3.1, and the authors' release (400 and 200).
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    chex.assert_rank(scores, 2)
    chex.assert_shape(boxes, (scores.shape[0], 4))
    above = jnp.where(scores > score_threshold, scores, 0)
    best, priors = jax.lax.top_k(above[:, 1:].T, min(top_k, boxes.shape[0]))  # [C - 1, K]
    return Detections(
        *batched_nms.batched_nms(
            boxes, best, priors, iou_threshold=iou_threshold, max_detections=max_detections
        )
    )


def unmirror(loc: jax.Array, priors_cxcywh: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Turns the outputs for a mirrored image, and their priors, into those for the image itself.

    They decode to the mirror images of the boxes that the arguments decode to, in the same rows.
    For test-time augmentation: the outputs of several views of an image, concatenated, are the
    outputs of one image to `detect`.

    Args:
      loc: `[..., P, 4]` offsets for the image mirrored left to right.
      priors_cxcywh: `[P, 4]` center and size of the priors, in [0, 1].

    Returns:
      `[..., P, 4]` offsets and `[P, 4]` priors.
    """
    chex.assert_shape(priors_cxcywh, (None, 4))
    chex.assert_shape(loc, (..., *priors_cxcywh.shape))
    cx, rest = jnp.split(jnp.asarray(priors_cxcywh), [1], axis=-1)
    mirrored = loc * jnp.asarray([-1, 1, 1, 1], loc.dtype)
    return mirrored, jnp.concatenate([1 - cx, rest], axis=-1)


def detect(
    loc: jax.Array,
    conf: jax.Array,
    priors_cxcywh: jax.Array,
    *,
    variances: tuple[float, float] = (0.1, 0.2),
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 400,
    max_detections: int = 200,
    clip_before_nms: bool = False,
) -> Detections:
    """Turns the network's outputs for one image into detections.

    Args:
      loc: `[P, 4]` offsets.
      conf: `[P, C]` class logits, class 0 is background.
      priors_cxcywh: `[P, 4]` center and size of the priors.
      variances: Variances of the offsets, see `boxes.encode`.
      score_threshold: See `multiclass_nms`, as for the next three.
      iou_threshold: In [0, 1].
      top_k: Before NMS, of each class.
      max_detections: D, after NMS, of all classes.
      clip_before_nms: Clip boxes before NMS, as torchvision does, not after it.

    Returns:
      `[D]` detections, best first, clipped to [0, 1]; unused rows: score 0, label 0, box 0.

    Source: Liu et al. 2016, section 2.2 and 3.1; boxes are clipped at the end, as the authors do.
    """
    chex.assert_rank(conf, 2)
    chex.assert_shape([loc, priors_cxcywh], (conf.shape[0], 4))
    options: dict[str, Any] = {
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
        "top_k": top_k,
        "max_detections": max_detections,
    }

    def plain(boxes: jax.Array, conf: jax.Array) -> batched_nms.Found:
        found = multiclass_nms(boxes, jax.nn.softmax(conf), **options)
        return found.boxes, found.scores, found.labels

    few = functools.partial(batched_nms.of_few_priors, otherwise=plain, **options)
    boxes = box_ops.decode(loc.astype(jnp.float32), priors_cxcywh, variances=variances)
    boxes = box_ops.clip(boxes) if clip_before_nms else boxes
    conf = conf.astype(jnp.float32)
    found = Detections(*jax.lax.platform_dependent(boxes, conf, cpu=few, default=plain))
    return found._replace(boxes=box_ops.clip(found.boxes))
