"""Compares the parts of SSD with the limits of the machine.

  python benchmarks/roofline.py [--size 512] [--batch 4] [--dtype bfloat16] [--runs 5] [--layers]

The limits are measured in the same run: a large product of matrices gives the operations per
second, a large array that is read and written gives the bytes per second. A part cannot take less
than `least`: the longer of the times that its operations and its bytes need. `share` is that time
over the part's own. The parts and the limits take turns; the table shows medians, and the median
of the shares of the turns.

The network's operations are those of its layers, three times as many in training. Those of other
parts, and all bytes, are XLA's own count for the compiled program. XLA counts the body of a loop
once, so `detect` does more than is shown, and on a CPU the gradients move more bytes. It counts
bytes that a cache may hold, so a share can be above 1. `--layers` shows each convolution on its
own; of equal ones the first. Its `gradient` is that of the kernel and of the input.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import turns

from ssd_jax import augment, config, detection
from ssd_jax.models import ssd, summary
from ssd_jax.training import step as step_lib

CLASSES, SEEN = 21, 100  # SEEN: priors that see an object in an image
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Size = tuple[int, int]


class Part(NamedTuple):
    """Something to be timed.

    Attributes:
      name: In the table.
      run: Does it once.
      flops: Its floating point operations.
      moved: Bytes that it reads and writes.
    """

    name: str
    run: Callable[[], object]
    flops: float
    moved: float


def make_part(
    name: str, function: Callable, *arguments: object, flops: float | None = None
) -> Part:
    """A compiled function, with XLA's count of its work; the first call is behind it."""
    placed = jax.device_put(arguments)
    program = jax.jit(function).lower(*placed).compile()
    cost = program.cost_analysis()
    run = functools.partial(lambda: jax.block_until_ready(program(*placed)))
    run()
    return Part(name, run, cost["flops"] if flops is None else flops, cost["bytes accessed"])


def make_product(dtype: jnp.dtype) -> Part:
    """A product of matrices."""
    side = 2048 if jax.devices()[0].platform == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    return make_part("product", jnp.matmul, matrix, matrix, flops=2 * side**3)


def make_copy() -> Part:
    """An array read and written in place: a CPU's new pages cost more than the bytes."""
    array = jnp.zeros(2**26 if jax.devices()[0].platform == "cpu" else 2**29, jnp.float32)
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(array).compile()

    def run() -> None:
        nonlocal array
        array = jax.block_until_ready(program(array))

    run()
    return Part("copy", run, array.size, 2 * array.nbytes)


def make_outputs(count: int, priors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and logits like a trained network's: background, but for `SEEN` priors."""
    rng = np.random.default_rng(0)
    loc = rng.normal(0, 0.5, (count, len(priors), 4))
    conf = rng.normal(0, 1, (count, len(priors), CLASSES))
    conf[..., 0] += 9
    for image in conf:
        seen = rng.choice(len(priors), SEEN, replace=False)
        image[seen, rng.integers(1, CLASSES, SEEN)] += 10
    return loc.astype(np.float32), conf.astype(np.float32)


def forward(model: ssd.SSD, size: Size, count: int, flops: float) -> Part:
    images = np.random.default_rng(0).normal(0, 60, (count, *size, 3)).astype(np.float32)
    params = ssd.init(jax.random.key(0), model, size)
    return make_part("forward", functools.partial(ssd.apply, model), params, images, flops=flops)


def train_step(model: ssd.SSD, size: Size, batch: step_lib.Batch, flops: float) -> Part:
    """The whole step: augmentation, matching, forward, loss, backward and update."""
    run, program = turns.train_step(batch, model, size)
    return Part("train step", run, flops, program.cost_analysis()["bytes accessed"])


def detect(priors: np.ndarray, count: int) -> Part:
    run = jax.vmap(detection.detect, in_axes=(0, 0, None))
    return make_part("detect", run, *make_outputs(count, priors), priors)


def objective(priors: np.ndarray, batch: step_lib.Batch) -> Part:
    """Matching and encoding, the loss, and its gradients to the outputs."""
    arrays = *make_outputs(len(batch["boxes"]), priors), batch["boxes"], batch["labels"]
    return make_part("matching, loss", functools.partial(turns.objective, priors), *arrays)


def augmentation(size: Size, batch: step_lib.Batch) -> Part:
    def run(batch: step_lib.Batch) -> augment.Augmented:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), batch["position"])
        inputs = (batch[name] for name in ("image", "valid_size", "boxes", "labels"))
        return jax.vmap(functools.partial(augment.augment, size=size))(keys, *inputs)

    return make_part("augmentation", run, batch)


