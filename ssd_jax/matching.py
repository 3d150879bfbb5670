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
    priors = box_ops.cxcywh_to_xyxy(priors_cxcywh)
    if gt_boxes.shape[0] == 0:
        return Matches(priors, jnp.zeros(priors.shape[0], jnp.int32))
    real = gt_labels > 0
    iou = jnp.where(real[:, None], box_ops.pairwise_iou(gt_boxes, priors), -1.0)  # [G, P]
    nearest = jnp.argmax(iou, axis=0)
    nearest = jnp.where(jnp.max(iou, axis=0) >= iou_threshold, nearest, -1)
    own_prior = _own_priors(iou)
    # A ground truth without a prior of its own writes behind the end, which `drop` ignores.
    target = jnp.where(own_prior >= 0, own_prior, priors.shape[0])
    matched = nearest.at[target].set(jnp.arange(gt_boxes.shape[0]), mode="drop")
    positive = matched >= 0
    return Matches(
        boxes=jnp.where(positive[:, None], gt_boxes[matched], priors),
        labels=jnp.where(positive, gt_labels[matched], 0).astype(jnp.int32),
    )


def _own_priors(iou: jax.Array) -> jax.Array:
    """The prior that each ground truth gets in the first stage, `[G]`, -1 for none.

    At most G - 1 priors can be gone before a ground truth has its turn, so its G best suffice:
    the greedy choice runs on `[G, G]` candidates instead of `[G, P]` pairs.
    """
    num_gt, num_priors = iou.shape
    values, candidates = jax.lax.top_k(iou, min(num_gt, num_priors))
    rows = jnp.arange(num_gt)[:, None]
    order = candidates * num_gt + rows  # the order in which equal overlaps are taken

    def fix_best(_, carry):
        values, own = carry
        best = jnp.max(values)
        first = jnp.min(jnp.where(values == best, order, num_priors * num_gt))
        prior, gt = first // num_gt, first % num_gt
        found = best > _LEAST_OVERLAP
        own = jnp.where(found & (jnp.arange(num_gt) == gt), prior, own)
        gone = (candidates == prior) | (rows == gt)
        return jnp.where(gone, -1.0, values), own

    nothing = jnp.full(num_gt, -1, candidates.dtype)
    return jax.lax.fori_loop(0, num_gt, fix_best, (values, nothing))[1]
