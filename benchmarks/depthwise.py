"""Depthwise convolutions of MobileNetV2 on a CPU: ours beside XLA's convolution in groups.

  python benchmarks/depthwise.py [--batch 8] [--runs 5] [--network]

The value and both gradients of each shape at 320 x 320, in float32. The ways take turns in one
process; the table shows medians, and the median of the ratios of neighbors. `autodiff` is the sum
of shifted products without the gradient that we write out. `--network` times the gradient of the
whole network instead, in which pointwise convolutions are products of matrices in all ways but the
first.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import turns

from ssd_jax.kernels import convolutions
from ssd_jax.models import ssd

# (side, channels, stride) of each block but equal ones, and of the first two heads.
SHAPES = (
    (160, 32, 1), (160, 96, 2), (80, 144, 1), (80, 144, 2), (40, 192, 1), (40, 192, 2),
    (20, 384, 1), (20, 576, 1), (20, 576, 2), (10, 960, 1), (10, 1280, 1),
)  # fmt: skip
PADS = ((1, 1), (1, 1))


def grouped(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: convolutions.Padding):
    """XLA's convolution in groups."""
    return convolutions.plain(x, kernel, stride=stride, padding=padding, groups=x.shape[-1])


def autodiff(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: convolutions.Padding):
    """Our sum of products, with the gradients that autodiff finds."""
    return convolutions._shifted_products.__wrapped__(x, kernel, stride, padding)


WAYS: dict[str, tuple[Callable, Callable]] = {
    "groups": (grouped, convolutions.plain),
    "autodiff": (autodiff, lambda x, kernel: x @ kernel[0, 0]),
    "ours": (convolutions.depthwise, convolutions.pointwise),
}


def layer(way: str, batch: int, side: int, channels: int, stride: int) -> Callable[[], object]:
    """The value and both gradients of one depthwise convolution, compiled."""
    rng = np.random.default_rng(0)
    shapes = (batch, side, side, channels), (3, 3, 1, channels)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    convolve = functools.partial(WAYS[way][0], stride=stride, padding=PADS)

    def run(x: jax.Array, kernel: jax.Array) -> object:
        value, backward = jax.vjp(convolve, x, kernel)
        return value, backward(value)

    return turns.compiled(run, x, kernel)


def network(way: str, batch: int) -> Callable[[], object]:
    """The gradient of the whole network for images, compiled."""
    model = ssd.SSD(num_classes=21, backbone="mobilenet_v2")
    images = jnp.asarray(np.random.default_rng(0).normal(0, 60, (batch, 320, 320, 3)), jnp.float32)
    params = ssd.init(jax.random.key(0), model, (320, 320))

    def loss(params: object, images: jax.Array) -> jax.Array:
        loc, conf = ssd.apply(model, params, images)
        return jnp.mean(loc**2) + jnp.mean(conf**2)

    depthwise, pointwise = WAYS[way]
    with mock.patch.multiple(convolutions, depthwise=depthwise, pointwise=pointwise):
        return turns.compiled(jax.grad(loss), params, images)


def report(name: str, ways: dict[str, Callable[[], object]], runs: int, batch: int) -> None:
    """Measures a row: medians an image, and how many times as long as ours the others take."""
    times = dict(zip(ways, turns.measure([*ways.values()], runs), strict=True))
    medians = [f"{statistics.median(values) / batch:8.2f}" for values in times.values()]
    ratios = [
        f"{statistics.median(a / b for a, b in zip(times[way], times['ours'], strict=True)):6.1f}"
        for way in times
        if way != "ours"
    ]
    print(" | ".join([f"{name:>14}", *medians, *ratios]), flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--network", action="store_true")
    options = parser.parse_args()
    print(" | ".join(["ms an image", *WAYS, *(f"{way}/ours" for way in WAYS if way != "ours")]))
    if options.network:
        ways = {way: network(way, options.batch) for way in WAYS}
        report("network", ways, options.runs, options.batch)
        return
    for shape in SHAPES:
        ways = {way: layer(way, options.batch, *shape) for way in WAYS}
        report(str(shape), ways, options.runs, options.batch)


if __name__ == "__main__":
    main()
