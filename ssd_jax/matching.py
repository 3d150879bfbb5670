"""Matching of ground truth to default boxes: Liu et al. 2016, section 2.2, "Matching strategy"."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssd_jax import boxes as box_ops

_LEAST_OVERLAP = 1e-6  # of the authors' release: a smaller overlap is none


class Matches(NamedTuple):
    """What each prior has to predict.

    Attributes:
      boxes: `[P, 4]` corners of the matched ground truth; the prior itself where there is none.
      labels: `[P]` int32 class, 0 is background.
    """

    boxes: jax.Array
    labels: jax.Array


def match(
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    priors_cxcywh: jax.Array,
    *,
    iou_threshold: float = 0.5,
) -> Matches:
    """Matches the ground truth of one picture to the priors, in two stages.

    First every ground truth gets a prior of its own, globally greedy: of all pairs with an overlap
    the one with the largest IoU is fixed and both leave, until no ground truth is left (ties: the
    lowest prior, then ground truth). Then every prior still free takes the ground truth it overlaps
    most, if that IoU is at least `iou_threshold` (ties: lowest ground truth).

    Args:
      gt_boxes: `[G, 4]` corners.
      gt_labels: `[G]` int, classes from 1; 0 is padding, which matches nothing.
      priors_cxcywh: `[P, 4]` centre and size of the priors.
      iou_threshold: Of the second stage, in [0, 1].

    Returns:
      What each prior has to predict.

    Source: Liu et al. 2016, section 2.2; ties and the greedy order as in the authors' release.
    """
    gt_boxes, gt_labels = jnp.asarray(gt_boxes), jnp.asarray(gt_labels)
    priors = box_ops.cxcywh_to_xyxy(jnp.asarray(priors_cxcywh))
    if gt_boxes.shape[0] == 0:
        return Matches(priors, jnp.zeros(priors.shape[0], jnp.int32))
    # A box that is not finite overlaps nothing, and its NaNs would be every prior's largest IoU.
    real = (gt_labels > 0) & jnp.all(jnp.isfinite(gt_boxes), axis=1)
    overlaps = jax.lax.platform_dependent(gt_boxes, real, priors, cpu=_by_row, default=_by_pairs)
    nearest = jnp.where(overlaps.of_prior >= iou_threshold, overlaps.gt, -1)
    # A ground truth without a prior of its own writes behind the end, which `drop` ignores.
    every = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32)
    matched = nearest.at[overlaps.own].set(every, mode="drop")
    positive = matched >= 0
    return Matches(
        boxes=jnp.where(positive[:, None], gt_boxes[matched], priors),
        labels=jnp.where(positive, gt_labels[matched], 0).astype(jnp.int32),
    )


class _Overlaps(NamedTuple):
    """What both stages need to know.

    Attributes:
      of_prior: `[P]` the largest IoU of each prior, -1 where all ground truth is padding.
      gt: `[P]` int32, with whom; of equal ones the lowest.
      own: `[G]` int32, the prior that each ground truth gets in the first stage, P for none.
    """

    of_prior: jax.Array
    gt: jax.Array
    own: jax.Array


def _by_pairs(gt_boxes: jax.Array, real: jax.Array, priors: jax.Array) -> _Overlaps:
    """From all pairs at once, in few steps, for a device that does much in each of them.

    A pair that is the best of all that remain for both of its sides is one that greed fixes sooner
    or later: all such pairs are fixed together, and the rest looks again.
    """
    num_gt = len(gt_boxes)
    iou = jnp.where(real[:, None], box_ops.pairwise_iou(gt_boxes, priors), -1.0)
    lower = jnp.arange(num_gt)[:, None] < jnp.arange(num_gt)

    def fix(state):
        free, waits, own, _ = state
        left = jnp.where(free & waits[:, None], iou, -1.0)
        largest, prior = jnp.max(left, axis=1), jnp.argmax(left, axis=1)
        rivals = left[:, prior]  # [G, G]: with the prior that each wants
        better = (rivals > largest) | ((rivals == largest) & lower)
        fixed = (largest > _LEAST_OVERLAP) & ~jnp.any(better, axis=0)
        own = jnp.where(fixed, prior.astype(jnp.int32), own)
        return free.at[own].set(False, mode="drop"), waits & ~fixed, own, jnp.any(fixed)

    none = jnp.full_like(real, len(priors), jnp.int32)
    start = jnp.ones_like(iou[0], bool), real, none, jnp.any(real)
    *_, own, _ = jax.lax.while_loop(lambda state: state[3] & jnp.any(state[1]), fix, start)
    return _Overlaps(jnp.max(iou, axis=0), jnp.argmax(iou, axis=0).astype(jnp.int32), own)


@jax.custom_batching.sequential_vmap
def _by_row(gt_boxes: jax.Array, real: jax.Array, priors: jax.Array) -> _Overlaps:
    """The same a ground truth at a time, of a picture at a time, for a CPU.

    It finds them in its cache, does without the padding behind the last ground truth, and need not
    divide rows among threads, which costs it more than the rows.
    """
    priors_by_coordinate = priors.T

    def add_row(index, state):
        of_prior, gt, of_gt, nearest = state
        row = jnp.where(real[index], _row(gt_boxes[index], priors_by_coordinate), -1.0)
        larger = row > of_prior
        value, place = _largest(row)
        return (
            jnp.where(larger, row, of_prior),
            jnp.where(larger, index, gt),
            of_gt.at[index].set(value),
            nearest.at[index].set(place),
        )

    # No box overlaps by less than 0, and a padding's -1 is not larger than this.
    start = (
        jnp.full_like(priors[:, 0], -1.0),
        jnp.zeros_like(priors[:, 0], jnp.int32),
        jnp.full_like(gt_boxes[:, 0], -1.0),
        jnp.zeros_like(real, jnp.int32),
    )
    behind_last = jnp.max(jnp.where(real, jnp.arange(1, len(real) + 1, dtype=jnp.int32), 0))
    of_prior, gt, of_gt, nearest = jax.lax.fori_loop(0, behind_last, add_row, start)
    return _Overlaps(of_prior, gt, _own_priors(gt_boxes, priors, of_gt, nearest))


def _row(box: jax.Array, priors_by_coordinate: jax.Array) -> jax.Array:
    """`[P]` IoU of a box with the priors, `[4, P]`."""
    return box_ops.pairwise_iou(box[None], priors_by_coordinate.T)[0]


def _largest(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest value of `[P]` and its first index; a CPU vectorises no argmax."""
    value = jnp.max(row)
    # float32 counts to 2^24, and has no more than so many priors.
    places = jnp.arange(row.size, dtype=jnp.float32)
    return value, jnp.min(jnp.where(row == value, places, jnp.inf)).astype(jnp.int32)


