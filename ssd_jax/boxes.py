"""Geometry of boxes: conversions, IoU, and the offsets that SSD regresses.

Boxes are float32 in [0, 1] of the image's width and height. `boxes` are corners (xmin, ymin,
xmax, ymax); a name that ends in `_cxcywh` holds center and size.
"""

import chex
import jax
import jax.numpy as jnp


def cxcywh_to_xyxy(boxes: jax.Array) -> jax.Array:
    """Converts `[..., 4]` center and size to `[..., 4]` corners, in the same unit."""
    chex.assert_shape(boxes, (..., 4))
    center, size = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([center - size / 2, center + size / 2], axis=-1)


def xyxy_to_cxcywh(boxes: jax.Array) -> jax.Array:
    """Converts `[..., 4]` corners to `[..., 4]` center and size, in the same unit."""
    chex.assert_shape(boxes, (..., 4))
    low, high = jnp.split(boxes, 2, axis=-1)
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def area(boxes: jax.Array) -> jax.Array:
    """Areas `[...]` of `[..., 4]` corners; 0 where a side is negative."""
    chex.assert_shape(boxes, (..., 4))
    low, high = jnp.split(boxes, 2, axis=-1)
    return jnp.prod(jnp.maximum(high - low, 0), axis=-1)


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Jaccard overlap (intersection over union) of every box of `a` with every box of `b`.

    Args:
      a: `[N, 4]` corners.
      b: `[M, 4]` corners.

    Returns:
      `[N, M]` in [0, 1]; 0 where both boxes of a pair have no area. No epsilon biases small boxes.
    """
    chex.assert_shape([a, b], (None, 4))
    # By coordinates, not by corners: arrays whose last axis has two values are slow on a CPU.
    left, top, right, bottom = (coordinate[:, None] for coordinate in a.T)
    low_x, low_y, high_x, high_y = b.T
    width = jnp.maximum(jnp.minimum(right, high_x) - jnp.maximum(left, low_x), 0)
    height = jnp.maximum(jnp.minimum(bottom, high_y) - jnp.maximum(top, low_y), 0)
    intersection = width * height
    union = area(a)[:, None] + area(b)[None, :] - intersection
    # Without a union there is no intersection either.
    return intersection / jnp.where(union > 0, union, 1)


def encode(
    boxes: jax.Array,
    priors_cxcywh: jax.Array,
    *,
    variances: tuple[float, float] = (0.1, 0.2),
) -> jax.Array:
    """Offsets that turn priors into boxes: the targets of the loc head.

    Args:
      boxes: `[..., P, 4]` corners, one for each prior, with positive width and height.
      priors_cxcywh: `[..., P, 4]` center and size of the priors.
      variances: Divisors of the center's and of the size's offset.

    Returns:
      `[..., P, 4]` loc: (cx - px) / pw / v0, (cy - py) / ph / v0, ln(w / pw) / v1, ln(h / ph) / v1.
      A box without area gives -inf or NaN: drop such boxes when data is read.

    Source: Liu et al. 2016, equation 2; the variances are those of the authors' release.
    """
    chex.assert_shape([boxes, priors_cxcywh], (..., None, 4))
    center, size = jnp.split(xyxy_to_cxcywh(boxes), 2, axis=-1)
    prior_center, prior_size = jnp.split(priors_cxcywh, 2, axis=-1)
    return jnp.concatenate(
        [
            (center - prior_center) / prior_size / variances[0],
            jnp.log(size / prior_size) / variances[1],
        ],
        axis=-1,
    )


def decode(
    loc: jax.Array,
    priors_cxcywh: jax.Array,
    *,
    variances: tuple[float, float] = (0.1, 0.2),
) -> jax.Array:
    """Boxes that priors become when moved by the offsets `loc`: the inverse of `encode`.

    Args:
      loc: `[..., P, 4]` offsets.
      priors_cxcywh: `[..., P, 4]` center and size of the priors.
      variances: See `encode`.

    Returns:
      `[..., P, 4]` corners, not clipped.

    Source: Liu et al. 2016, equation 2.
    """
    chex.assert_shape([loc, priors_cxcywh], (..., None, 4))
    center, size = jnp.split(loc, 2, axis=-1)
    prior_center, prior_size = jnp.split(priors_cxcywh, 2, axis=-1)
    return cxcywh_to_xyxy(
        jnp.concatenate(
            [
                prior_center + center * variances[0] * prior_size,
                prior_size * jnp.exp(size * variances[1]),
            ],
            axis=-1,
        )
    )


def clip(boxes: jax.Array) -> jax.Array:
    """Clips `[..., 4]` corners to the image, [0, 1]."""
    chex.assert_shape(boxes, (..., 4))
    return jnp.clip(boxes, 0, 1)
