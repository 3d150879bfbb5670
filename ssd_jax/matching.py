"""Matching of ground truth to default boxes: Liu et al. 2016, section 2.2, "Matching strategy"."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ssd_jax import boxes as box_ops
from ssd_jax.kernels import row_matching

_LEAST_OVERLAP = 1e-6  # of the authors' release: a pair of a smaller IoU does not overlap


class Matches(NamedTuple):
    """The prediction target of each prior.

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
    """Matches the ground truth of one image to the priors, in two stages.

    First every ground truth gets a prior of its own, globally greedy: of all pairs that overlap the
    one with the largest IoU is fixed and both leave, until no ground truth is left (ties: the
    lowest prior, then ground truth). Then every prior still free takes the ground truth it overlaps
    most, if that IoU is at least `iou_threshold` (ties: lowest ground truth).

    Args:
      gt_boxes: `[G, 4]` corners.
      gt_labels: `[G]` int, classes from 1; 0 is padding, which matches nothing.
      priors_cxcywh: `[P, 4]` center and size of the priors.
      iou_threshold: Threshold of the second stage, in [0, 1].

    Returns:
      The prediction target of each prior.

    Source: Liu et al. 2016, section 2.2; ties and the greedy order as in the authors' release.
    """
    gt_boxes, gt_labels = jnp.asarray(gt_boxes), jnp.asarray(gt_labels)
    chex.assert_shape([gt_boxes, priors_cxcywh], (None, 4))
    chex.assert_shape(gt_labels, gt_boxes.shape[:1])
    priors = box_ops.cxcywh_to_xyxy(jnp.asarray(priors_cxcywh))
    if gt_boxes.shape[0] == 0:
        return Matches(priors, jnp.zeros(priors.shape[0], jnp.int32))
    # A box that is not finite matches nothing; its NaNs would be the largest IoU of every prior.
    real = (gt_labels > 0) & jnp.all(jnp.isfinite(gt_boxes), axis=1)
    of_prior, gt, own = jax.lax.platform_dependent(
        gt_boxes,
        real,
        priors,
        cpu=functools.partial(row_matching.overlaps, least_overlap=_LEAST_OVERLAP),
        default=_overlaps,
    )
    second_stage = jnp.where(of_prior >= iou_threshold, gt, -1)
    # A ground truth without a prior of its own has index P, which mode="drop" ignores.
    every = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32)
    matched = second_stage.at[own].set(every, mode="drop")
    positive = matched >= 0
    return Matches(
        boxes=jnp.where(positive[:, None], gt_boxes[matched], priors),
        labels=jnp.where(positive, gt_labels[matched], 0).astype(jnp.int32),
    )


def _overlaps(
    gt_boxes: jax.Array, real: jax.Array, priors: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The overlaps that both stages need, computed from all pairs at once.

    The greedy first stage goes in rounds: a pair that is the best remaining one of both its sides
    will be fixed sooner or later, so each round fixes all such pairs together.

    Args:
      gt_boxes: `[G, 4]` corners.
      real: `[G]` bool, False where a ground truth is padding.
      priors: `[P, 4]` corners.

    Returns:
      `[P]` the largest IoU of each prior, -1 where no ground truth is real; `[P]` int32, the ground
      truth that it is with, the lowest of equal ones; `[G]` int32, the prior that each ground truth
      gets in the first stage, P for none.
    """
    num_gt = len(gt_boxes)
    iou = jnp.where(real[:, None], box_ops.pairwise_iou(gt_boxes, priors), -1.0)
    lower = jnp.arange(num_gt)[:, None] < jnp.arange(num_gt)

    def fix(state):
        free, waits, own, _ = state
        left = jnp.where(free & waits[:, None], iou, -1.0)
        largest, prior = jnp.max(left, axis=1), jnp.argmax(left, axis=1)
        rivals = left[:, prior]  # [G, G]: with the prior that each ground truth wants
        better = (rivals > largest) | ((rivals == largest) & lower)
        fixed = (largest > _LEAST_OVERLAP) & ~jnp.any(better, axis=0)
        own = jnp.where(fixed, prior.astype(jnp.int32), own)
        return free.at[own].set(False, mode="drop"), waits & ~fixed, own, jnp.any(fixed)

    none = jnp.full_like(real, len(priors), jnp.int32)
    start = jnp.ones_like(iou[0], bool), real, none, jnp.any(real)
    *_, own, _ = jax.lax.while_loop(lambda state: state[3] & jnp.any(state[1]), fix, start)
    return jnp.max(iou, axis=0), jnp.argmax(iou, axis=0).astype(jnp.int32), own
