"""SSD's training objective: smooth L1 and softmax cross-entropy with hard negative mining."""

import jax
import jax.numpy as jnp
import numpy as np

_SIGN = np.uint32(1 << 31)  # the bit that a float32 has its sign in


def hard_negative_mask(
    background_loss: jax.Array, positive: jax.Array, *, neg_pos_ratio: float = 3.0
) -> jax.Array:
    """Selects the negatives of one picture that the background class explains worst.

    Keeps exactly `min(floor(neg_pos_ratio * positives), non-positives)`; ties break by prior index.

    Args:
      background_loss: `[P]` -log softmax of the background class, in nats, finite.
      positive: `[P]` bool, True where a prior is matched.
      neg_pos_ratio: Negatives kept for each positive; the paper uses 3.

    Returns:
      `[P]` bool mask, disjoint from `positive`.

    Source: Liu et al. 2016, section 2.2, "Hard negative mining".
    """
    positives = jnp.sum(positive)
    wanted = jnp.floor(neg_pos_ratio * positives).astype(jnp.int32)
    keep = jnp.minimum(wanted, positive.size - positives)
    candidates = jnp.where(positive, -jnp.inf, background_loss.astype(jnp.float32))
    # The keep-th largest value splits the ranks; of those equal to it, the first fill up.
    threshold = _kth_largest(candidates, jnp.maximum(keep, 1))
    above = candidates > threshold
    equal = (candidates == threshold) & ~positive
    fills = jnp.cumsum(equal) <= keep - jnp.sum(above)
    return (keep > 0) & (above | (equal & fills))


def _kth_largest(values: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest of `[N]` float32 values, k from 1: bit by bit, for sorting them is slow.

    A GPU or TPU settles several bits in a step, for its steps cost more than what is in them.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    # Whole numbers in the order of the values.
    ranks = jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)
    rank = jax.lax.platform_dependent(
        ranks, k, cpu=_kth_largest_rank_early, default=_kth_largest_rank
    )
    return jax.lax.bitcast_convert_type(jnp.where(rank >= _SIGN, rank ^ _SIGN, ~rank), jnp.float32)


def _kth_largest_rank(ranks: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest of `[N]` uint32, four bits at a time."""
    bits = 4

    def settle(number, found):
        digits = jnp.arange(1, 1 << bits, dtype=jnp.uint32)
        tried = found | (digits << (jnp.uint32(32 - bits) - jnp.uint32(bits) * number))
        # The more is tried, the fewer are as large.
        enough = jnp.sum(ranks >= tried[:, None], axis=1) >= k
        return jnp.max(jnp.where(enough, tried, found))

    # From a zero of this device's own, as what is found is.
    nothing = jnp.zeros_like(ranks[0])
    return jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(32 // bits), settle, nothing)


@jax.custom_batching.sequential_vmap
def _kth_largest_rank_early(ranks: jax.Array, k: jax.Array) -> jax.Array:
    """The same, a bit and a picture at a time, until what is found parts k from the rest."""

    def settle(state):
        bit, found, as_large = state
        tried = found | bit
        count = jnp.sum(ranks >= tried, dtype=k.dtype)
        enough = count >= k
        return bit >> 1, jnp.where(enough, tried, found), jnp.where(enough, count, as_large)

    nothing = jnp.zeros_like(ranks[0])
    start = nothing | _SIGN, nothing, jnp.full_like(k, ranks.size)
    _, found, _ = jax.lax.while_loop(lambda state: (state[0] > 0) & (state[2] != k), settle, start)
    return jnp.min(jnp.where(ranks >= found, ranks, ~jnp.uint32(0)))


def _log_sum_exp(conf: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of the last axis, and log(sum(exp(conf - largest))) over it."""
    largest = jnp.max(conf, axis=-1)
    return largest, jnp.log(jnp.sum(jnp.exp(conf - largest[..., None]), axis=-1))


def _is_own(conf: jax.Array, labels: jax.Array) -> jax.Array:
    """`[..., C]` bool, True at each row's own class."""
    return jnp.arange(conf.shape[-1]) == labels[..., None]


@jax.custom_jvp
def _cross_entropy(conf: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax, `[...]`, of each row's own class: `[..., C]` logits, `[...]` labels."""
    largest, log_sum = _log_sum_exp(conf)
    own = jax.lax.platform_dependent(
        conf,
        labels,
        cpu=lambda conf, labels: jnp.take_along_axis(conf, labels[..., None], axis=-1)[..., 0],
        default=lambda conf, labels: jnp.sum(jnp.where(_is_own(conf, labels), conf, 0), axis=-1),
    )
    return log_sum + (largest - own)


@_cross_entropy.defjvp
def _cross_entropy_jvp(primals, tangents):
    """With the softmax computed again, for that is faster on a CPU than to write it out."""
    conf, labels = primals
    largest, log_sum = _log_sum_exp(conf)
    softmax = jnp.exp((conf - largest[..., None]) - log_sum[..., None])
    slope = softmax - _is_own(conf, labels)
    return _cross_entropy(*primals), jnp.sum(slope * tangents[0], axis=-1)


@jax.custom_jvp
def _smooth_l1(error: jax.Array) -> jax.Array:
    """Girshick 2015, equation 3, elementwise."""
    size = jnp.abs(error)
    return jnp.where(size < 1, 0.5 * error * error, size - 0.5)


@_smooth_l1.defjvp
def _smooth_l1_jvp(primals, tangents):
    """Without the sign and the two branches of autodiff, which XLA would write out on a CPU."""
    return _smooth_l1(*primals), jnp.clip(primals[0], -1, 1) * tangents[0]


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

    A batch without positives has loss 0 and gradient 0. Where the pictures are a part of a batch, a
    device's or one of several that are accumulated, `positives` is that of the whole batch: losses
    and gradients of the parts then *sum* (not average) to those of the whole.

    Args:
      loc: `[B, P, 4]` predicted offsets.
      conf: `[B, P, C]` class logits, class 0 is background.
      loc_targets: `[B, P, 4]` offsets of the matched ground truth; ignored where `labels` is 0.
      labels: `[B, P]` int class of each prior, 0 is background.
      neg_pos_ratio: Mined negatives for each positive of a picture.
      loc_weight: The paper's alpha.
      positives: N, a scalar count; None: of these pictures.

    Returns:
      The scalar loss, and metrics: `loss`, `loc_loss`, `conf_loss`, and the counts `positives` and
      `negatives` of these pictures. All float32 whatever the inputs' type.

    Source: Liu et al. 2016, equations 1 to 3.
    """
    loc, conf = loc.astype(jnp.float32), conf.astype(jnp.float32)
    positive = labels > 0
    cross_entropy = _cross_entropy(conf, labels)
    largest, log_sum = _log_sum_exp(conf)  # which the compiler finds computed already
    background_loss = jax.lax.stop_gradient(log_sum + (largest - conf[..., 0]))
    negative = jax.vmap(
        lambda loss, pos: hard_negative_mask(loss, pos, neg_pos_ratio=neg_pos_ratio)
    )(background_loss, positive)
    # Offsets of unmatched priors may be anything: replace them before the loss, not after.
    error = jnp.where(positive[..., None], loc - loc_targets, 0)
    here = jnp.sum(positive)
    count = jnp.maximum(here if positives is None else positives, 1).astype(jnp.float32)
    conf_loss = jnp.sum(jnp.where(positive | negative, cross_entropy, 0)) / count
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
