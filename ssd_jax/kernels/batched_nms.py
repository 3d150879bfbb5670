"""NMS of all classes of an image together.

The plain form is `detection.nms` of each class on its own, and then the best over all classes.
`batched_nms` visits the candidates of all classes together, best first, and stops when enough are
kept. On a CPU, `of_few_priors` first leaves out the priors that cannot pass the score threshold,
which are most priors of a trained network. `benchmarks/kernels.py` compares them with the plain
form.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssd_jax import boxes as box_ops

_BLOCK = 512  # candidates that are compared at a time
_FEW = 1024  # maximum number of priors of `of_few_priors`

Found = tuple[jax.Array, jax.Array, jax.Array]  # boxes [D, 4], scores [D], labels [D] int32


def batched_nms(
    boxes: jax.Array,
    scores: jax.Array,
    priors: jax.Array,
    *,
    iou_threshold: float,
    max_detections: int,
) -> Found:
    """NMS within each class, and the best of all classes.

    Args:
      boxes: `[P, 4]` corners.
      scores: `[C - 1, K]` of the candidates of each class, 0 where there is none; of equal scores
        the first comes first.
      priors: `[C - 1, K]` int32, the rows of `boxes` that they belong to.
      iou_threshold: Boxes that overlap a better one of their class by more are dropped.
      max_detections: D, the most boxes to keep.

    Returns:
      `[D, 4]` boxes, `[D]` scores and `[D]` int32 labels from 1, best first; unused rows are 0.
    """
    classes, candidates = scores.shape
    keep_next = functools.partial(
        _keep_next,
        boxes=boxes,
        scores=scores.reshape(-1),
        priors=priors.reshape(-1),
        labels=jnp.repeat(jnp.arange(1, classes + 1, dtype=jnp.int32), candidates),
        iou_threshold=iou_threshold,
    )
    start = _Search(
        *_nothing(max_detections, boxes.dtype),
        kept=jnp.int32(0),
        last_score=jnp.asarray(jnp.inf, scores.dtype),
        last_place=jnp.int32(-1),
    )
    end = jax.lax.while_loop(
        lambda search: (search.last_score > 0) & (search.kept < max_detections), keep_next, start
    )
    return end.boxes, end.scores, end.labels


def of_few_priors(
    boxes: jax.Array,
    conf: jax.Array,
    *,
    otherwise: Callable[[jax.Array, jax.Array], Found],
    score_threshold: float,
    iou_threshold: float,
    top_k: int,
    max_detections: int,
) -> Found:
    """Post-processes an image with few priors above the score threshold, on a CPU.

    A class's probability is at most its ratio to that of the background. Priors whose ratios are
    too low need no softmax; where no class has more than `top_k` boxes left, they need no ranking
    either. Images of a batch are processed one after the other, each in the way that it needs.

    Args:
      boxes: `[P, 4]` corners.
      conf: `[P, C]` float32 logits, class 0 is background.
      otherwise: Computes the same from `boxes` and `conf` in every case; it is used where more than
        1,024 priors may pass the threshold, or more than `top_k` boxes of a class do.
      score_threshold: Boxes of a class must score more.
      iou_threshold: See `batched_nms`.
      top_k: The most boxes of a class that enter NMS.
      max_detections: D, see `batched_nms`.

    Returns:
      See `batched_nms`.
    """

    def of_image(boxes: jax.Array, conf: jax.Array) -> Found:
        few = min(_FEW, len(boxes))
        # The threshold of the ratio's logarithm, lowered so that rounding leaves out nothing.
        least = jnp.log(jnp.maximum(score_threshold, 0.0)) - 1e-3
        likely = jnp.max(conf[:, 1:], axis=1) - conf[:, 0] > least

        def of_likely(conf: jax.Array) -> tuple[Found, jax.Array]:
            (rows,) = jnp.nonzero(likely, size=few, fill_value=0)  # in their order
            scores = jax.nn.softmax(conf[rows])[:, 1:].T
            above = (scores > score_threshold) & (jnp.arange(few) < jnp.sum(likely))
            all_enter = jnp.all(jnp.sum(above, axis=1) <= top_k)
            found = batched_nms(
                boxes,
                jnp.where(above & all_enter, scores, 0),
                jnp.broadcast_to(rows.astype(jnp.int32), scores.shape),
                iou_threshold=iou_threshold,
                max_detections=max_detections,
            )
            return found, all_enter

        def of_none(_: jax.Array) -> tuple[Found, jax.Array]:
            return _nothing(max_detections, boxes.dtype), jnp.zeros_like(likely[0])

        found, done = jax.lax.cond(jnp.sum(likely) <= few, of_likely, of_none, conf)
        return jax.lax.cond(done, lambda _: found, functools.partial(otherwise, boxes), conf)

    return jax.custom_batching.sequential_vmap(of_image)(boxes, conf)


def _nothing(max_detections: int, dtype: jnp.dtype) -> Found:
    """Unused rows only."""
    return (
        jnp.zeros((max_detections, 4), dtype),
        jnp.zeros(max_detections, dtype),
        jnp.zeros(max_detections, jnp.int32),
    )


class _Search(NamedTuple):
    """The state of `batched_nms`.

    Attributes:
      boxes: `[D, 4]` kept so far.
      scores: `[D]` theirs.
      labels: `[D]` theirs.
      kept: How many they are.
      last_score: The score of the last visited candidate.
      last_place: Its place among all candidates; equal scores are ordered by place.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    kept: jax.Array
    last_score: jax.Array
    last_place: jax.Array


