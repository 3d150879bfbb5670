"""The k-th largest value, found bit by bit.

Hard negative mining needs it of every image, and sorting the losses of all priors is slow on every
device. The plain form is `jnp.sort(values)[-k]`; `benchmarks/kernels.py` compares the two.
"""

import jax
import jax.numpy as jnp
import numpy as np

_SIGN = np.uint32(1 << 31)  # the sign bit of a float32
_DIGIT = 4  # bits that a GPU or TPU settles in one step


def kth_largest(values: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest of `[N]` float32 values without NaN; k counts from 1."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    # Unsigned integers in the order of the values.
    ranks = jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)
    rank = jax.lax.platform_dependent(ranks, k, cpu=_rank_by_bits, default=_rank_by_digits)
    return jax.lax.bitcast_convert_type(jnp.where(rank >= _SIGN, rank ^ _SIGN, ~rank), jnp.float32)


def _rank_by_digits(ranks: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest of `[N]` uint32, several bits in a step.

    A step of a loop costs a GPU or TPU more than the comparisons in it.
    """

    def settle(number, found):
        digits = jnp.arange(1, 1 << _DIGIT, dtype=jnp.uint32)
        tried = found | (digits << (jnp.uint32(32 - _DIGIT) - jnp.uint32(_DIGIT) * number))
        # The larger a tried value, the fewer ranks reach it.
        enough = jnp.sum(ranks >= tried[:, None], axis=1) >= k
        return jnp.max(jnp.where(enough, tried, found))

    # Under shard_map, a loop's start has to vary over devices as its result does.
    start = jnp.zeros_like(ranks[0])
    return jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(32 // _DIGIT), settle, start)


@jax.custom_batching.sequential_vmap
def _rank_by_bits(ranks: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest of `[N]` uint32 on a CPU: one image and one bit at a time.

    It stops as soon as exactly k ranks reach the threshold.
    """

    def settle(state):
        bit, found, reached = state
        tried = found | bit
        count = jnp.sum(ranks >= tried, dtype=k.dtype)
        enough = count >= k
        return bit >> 1, jnp.where(enough, tried, found), jnp.where(enough, count, reached)

    zero = jnp.zeros_like(ranks[0])
    start = zero | _SIGN, zero, jnp.full_like(k, ranks.size)
    _, found, _ = jax.lax.while_loop(lambda state: (state[0] > 0) & (state[2] != k), settle, start)
    return jnp.min(jnp.where(ranks >= found, ranks, ~jnp.uint32(0)))
