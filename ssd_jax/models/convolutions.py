"""Convolutions of each channel and of each position on its own, in the way that a device likes.

XLA's convolution in groups is slow on a CPU (benchmarks/depthwise.py): there each is computed from
products. Which of the two a program holds is decided where it is compiled, so that one that is
exported for several platforms has each where it belongs.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Padding = tuple[tuple[int, int], ...]  # (before, after) of rows and of columns


def padding(side: int, kernel: int, stride: int, style: str) -> tuple[int, int]:
    """(before, after) of an axis, so that ceil(side / stride) outputs come of it.

    Args:
      side: Of the map.
      kernel: Side of the kernel, odd.
      stride: Of the convolution.
      style: `"torch"`: as much on both ends; `"tensorflow"`: as little as needed, the odd one last.
    """
    if style == "torch":
        return kernel // 2, kernel // 2
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
    groups: int = 1,
) -> jax.Array:
    """XLA's convolution of `[B, H, W, in]` with `[rows, columns, in / groups, out]`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def depthwise(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: Padding) -> jax.Array:
    """Convolves each channel on its own, `[B, H, W, C]` with `[rows, columns, 1, C]`."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _shifted_products(x, kernel, stride, padding),
        default=functools.partial(convolution, stride=stride, padding=padding, groups=x.shape[-1]),
    )


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution, `[B, H, W, in]` with `[1, 1, in, out]`."""
    return jax.lax.platform_dependent(x, kernel, cpu=_matrix_product, default=convolution)


# --- On a CPU ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_products(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A depthwise convolution as one multiplication and addition of the map for each weight."""
    sides = zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    size = [(side + sum(ends) - length) // stride + 1 for side, length, ends in sides]
    return _sum_of_products(x, kernel, size, stride, padding)


def _sum_of_products(
    x: jax.Array, kernel: jax.Array, size: Sequence[int], stride: int, padding: Padding
) -> jax.Array:
    shifts = _shifts(x, kernel.shape, size, stride, padding)
    weights = [kernel[i, j, 0] for i, j in np.ndindex(*kernel.shape[:2])]
    return functools.reduce(jnp.add, map(jnp.multiply, shifts, weights))


def _shifts(
    x: jax.Array, kernel: Sequence[int], size: Sequence[int], stride: int, padding: Padding
) -> list[jax.Array]:
    """What each weight of a kernel is multiplied by, `[B, *size, C]`, by row and column."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    shifts = []
    for start in np.ndindex(*kernel[:2]):
        shifted = x
        for axis in (0, 1):
            end = start[axis] + (size[axis] - 1) * stride + 1
            shifted = jax.lax.slice_in_dim(shifted, start[axis], end, stride=stride, axis=axis + 1)
        shifts.append(shifted)
    return shifts


def _shifted_products_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted_products(x, kernel, stride, padding), (x, kernel)


def _shifted_products_backward(
    stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums the kernel's gradient picture by picture, of all weights at once: caches are small.

    By autodiff, a sum over the whole batch for each weight, forward and backward together take 1.2
    to 4.1 times as long (benchmarks/README.md).
    """
    x, kernel = saved
    size = gradient.shape[1:3]

    def add_picture(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        picture, wanted = (array[None] for array in pair)
        shifts = _shifts(picture, kernel.shape, size, stride, padding)
        parts = [(shifted * wanted).astype(jnp.float32) for shifted in shifts]
        zeros = [np.float32(0)] * len(parts)
        columns = jax.lax.reduce(parts, zeros, _add_each, (0, 1))  # each [W, C]
        return total + jnp.stack([jnp.sum(part, axis=0) for part in columns]), None

    flat = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[-1]), jnp.float32)
    weights, _ = jax.lax.scan(add_picture, flat, (x, gradient))
    backward = jax.linear_transpose(lambda x: _sum_of_products(x, kernel, size, stride, padding), x)
    return *backward(gradient), weights.reshape(kernel.shape).astype(kernel.dtype)


def _add_each(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> list[jax.Array]:
    return [a + b for a, b in zip(left, right, strict=True)]


_shifted_products.defvjp(_shifted_products_forward, _shifted_products_backward)


@jax.custom_vjp
def _matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution as a product of matrices."""
    return x @ kernel[0, 0]


def _matrix_product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _matrix_product(x, kernel), (x, kernel)


def _matrix_product_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """XLA transposes an operand of the kernel's gradient: here the narrower of the two.

    By autodiff, which leaves it no choice, the widening ones take up to seven times as long.
    """
    x, kernel = saved
    if x.shape[-1] <= gradient.shape[-1]:
        weights = jnp.einsum("bhwi,bhwo->io", x, gradient)
    else:
        weights = jnp.einsum("bhwo,bhwi->oi", gradient, x).T
    return gradient @ kernel[0, 0].T, weights.reshape(kernel.shape).astype(kernel.dtype)


_matrix_product.defvjp(_matrix_product_forward, _matrix_product_backward)