def _own_priors(
    gt_boxes: jax.Array, priors: jax.Array, of_gt: jax.Array, nearest: jax.Array
) -> jax.Array:
    """`_Overlaps.own`, from the largest IoU of each ground truth, `[G]`, and with which prior.

    Greed fixes the pairs from the largest overlap down. Where one's prior is taken by a pair before
    it, it looks for its next best; who is before the first such pair has what it will keep. So only
    those whose prior is taken look at all priors again.
    """
    priors_by_coordinate = priors.T
    lower = jnp.arange(len(gt_boxes))[:, None] < jnp.arange(len(gt_boxes))

    def order(state):
        """Who is before whom `[G, G]`, and who is first of those whose prior is taken `[G]`."""
        of_gt, prior = state
        same = prior[:, None] == prior
        # Of equal overlaps the lowest prior's, then the lowest ground truth's.
        tie = (prior[:, None] < prior) | (same & lower)
        before = (of_gt[:, None] > of_gt) | ((of_gt[:, None] == of_gt) & tie)
        taken = jnp.any(before & same, axis=0) & (of_gt > _LEAST_OVERLAP)
        return before, taken & ~jnp.any(before & taken[:, None], axis=0)

    def look_again(state):
        of_gt, prior = state
        before, first = order(state)
        gt = jnp.argmax(first)
        row = _row(gt_boxes[gt], priors_by_coordinate)
        kept = jnp.where(before[:, gt], prior, len(priors))
        value, place = _largest(row.at[kept].set(-1.0, mode="drop"))
        return of_gt.at[gt].set(value), prior.at[gt].set(place)

    of_gt, prior = jax.lax.while_loop(
        lambda state: jnp.any(order(state)[1]), look_again, (of_gt, nearest)
    )
    return jnp.where(of_gt > _LEAST_OVERLAP, prior, len(priors))