def _keep_next(
    search: _Search,
    *,
    boxes: jax.Array,
    scores: jax.Array,
    priors: jax.Array,
    labels: jax.Array,
    iou_threshold: float,
) -> _Search:
    """Adds those of the next block of candidates that NMS keeps.

    Only better candidates can drop a box, so whatever is kept stays kept.

    Args:
      search: The state before.
      boxes: `[P, 4]` corners.
      scores: `[N]` of all candidates, 0 where there is none.
      priors: `[N]` their rows of `boxes`.
      labels: `[N]` their classes.
      iou_threshold: See `batched_nms`.
    """
    places = jnp.arange(scores.size, dtype=jnp.int32)
    tied = (scores == search.last_score) & (places > search.last_place)
    behind = jnp.where((scores < search.last_score) | tied, scores, 0)
    best, place = jax.lax.top_k(behind, min(_BLOCK, scores.size))
    candidates, classes = boxes[priors[place]], labels[place]

    def drop(row: jax.Array, alive: jax.Array) -> jax.Array:
        better = search.boxes[row], search.labels[row]
        return alive & ~_overlapping(*better, candidates, classes, iou_threshold)

    most = search.scores.size
    alive = jax.lax.fori_loop(0, search.kept, drop, best > 0)
    kept = _greedy(candidates, classes, alive, iou_threshold, most - search.kept)
    row = jnp.where(kept, search.kept + jnp.cumsum(kept) - 1, most)
    last = jnp.min(best)  # reading best[-1] instead would make XLA sort all candidates
    return _Search(
        boxes=search.boxes.at[row].set(candidates, mode="drop"),
        scores=search.scores.at[row].set(best, mode="drop"),
        labels=search.labels.at[row].set(classes, mode="drop"),
        kept=search.kept + jnp.sum(kept, dtype=jnp.int32),
        last_score=last,
        last_place=jnp.max(jnp.where(best == last, place, -1)),
    )


def _greedy(
    boxes: jax.Array,
    labels: jax.Array,
    alive: jax.Array,
    iou_threshold: float,
    max_outputs: jax.Array,
) -> jax.Array:
    """`[N]` bool: which of `[N, 4]` boxes, sorted best first, NMS within each class keeps."""
    num_boxes, by_coordinate = boxes.shape[0], boxes.T  # a CPU reads this faster in the loop
    ranks = jnp.arange(num_boxes, dtype=jnp.int32)

    def first(alive):
        return jnp.min(jnp.where(alive, ranks, num_boxes))

    def some_left(state):
        _, _, best, count = state
        return (best < num_boxes) & (count < max_outputs)

    def keep_best(state):
        alive, kept, best, count = state
        is_best = ranks == best
        dropped = _overlapping(boxes[best], labels[best], by_coordinate.T, labels, iou_threshold)
        alive = alive & ~is_best & ~dropped
        return alive, kept | is_best, first(alive), count + 1

    start = alive, jnp.zeros_like(alive), first(alive), jnp.int32(0)
    return jax.lax.while_loop(some_left, keep_best, start)[1]


def _overlapping(
    box: jax.Array, label: jax.Array, boxes: jax.Array, labels: jax.Array, iou_threshold: float
) -> jax.Array:
    """`[N]` bool: which boxes of a box's own class overlap it by more than the threshold."""
    return (box_ops.pairwise_iou(box[None], boxes)[0] > iou_threshold) & (labels == label)