def whole(model: ssd.SSD, size: Size, count: int) -> list[Part]:
    """The parts of training and of detection."""
    flops = count * sum(layer.flops for layer in summary.summarize(model, size))
    priors = ssd.default_boxes(model, size)
    batch = turns.noise(count, canvas=config.DataConfig().canvas)
    return [
        forward(model, size, count, flops),
        train_step(model, size, batch, 3 * flops),
        detect(priors, count),
        objective(priors, batch),
        augmentation(size, batch),
    ]


def find_convolutions(model: ssd.SSD, size: Size) -> dict[tuple[nn.Conv, tuple[int, ...]], str]:
    """Each convolution of a network with its input's shape for one image, and its name."""
    found: dict[tuple[nn.Conv, tuple[int, ...]], str] = {}

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            alone = context.module.clone(parent=None, name=None)
            found.setdefault((alone, args[0].shape[1:]), "/".join(context.module.path))
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        jax.eval_shape(model.init, jax.random.key(0), image)
    return found


def each_layer(model: ssd.SSD, size: Size, count: int) -> Iterator[Part]:
    """Each convolution, forward and backward."""
    flops = {layer.name: count * layer.flops for layer in summary.summarize(model, size)}
    for (layer, shape), name in find_convolutions(model, size).items():
        x = jax.random.normal(jax.random.key(0), (count, *shape), model.dtype)
        params = jax.jit(layer.init)(jax.random.key(0), x)

        def gradient(params: object, x: jax.Array, wanted: jax.Array, layer=layer) -> object:
            return jax.vjp(layer.apply, params, x)[1](wanted)

        wanted = jnp.ones_like(layer.apply(params, x))
        yield make_part(name, layer.apply, params, x, flops=flops[name])
        yield make_part(f"{name}, gradient", gradient, params, x, wanted, flops=2 * flops[name])


def print_limits(product: Part, copy: Part, times: list[list[float]]) -> None:
    fast, wide = (
        work / 1e6 / statistics.median(own)
        for work, own in zip((product.flops, copy.moved), times, strict=True)
    )
    best = product.flops / 1e6 / min(times[0]), copy.moved / 1e6 / min(times[1])
    print(
        f"limits: {fast:.0f} GFLOP/s (best {best[0]:.0f}), {wide:.1f} GB/s (best {best[1]:.1f})\n"
    )


def print_row(part: Part, times: list[float], least: list[float]) -> None:
    share = statistics.median(a / b for a, b in zip(least, times, strict=True))
    print(
        f"| {part.name} | {part.flops / 1e9:.3g} | {part.moved / 1e9:.3g} | "
        f"{statistics.median(times):.3g} | {statistics.median(least):.3g} | {share:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, choices=(300, 512), default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    size, dtype = (options.size, options.size), DTYPES[options.dtype]
    model = ssd.SSD(num_classes=CLASSES, dtype=dtype)
    product, copy = make_product(dtype), make_copy()
    parts = list((each_layer if options.layers else whole)(model, size, options.batch))
    ways = [part.run for part in (product, copy, *parts)]
    products, copies, *others = turns.measure(ways, options.runs)
    print(
        f"SSD{options.size}, batch {options.batch}, {options.dtype}; jax {jax.__version__} on "
        f"{jax.devices()[0].device_kind}; {options.runs} runs"
    )
    print_limits(product, copy, [products, copies])
    print("| part | GFLOP | GB | ms | least, ms | share |\n|---|---|---|---|---|---|")
    for part, times in zip(parts, others, strict=True):
        least = [
            max(part.flops / product.flops * fast, part.moved / copy.moved * wide)
            for fast, wide in zip(products, copies, strict=True)
        ]
        print_row(part, times, least)


if __name__ == "__main__":
    main()
