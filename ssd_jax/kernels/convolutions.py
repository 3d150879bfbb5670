"""Convolutions that a CPU computes without XLA's convolution where that is slow.

On a CPU, XLA is slow at grouped convolutions (`benchmarks/depthwise.py`), at 1x1 convolutions
(`benchmarks/kernels.py`), and at the kernel gradient of a convolution with many outputs
(`benchmarks/kernel_gradient.py`). There they are computed as sums of products and as matrix
products. The plain form, which every other platform runs, is `plain`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Padding = tuple[tuple[int, int], ...]  # (before, after) of rows and of columns

# With at least this many outputs, and this many per input, matrix products are the faster way to a
# kernel's gradient on a CPU.
_MANY_OUTPUTS, _FOR_EACH_INPUT = 64, 1 / 10

# Maximum pixels of a map whose shifted copies side by side fit into a CPU's cache.
_PIXELS = 2048


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolves `[B, H, W, in]` with `[rows, columns, in / groups, out]`.

    Args:
      x: The feature maps.
      kernel: The weights.
      stride: Stride of rows and columns.
      padding: (before, after) of rows and of columns.
      dilation: Distance of neighboring weights in pixels.
      groups: The number of groups that the channels are split into.

    Returns:
      `[B, rows, columns, out]`.
    """
    inputs, outputs = kernel.shape[-2:]
    many = outputs >= max(_MANY_OUTPUTS, _FOR_EACH_INPUT * inputs)
    if many and stride == groups == 1:
        return _many_outputs(x, kernel, padding, dilation)
    return plain(x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)


def plain(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """XLA's convolution with XLA's gradients; the arguments are those of `convolution`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def depthwise(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: Padding) -> jax.Array:
    """A depthwise convolution of `[B, H, W, C]` with `[rows, columns, 1, C]`."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _shifted_products(x, kernel, stride, padding),
        default=functools.partial(convolution, stride=stride, padding=padding, groups=x.shape[-1]),
    )


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution of `[B, H, W, in]` with `[1, 1, in, out]`."""
    return jax.lax.platform_dependent(x, kernel, cpu=_matrix_product, default=convolution)


# --- On a CPU ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _many_outputs(x: jax.Array, kernel: jax.Array, padding: Padding, dilation: int) -> jax.Array:
    """XLA's convolution with a kernel gradient that a CPU computes as matrix products."""
    return plain(x, kernel, padding=padding, dilation=dilation)


