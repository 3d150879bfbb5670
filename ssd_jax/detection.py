"""From the network's outputs to detections: decode, non-maximum suppression, top-k."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import boxes as box_ops


class Detections(NamedTuple):
    """Detections of one picture, best first.

    Attributes:
      boxes: `[D, 4]` corners; [0, 1] of the picture, or pixels where a function says so.
      scores: `[D]` in [0, 1]; 0 in an unused row.
      labels: `[D]` int32, classes from 1; 0 in an unused row.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array


def nms(
    boxes: jax.Array, scores: jax.Array, *, iou_threshold: float = 0.45, max_outputs: int
) -> tuple[jax.Array, jax.Array]:
    """Greedy non-maximum suppression of fixed size.

    Takes the box of the highest score, drops all whose IoU with it exceeds `iou_threshold`, and so
    on. Equal scores go to the lowest index.

    Args:
      boxes: `[N, 4]` corners.
      scores: `[N]`; only boxes with a score above 0 take part.
      iou_threshold: Boxes that overlap a taken one by more are dropped.
      max_outputs: D, the most boxes to take.

    Returns:
      `[D]` int32 index into `boxes`, best first, and `[D]` bool: which of them are real. The index
      of the others is 0.

    Source: Liu et al. 2016, section 2.2 (0.45 jaccard overlap), and the authors' release.
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    order = jnp.argsort(-scores)
    keep = _suppress(boxes[order], scores[order] > 0, iou_threshold, max_outputs)
    # The kept ones move to the front in their order.
    (front,) = jnp.nonzero(keep, size=max_outputs, fill_value=0)
    valid = jnp.arange(max_outputs) < jnp.sum(keep)
    return jnp.where(valid, order[front], 0).astype(jnp.int32), valid


def _suppress(
    boxes: jax.Array, alive: jax.Array, iou_threshold: float, max_outputs: int
) -> jax.Array:
    """`[N]` bool: which of `[N, 4]` boxes, best first, are kept.

    A pass of the loop keeps one box; it ends with the last, so sparse scenes cost little.
    """
    ranks = jnp.arange(boxes.shape[0])

    def some_left(carry):
        alive, kept = carry
        return jnp.any(alive) & (jnp.sum(kept) < max_outputs)

    def keep_best(carry):
        alive, kept = carry
        best = jnp.argmax(alive)
        taken = jnp.any(alive) & (ranks == best)
        overlap = box_ops.pairwise_iou(boxes[best][None], boxes)[0]
        return alive & ~taken & ~(overlap > iou_threshold), kept | taken

    return jax.lax.while_loop(some_left, keep_best, (alive, jnp.zeros_like(alive)))[1]


def multiclass_nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    top_k: int = 400,
    max_detections: int = 200,
) -> Detections:
    """Suppresses the boxes of each class on their own and keeps the best over all classes.

    Args:
      boxes: `[P, 4]` corners, shared by the classes.
      scores: `[P, C]` probabilities, class 0 is background.
      score_threshold: Boxes of a class must score more.
      iou_threshold: Of the suppression.
      top_k: Most boxes of a class that enter the suppression.
      max_detections: D, most detections of the picture.

    Returns:
      `[D]` detections, best first, not clipped; unused rows are 0.

    Source: Liu et al. 2016, section 3.1, and the authors' release (400 and 200).
    """
    top_k = min(top_k, boxes.shape[0])
    class_scores = jnp.where(scores > score_threshold, scores, 0)[:, 1:].T
    best_scores, index = jax.lax.top_k(class_scores, top_k)  # [C - 1, K]
    keep = jax.vmap(lambda b, alive: _suppress(b, alive, iou_threshold, top_k))(
        boxes[index], best_scores > 0
    )
    kept_scores = jnp.where(keep, best_scores, 0).reshape(-1)
    final, where = jax.lax.top_k(kept_scores, min(max_detections, kept_scores.size))
    real = final > 0
    padding = (0, max_detections - final.size)
    found = Detections(
        boxes=jnp.where(real[:, None], boxes[index.reshape(-1)[where]], 0),
        scores=final,
        labels=jnp.where(real, where // top_k + 1, 0).astype(jnp.int32),
    )
    return jax.tree.map(lambda x: jnp.pad(x, (padding, *((0, 0),) * (x.ndim - 1))), found)


def unmirror(loc: jax.Array, priors_cxcywh: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Outputs for a picture, and their priors, from those for the picture mirrored left to right.

    They decode to the mirror images of the boxes that the arguments decode to, in the same rows.
    The outputs of several views of a picture, concatenated, are those of one: `detect` takes them.

    Args:
      loc: `[P, 4]` offsets.
      priors_cxcywh: `[P, 4]` centre and size of the priors, in [0, 1].

    Returns:
      `[P, 4]` offsets and `[P, 4]` priors.
    """
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
    """Turns the network's outputs for one picture into detections.

    Args:
      loc: `[P, 4]` offsets.
      conf: `[P, C]` class logits, class 0 is background.
      priors_cxcywh: `[P, 4]` centre and size of the priors.
      variances: Of the offsets, see `boxes.encode`.
      score_threshold: Boxes of a class must score more.
      iou_threshold: Of the suppression within a class.
      top_k: Most boxes of a class that enter the suppression.
      max_detections: D, most detections of the picture.
      clip_before_nms: Clip boxes before the suppression, as torchvision does, not after it.

    Returns:
      `[D]` detections, best first, clipped to [0, 1]; unused rows: score 0, label 0, box 0.

    Source: Liu et al. 2016, section 2.2 and 3.1; boxes are clipped at the end, as the authors do.
    """
    boxes = box_ops.decode(loc.astype(jnp.float32), priors_cxcywh, variances=variances)
    found = multiclass_nms(
        box_ops.clip(boxes) if clip_before_nms else boxes,
        jax.nn.softmax(conf.astype(jnp.float32)),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        top_k=top_k,
        max_detections=max_detections,
    )
    return found._replace(boxes=box_ops.clip(found.boxes))
