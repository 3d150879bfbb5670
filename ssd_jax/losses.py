"""SSD's training objective: smooth L1 and softmax cross-entropy with hard negative mining."""

import chex
import jax
import jax.numpy as jnp

from ssd_jax.kernels import cross_entropy, selection


def hard_negative_mask(
    background_loss: jax.Array, positive: jax.Array, *, neg_pos_ratio: float = 3.0
) -> jax.Array:
    """Selects the negatives of one image that the background class explains worst.

    Keeps exactly `min(floor(neg_pos_ratio * positives), non-positives)`; ties break by prior index.

    Args:
      background_loss: `[P]` -log softmax of the background class, in nats, finite.
      positive: `[P]` bool, True where a prior is matched.
      neg_pos_ratio: Negatives kept for each positive; the paper uses 3.

    Returns:
      `[P]` bool mask, disjoint from `positive`.

    Source: Liu et al. 2016, section 2.2, "Hard negative mining".
    """
    chex.assert_rank(positive, 1)
    chex.assert_shape(background_loss, positive.shape)
    positives = jnp.sum(positive)
    wanted = jnp.floor(neg_pos_ratio * positives).astype(jnp.int32)
    keep = jnp.minimum(wanted, positive.size - positives)
    candidates = jnp.where(positive, -jnp.inf, background_loss.astype(jnp.float32))
    # All above the keep-th largest value are kept; of those equal to it, the first fill up.
    threshold = selection.kth_largest(candidates, jnp.maximum(keep, 1))
    above = candidates > threshold
    equal = (candidates == threshold) & ~positive
    fills = jnp.cumsum(equal) <= keep - jnp.sum(above)
    return (keep > 0) & (above | (equal & fills))


def multibox_loss(
    loc: jax.Array,
    conf: jax.Array,
    loc_targets: jax.Array,
    labels: jax.Array,
    *,
    neg_pos_ratio: float = 3.0,
    loc_weight: float = 1.0,
    positives: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The multibox loss of a batch: (1 / N) (cross-entropy + loc_weight * smooth L1).

    A batch without positives has loss 0 and gradient 0. Where the images are a part of a batch, of
    a device or of one step of gradient accumulation, `positives` is the count of the whole batch:
    losses and gradients of the parts then *sum* (not average) to those of the whole.

    Args:
      loc: `[B, P, 4]` predicted offsets.
      conf: `[B, P, C]` class logits, class 0 is background.
      loc_targets: `[B, P, 4]` offsets of the matched ground truth; ignored where `labels` is 0.
      labels: `[B, P]` int class of each prior, 0 is background.
      neg_pos_ratio: Mined negatives for each positive of an image.
      loc_weight: The paper's alpha.
      positives: N, a scalar count; None: that of these images.

    Returns:
      The scalar loss, and metrics: `loss`, `loc_loss`, `conf_loss`, and the counts `positives` and
      `negatives` of these images. All float32 whatever the inputs' type.

    Source: Liu et al. 2016, equations 1 to 3.
    """
    chex.assert_rank(conf, 3)
    chex.assert_shape(labels, conf.shape[:2])
    chex.assert_shape([loc, loc_targets], (*conf.shape[:2], 4))
    loc, conf = loc.astype(jnp.float32), conf.astype(jnp.float32)
    positive = labels > 0
    class_loss = cross_entropy.cross_entropy(conf, labels)
    largest, log_sum = cross_entropy.log_sum_exp(conf)  # the compiler merges it with the above
    background_loss = jax.lax.stop_gradient(log_sum + (largest - conf[..., 0]))
    negative = jax.vmap(
        lambda loss, pos: hard_negative_mask(loss, pos, neg_pos_ratio=neg_pos_ratio)
    )(background_loss, positive)
    # Offsets of unmatched priors may be NaN: replace them before the loss, not after.
    error = jnp.where(positive[..., None], loc - loc_targets, 0)
    here = jnp.sum(positive)
    count = jnp.maximum(here if positives is None else positives, 1).astype(jnp.float32)
    conf_loss = jnp.sum(jnp.where(positive | negative, class_loss, 0)) / count
    loc_loss = jnp.sum(_smooth_l1(error)) / count
    loss = conf_loss + loc_weight * loc_loss
    metrics = {
        "loss": loss,
        "loc_loss": loc_loss,
        "conf_loss": conf_loss,
        "positives": here.astype(jnp.float32),
        "negatives": jnp.sum(negative).astype(jnp.float32),
    }
    return loss, metrics


def _smooth_l1(error: jax.Array) -> jax.Array:
    """Girshick 2015, equation 3, elementwise."""
    size = jnp.abs(error)
    return jnp.where(size < 1, 0.5 * error * error, size - 0.5)
