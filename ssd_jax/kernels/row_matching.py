"""Matching on a CPU: one image and one ground truth at a time.

A CPU keeps one row of IoUs in its cache, skips the padding behind the last ground truth, and loses
nothing to splitting small operations among threads. The plain form, `matching._overlaps`, computes
all pairs of all images at once; `benchmarks/kernels.py` compares the two.
"""

import functools

import jax
import jax.numpy as jnp

from ssd_jax import boxes as box_ops


def overlaps(
    gt_boxes: jax.Array, real: jax.Array, priors: jax.Array, *, least_overlap: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The overlaps of one image that both stages of matching need.

    Args:
      gt_boxes: `[G, 4]` corners.
      real: `[G]` bool, False where a ground truth is padding.
      priors: `[P, 4]` corners.
      least_overlap: In the first stage, a prior must have a larger IoU with its ground truth.

    Returns:
      `[P]` the largest IoU of each prior, -1 where no ground truth is real; `[P]` int32, the ground
      truth that it is with, the lowest of equal ones; `[G]` int32, the prior that each ground truth
      gets in the first stage, P for none.
    """
    of_image = functools.partial(_overlaps_of_image, least_overlap=least_overlap)
    return jax.custom_batching.sequential_vmap(of_image)(gt_boxes, real, priors)


def _overlaps_of_image(
    gt_boxes: jax.Array, real: jax.Array, priors: jax.Array, *, least_overlap: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes `overlaps` one row of IoUs after the other."""
    priors_by_coordinate = priors.T

    def add_row(index, state):
        of_prior, gt, of_gt, favorite = state
        row = jnp.where(real[index], _row(gt_boxes[index], priors_by_coordinate), -1.0)
        larger = row > of_prior
        value, place = _largest(row)
        return (
            jnp.where(larger, row, of_prior),
            jnp.where(larger, index, gt),
            of_gt.at[index].set(value),
            favorite.at[index].set(place),
        )

    # An IoU is at least 0, and the -1 of padding is not larger than this -1.
    start = (
        jnp.full_like(priors[:, 0], -1.0),
        jnp.zeros_like(priors[:, 0], jnp.int32),
        jnp.full_like(gt_boxes[:, 0], -1.0),
        jnp.zeros_like(real, jnp.int32),
    )
    behind_last = jnp.max(jnp.where(real, jnp.arange(1, len(real) + 1, dtype=jnp.int32), 0))
    of_prior, gt, of_gt, favorite = jax.lax.fori_loop(0, behind_last, add_row, start)
    own = _own_priors(gt_boxes, priors, of_gt, favorite, least_overlap=least_overlap)
    return of_prior, gt, own


def _row(box: jax.Array, priors_by_coordinate: jax.Array) -> jax.Array:
    """`[P]` IoU of a box with the priors, `[4, P]`."""
    return box_ops.pairwise_iou(box[None], priors_by_coordinate.T)[0]


def _largest(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest value of `[P]` and its first index; XLA's argmax is not vectorized on a CPU."""
    value = jnp.max(row)
    # Indices as float32, which is exact up to 2^24 priors.
    places = jnp.arange(row.size, dtype=jnp.float32)
    return value, jnp.min(jnp.where(row == value, places, jnp.inf)).astype(jnp.int32)


def _own_priors(
    gt_boxes: jax.Array,
    priors: jax.Array,
    of_gt: jax.Array,
    favorite: jax.Array,
    *,
    least_overlap: float,
) -> jax.Array:
    """The first stage: `[G]` the prior that each ground truth gets, P for none.

    The greedy algorithm fixes pairs from the largest IoU down. A ground truth whose favorite is
    taken by a pair before it has to look for its next best prior. All ground truths before the
    first such one already have the prior that they will keep, so only those whose prior is taken
    look at all priors again.

    Args:
      gt_boxes: `[G, 4]` corners.
      priors: `[P, 4]` corners.
      of_gt: `[G]` the largest IoU of each ground truth, -1 for padding.
      favorite: `[G]` int32, the prior that it is with.
      least_overlap: See `overlaps`.
    """
    priors_by_coordinate = priors.T
    lower = jnp.arange(len(gt_boxes))[:, None] < jnp.arange(len(gt_boxes))

    def order(state):
        """The order of the ground truths, `[G, G]`, and the first one with a taken prior, `[G]`."""
        of_gt, prior = state
        same = prior[:, None] == prior
        # Equal IoUs are ordered by prior, then by ground truth.
        tie = (prior[:, None] < prior) | (same & lower)
        before = (of_gt[:, None] > of_gt) | ((of_gt[:, None] == of_gt) & tie)
        taken = jnp.any(before & same, axis=0) & (of_gt > least_overlap)
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
        lambda state: jnp.any(order(state)[1]), look_again, (of_gt, favorite)
    )
    return jnp.where(of_gt > least_overlap, prior, len(priors))
