"""Softmax cross-entropy with a gradient that recomputes the softmax instead of storing it.

On a CPU, reading and writing arrays of all priors and classes costs more than their exponentials.
The plain form is `-jax.nn.log_softmax(logits)` at each row's label; `benchmarks/kernels.py`
compares the two.
"""

import jax
import jax.numpy as jnp


def log_sum_exp(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`[...]` the largest of `[..., C]` logits, and log(sum(exp(logits - largest)))."""
    largest = jnp.max(logits, axis=-1)
    return largest, jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1))


@jax.custom_jvp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax, `[...]` in nats, of `[..., C]` float32 logits at `[...]` int labels."""
    largest, log_sum = log_sum_exp(logits)
    own = jax.lax.platform_dependent(logits, labels, cpu=_gathered, default=_compared)
    return log_sum + (largest - own)


@cross_entropy.defjvp
def _cross_entropy_jvp(primals, tangents):
    logits, labels = primals
    largest, log_sum = log_sum_exp(logits)
    softmax = jnp.exp((logits - largest[..., None]) - log_sum[..., None])
    slope = softmax - _is_own(logits, labels)
    return cross_entropy(*primals), jnp.sum(slope * tangents[0], axis=-1)


def _gathered(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`[...]` the logit of each row's label."""
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def _compared(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`_gathered` by comparison, which accelerators fuse with adjacent operations."""
    return jnp.sum(jnp.where(_is_own(logits, labels), logits, 0), axis=-1)


def _is_own(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`[..., C]` bool, True at each row's label."""
    return jnp.arange(logits.shape[-1]) == labels[..., None]
