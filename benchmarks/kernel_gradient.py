"""The gradients of SSD300's convolutions on a CPU: ours beside XLA's.

  python benchmarks/kernel_gradient.py [--batch 4] [--runs 5] [--width 1] [--network]

Each layer's kernel's gradient in float32, ours by products of matrices. The two take turns in one
process; the table shows medians, and the median of the ratios of neighbors. `--network` times the
gradient of the whole network instead.
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
from ssd_jax.models import layers, ssd

# (side, inputs, outputs, kernel, dilation) of the layers of stride 1, each shape once.
SHAPES = (
    (300, 3, 64, 3, 1), (300, 64, 64, 3, 1), (150, 64, 128, 3, 1), (150, 128, 128, 3, 1),
    (75, 128, 256, 3, 1), (75, 256, 256, 3, 1), (38, 256, 512, 3, 1), (38, 512, 512, 3, 1),
    (19, 512, 512, 3, 1), (19, 512, 1024, 3, 6), (19, 1024, 1024, 1, 1), (38, 512, 84, 3, 1),
)  # fmt: skip


def layer(
    convolve: Callable, batch: int, width: float, shape: tuple[int, ...]
) -> Callable[[], object]:
    """The gradient of one layer's kernel, compiled."""
    side, inputs, outputs, kernel, dilation = shape
    inputs, outputs = (
        count if count in (3, 84) else layers.scaled(count, width) for count in (inputs, outputs)
    )
    rng = np.random.default_rng(0)
    sides = (batch, side, side, inputs), (batch, side, side, outputs)
    x, gradient = (jnp.asarray(rng.standard_normal(sizes), jnp.float32) for sizes in sides)
    weights = jnp.zeros((kernel, kernel, inputs, outputs))
    ends = (dilation * (kernel // 2),) * 2
    run = functools.partial(convolve, padding=(ends, ends), dilation=dilation)
    return turns.compiled(
        lambda x, weights, gradient: jax.vjp(functools.partial(run, x), weights)[1](gradient),
        x,
        weights,
        gradient,
    )


def network(convolve: Callable, batch: int, width: float) -> Callable[[], object]:
    """The gradient of the whole network for images, compiled."""
    model = ssd.SSD(num_classes=21, width=width)
    images = jnp.asarray(np.random.default_rng(0).normal(0, 60, (batch, 300, 300, 3)), jnp.float32)
    params = ssd.init(jax.random.key(0), model, (300, 300))

    def loss(params: object, images: jax.Array) -> jax.Array:
        loc, conf = ssd.apply(model, params, images)
        return jnp.mean(loc**2) + jnp.mean(conf**2)

    with mock.patch.object(convolutions, "convolution", convolve):
        return turns.compiled(jax.grad(loss), params, images)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--network", action="store_true")
    options = parser.parse_args()
    parts: dict[str, Callable[[Callable], Callable[[], object]]] = {
        str(shape): functools.partial(layer, batch=options.batch, width=options.width, shape=shape)
        for shape in SHAPES
    }
    if options.network:
        whole = functools.partial(network, batch=options.batch, width=options.width)
        parts = {"network": whole}
    print("| layer | XLA, ms | ours, ms | XLA / ours |\n|---|---|---|---|")
    for name, make in parts.items():
        ways = [make(convolve) for convolve in (convolutions.plain, convolutions.convolution)]
        xla, ours = turns.measure(ways, options.runs)
        ratio = statistics.median(a / b for a, b in zip(xla, ours, strict=True))
        medians = f"{statistics.median(xla):.1f} | {statistics.median(ours):.1f}"
        print(f"| {name} | {medians} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