def _many_outputs_forward(
    x: jax.Array, kernel: jax.Array, padding: Padding, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _many_outputs(x, kernel, padding, dilation), (x, kernel)


def _many_outputs_backward(
    padding: Padding, dilation: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    convolve = functools.partial(plain, padding=padding, dilation=dilation)
    x, kernel = saved
    weights = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(
            _kernel_gradient, shape=kernel.shape, padding=padding, dilation=dilation
        ),
        default=lambda x, gradient: jax.linear_transpose(functools.partial(convolve, x), kernel)(
            gradient
        )[0],
    )
    return *jax.linear_transpose(lambda x: convolve(x, kernel), x)(gradient), weights


def _kernel_gradient(
    x: jax.Array, gradient: jax.Array, *, shape: Sequence[int], padding: Padding, dilation: int
) -> jax.Array:
    """The gradient of a kernel, summed over blocks of rows, with one matrix product for each.

    The operands of a product are the map's copies shifted by column and the gradient's copies
    shifted by row, side by side, so it gives all weights at once. A block is so small that both
    operands stay in the cache.
    """
    height, width = x.shape[1], gradient.shape[2]
    blocks = max(1, round(height * width / _PIXELS))
    rows = -(-height // blocks)
    span = (shape[0] - 1) * dilation
    # A row of the map meets the gradient's rows from `before` above it to `after` below it.
    before, after = span - padding[0][0], padding[0][0]
    to_blocks = blocks * rows - height

    def add_image(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        # In float32: within a loop, XLA's CPU backend cannot sum bfloat16 products in float32.
        image, wanted = jax.tree.map(lambda values: values.astype(jnp.float32), pair)
        image = jnp.pad(image, ((0, to_blocks), padding[1], (0, 0)))
        after_last = height + to_blocks + after - len(wanted)
        zero = np.float32(0)
        wanted = jax.lax.pad(wanted, zero, ((before, after_last, 0), (0, 0, 0), (0, 0, 0)))

        def add_block(number: jax.Array, total: jax.Array) -> jax.Array:
            below = jax.lax.dynamic_slice_in_dim(image, number * rows, rows)
            above = jax.lax.dynamic_slice_in_dim(wanted, number * rows, rows + span)
            columns = [below[:, start : start + width] for start in _starts(shape[1], dilation)]
            lines = [above[start : start + rows] for start in reversed(_starts(shape[0], dilation))]
            return total + _sum_of_outer(
                jnp.concatenate(columns, axis=-1), jnp.concatenate(lines, axis=-1)
            )

        return jax.lax.fori_loop(0, blocks, add_block, total), None

    zeros = jnp.zeros((shape[1] * shape[2], shape[0] * shape[3]), jnp.float32)
    total, _ = jax.lax.scan(add_image, zeros, (x, gradient))
    by_column = total.reshape(shape[1], shape[2], shape[0], shape[3])
    return by_column.transpose(2, 0, 1, 3).astype(x.dtype)


def _starts(count: int, dilation: int) -> range:
    """Distances in pixels of an axis' weights from the first one."""
    return range(0, count * dilation, dilation)


def _sum_of_outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """The sum of outer products of `[..., I]` and `[..., O]`, `[I, O]` float32.

    XLA transposes the first operand, so the narrower one comes first. In the other order a layer
    may take up to seven times as long.
    """
    axes = tuple(range(a.ndim - 1))
    product = functools.partial(
        jnp.tensordot, axes=(axes, axes), preferred_element_type=jnp.float32
    )
    return product(a, b) if a.shape[-1] <= b.shape[-1] else product(b, a).T


_many_outputs.defvjp(_many_outputs_forward, _many_outputs_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_products(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """A depthwise convolution as one multiplication and addition of shifted maps per weight."""
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
    """The map `[B, *size, C]` that each weight is multiplied by, ordered by row and column."""
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
    """Sums the kernel's gradient image by image, all weights at once, to stay in the cache.

    Autodiff sums over the whole batch for each weight; forward and backward together then take 1.2
    to 2.3 times as long (`benchmarks/depthwise.py`).
    """
    x, kernel = saved
    size = gradient.shape[1:3]

    def add_image(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        image, wanted = (array[None] for array in pair)
        shifts = _shifts(image, kernel.shape, size, stride, padding)
        parts = [(shifted * wanted).astype(jnp.float32) for shifted in shifts]
        zeros = [np.float32(0)] * len(parts)
        columns = jax.lax.reduce(parts, zeros, _add_each, (0, 1))  # each [W, C]
        return total + jnp.stack([jnp.sum(part, axis=0) for part in columns]), None

    flat = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[-1]), jnp.float32)
    weights, _ = jax.lax.scan(add_image, flat, (x, gradient))
    backward = jax.linear_transpose(lambda x: _sum_of_products(x, kernel, size, stride, padding), x)
    return *backward(gradient), weights.reshape(kernel.shape).astype(kernel.dtype)


def _add_each(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> list[jax.Array]:
    return [a + b for a, b in zip(left, right, strict=True)]


_shifted_products.defvjp(_shifted_products_forward, _shifted_products_backward)


@jax.custom_vjp
def _matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution as a matrix product."""
    return x @ kernel[0, 0]


def _matrix_product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _matrix_product(x, kernel), (x, kernel)


def _matrix_product_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    weights = _sum_of_outer(x, gradient)
    return gradient @ kernel[0, 0].T, weights.reshape(kernel.shape).astype(kernel.dtype)


_matrix_product.defvjp(_matrix_product_forward, _matrix_product_backward)
