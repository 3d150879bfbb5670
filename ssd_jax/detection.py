"""From the network's outputs to detections: decode, non-maximum suppression, top-k."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import boxes as box_ops

_CANDIDATES = 512  # boxes that are compared at a time
_FEW = 1024  # priors at most that may hold an object in a picture that is fast on a CPU


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
    one_class = jnp.zeros(scores.shape, jnp.int32)
    keep = _suppress(boxes[order], one_class, scores[order] > 0, iou_threshold, max_outputs)
    # The kept ones move to the front in their order.
    (front,) = jnp.nonzero(keep, size=max_outputs, fill_value=0)
    valid = jnp.arange(max_outputs) < jnp.sum(keep)
    return jnp.where(valid, order[front], 0).astype(jnp.int32), valid


def _suppress(
    boxes: jax.Array,
    labels: jax.Array,
    alive: jax.Array,
    iou_threshold: float,
    max_outputs: int | jax.Array,
) -> jax.Array:
    """`[N]` bool: which of `[N, 4]` boxes, best first, are kept; classes are on their own.

    A pass of the loop keeps one box; it ends with the last, so sparse scenes cost little.
    """
    num_boxes, by_coordinate = boxes.shape[0], boxes.T  # a CPU reads it faster in the loop
    ranks = jnp.arange(num_boxes, dtype=jnp.int32)

    def first(alive):
        return jnp.min(jnp.where(alive, ranks, num_boxes))

    def some_left(carry):
        _, _, best, count = carry
        return (best < num_boxes) & (count < max_outputs)

    def keep_best(carry):
        alive, kept, best, count = carry
        taken = ranks == best
        dropped = _overlapping(boxes[best], labels[best], by_coordinate.T, labels, iou_threshold)
        alive = alive & ~taken & ~dropped
        return alive, kept | taken, first(alive), count + 1

    start = alive, jnp.zeros_like(alive), first(alive), jnp.int32(0)
    return jax.lax.while_loop(some_left, keep_best, start)[1]


def _overlapping(
    box: jax.Array, label: jax.Array, boxes: jax.Array, labels: jax.Array, iou_threshold: float
) -> jax.Array:
    """`[N]` bool: which boxes of a class overlap one of that class by more than the threshold."""
    return (box_ops.pairwise_iou(box[None], boxes)[0] > iou_threshold) & (labels == label)


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
    above = jnp.where(scores > score_threshold, scores, 0)
    best = _Entrants(*jax.lax.top_k(above[:, 1:].T, min(top_k, boxes.shape[0])))
    return _keep_best(boxes, best, iou_threshold, max_detections)


class _Entrants(NamedTuple):
    """Boxes of each class that enter the suppression; of equal scores the lowest prior first.

    Attributes:
      scores: `[C - 1, K]`, 0 of those that are none.
      priors: `[C - 1, K]` int32, the priors that they are of.
    """

    scores: jax.Array
    priors: jax.Array


def _keep_best(
    boxes: jax.Array, best: _Entrants, iou_threshold: float, max_detections: int
) -> Detections:
    """Suppresses the boxes of each class, rows of `[P, 4]`, and keeps the best over all."""
    classes, most = best.scores.shape
    look_at_next = functools.partial(
        _look_at_next,
        boxes=boxes,
        ranked=best.scores.reshape(-1),
        index=best.priors.reshape(-1),
        labels=jnp.repeat(jnp.arange(1, classes + 1, dtype=jnp.int32), most),
        iou_threshold=iou_threshold,
    )
    start = _Search(
        found=_nothing(max_detections, boxes.dtype),
        kept=jnp.int32(0),
        score=jnp.asarray(jnp.inf, best.scores.dtype),
        place=jnp.int32(-1),
    )
    return jax.lax.while_loop(
        lambda search: (search.score > 0) & (search.kept < max_detections), look_at_next, start
    ).found


def _nothing(max_detections: int, dtype: jnp.dtype) -> Detections:
    """As many unused rows."""
    return Detections(
        boxes=jnp.zeros((max_detections, 4), dtype),
        scores=jnp.zeros(max_detections, dtype),
        labels=jnp.zeros(max_detections, jnp.int32),
    )


class _Search(NamedTuple):
    """The search for the best boxes of all classes together, the candidates gone through in order.

    Attributes:
      found: What is kept so far.
      kept: How many these are.
      score: Of the last candidate.
      place: Where it lies; of equal scores the first places come first.
    """

    found: Detections
    kept: jax.Array
    score: jax.Array
    place: jax.Array


def _look_at_next(
    search: _Search,
    *,
    boxes: jax.Array,
    ranked: jax.Array,
    index: jax.Array,
    labels: jax.Array,
    iou_threshold: float,
) -> _Search:
    """Keeps the best of the next candidates: only better ones can drop a box, so it stays kept.

    Args:
      search: So far.
      boxes: `[P, 4]`.
      ranked: `[N]` scores of the candidates, 0 of those that are none.
      index: `[N]` their rows of `boxes`.
      labels: `[N]` their classes.
      iou_threshold: Of the suppression.
    """
    places = jnp.arange(ranked.size, dtype=jnp.int32)
    tied = (ranked == search.score) & (places > search.place)
    behind = jnp.where((ranked < search.score) | tied, ranked, 0)
    best, place = jax.lax.top_k(behind, min(_CANDIDATES, ranked.size))
    candidates, classes, found = boxes[index[place]], labels[place], search.found

    def drop(row: jax.Array, alive: jax.Array) -> jax.Array:
        mine = found.boxes[row], found.labels[row]
        return alive & ~_overlapping(*mine, candidates, classes, iou_threshold)

    alive = jax.lax.fori_loop(0, search.kept, drop, best > 0)
    most = found.scores.size
    kept = _suppress(candidates, classes, alive, iou_threshold, most - search.kept)
    row = jnp.where(kept, search.kept + jnp.cumsum(kept) - 1, most)
    last = jnp.min(best)  # best[-1] would have XLA sort all of them
    return _Search(
        found=Detections(
            boxes=found.boxes.at[row].set(candidates, mode="drop"),
            scores=found.scores.at[row].set(best, mode="drop"),
            labels=found.labels.at[row].set(classes, mode="drop"),
        ),
        kept=search.kept + jnp.sum(kept, dtype=jnp.int32),
        score=last,
        place=jnp.max(jnp.where(best == last, place, -1)),
    )


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
    options: dict[str, Any] = {
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
        "top_k": top_k,
        "max_detections": max_detections,
    }
    # A picture at a time on a CPU: so it does for each what that one needs, and no more.
    few = jax.custom_batching.sequential_vmap(functools.partial(_detect_few, **options))
    found = jax.lax.platform_dependent(
        box_ops.clip(boxes) if clip_before_nms else boxes,
        conf.astype(jnp.float32),
        cpu=few,
        default=functools.partial(_detect_all, **options),
    )
    return found._replace(boxes=box_ops.clip(found.boxes))


def _detect_all(boxes: jax.Array, conf: jax.Array, **options: Any) -> Detections:
    """From boxes `[P, 4]` and logits `[P, C]`; the options are those of `multiclass_nms`."""
    return multiclass_nms(boxes, jax.nn.softmax(conf), **options)


def _detect_few(
    boxes: jax.Array, conf: jax.Array, *, score_threshold: float, top_k: int, **options: Any
) -> Detections:
    """The same, faster on a CPU where few priors may be above the threshold.

    A class's probability is at most its ratio to the background's, which leaves out most priors of
    a trained network: they need no softmax. Where no class has more than `top_k` boxes, they need
    no ranking either. Otherwise all are looked at.
    """
    few = min(_FEW, len(boxes))
    # Of the logarithm; a rounding error must leave out nothing.
    least = jnp.log(jnp.maximum(score_threshold, 0.0)) - 1e-3
    likely = jnp.max(conf[:, 1:], axis=1) - conf[:, 0] > least

    def of_likely(conf: jax.Array) -> tuple[Detections, jax.Array]:
        (rows,) = jnp.nonzero(likely, size=few, fill_value=0)  # in their order
        scores = jax.nn.softmax(conf[rows])[:, 1:].T
        above = (scores > score_threshold) & (jnp.arange(few) < jnp.sum(likely))
        all_enter = jnp.all(jnp.sum(above, axis=1) <= top_k)
        of_each_class = jnp.broadcast_to(rows.astype(jnp.int32), scores.shape)
        entered = _Entrants(jnp.where(above & all_enter, scores, 0), of_each_class)
        return _keep_best(boxes, entered, **options), all_enter

    def of_all(conf: jax.Array) -> Detections:
        return _detect_all(boxes, conf, score_threshold=score_threshold, top_k=top_k, **options)

    def of_none(_: jax.Array) -> tuple[Detections, jax.Array]:
        return _nothing(options["max_detections"], boxes.dtype), jnp.zeros_like(likely[0])

    found, done = jax.lax.cond(jnp.sum(likely) <= few, of_likely, of_none, conf)
    return jax.lax.cond(done, lambda _: found, of_all, conf)
