"""YOLOv1 beside SSD300 and SSD512: boxes, outputs, parameters, operations and speed.

  python benchmarks/yolov1.py [--runs 5] [--no-speed]

Prints the table of docs/yolo.md. The networks are untrained, which changes none of it; a forward
pass takes one image, and the networks take turns.
"""

import argparse
import math
import statistics
import time
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssd_jax.models import SSD, ssd, summary

# Redmon et al. 2016, figure 3 and table 1's network: (channels, kernel) of each convolution, which
# a pooling by 2 follows where a block ends. In the last block the second convolution has stride 2.
_BLOCKS = (
    ((64, 7),),
    ((192, 3),),
    ((128, 1), (256, 3), (256, 1), (512, 3)),
    (*((256, 1), (512, 3)) * 4, (512, 1), (1024, 3)),
)
_LAST = (*((512, 1), (1024, 3)) * 2, (1024, 3), (1024, 3), (1024, 3), (1024, 3))
_STRIDED = 5  # of `_LAST`
SIDE, GRID, BOXES, CLASSES = 448, 7, 2, 20


class YOLOv1(nn.Module):
    """YOLO: `[B, 448, 448, 3]` images -> `[B, 7, 7, 30]`.

    Each of the 7 x 7 cells has 2 boxes (x, y, w, h, confidence) and one set of 20 class
    probabilities.

    Source: Redmon et al. 2016, "You only look once", section 2.1 and figure 3.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Predicts boxes and classes of every cell."""
        x, count = images, 0
        for block in (*_BLOCKS, _LAST):
            for place, (features, kernel) in enumerate(block):
                count += 1
                halves = count == 1 or (block is _LAST and place == _STRIDED)
                x = nn.Conv(
                    features,
                    (kernel, kernel),
                    strides=2 if halves else 1,
                    padding=kernel // 2,
                    name=f"conv{count}",
                )(x)
                x = nn.leaky_relu(x, 0.1)
            if block is not _LAST:
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.leaky_relu(nn.Dense(4096, name="fc1")(x.reshape(x.shape[0], -1)), 0.1)
        values = BOXES * 5 + CLASSES
        x = nn.Dense(GRID * GRID * values, name="fc2")(x)
        return x.reshape(x.shape[0], GRID, GRID, values)


class Row(NamedTuple):
    """A network of the table."""

    name: str
    model: nn.Module
    side: int
    boxes: int  # that it predicts for an image
    outputs: int  # numbers that it gives for an image


def rows() -> list[Row]:
    """The networks; both have VOC's 20 classes."""
    yolo = YOLOv1()
    found = [Row("YOLOv1", yolo, SIDE, GRID * GRID * BOXES, _outputs(yolo, SIDE))]
    for side in (300, 512):
        model = SSD(num_classes=CLASSES + 1)
        boxes = ssd.prior_spec(model, (side, side)).num_boxes
        found.append(Row(f"SSD{side}", model, side, boxes, _outputs(model, side)))
    return found


def _outputs(model: nn.Module, side: int) -> int:
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(out))


def vgg_flops(side: int) -> int:
    """Operations of what a YOLO on VGG-16 and an SSD have in common, at an input of that side."""
    layers = summary.summarize(SSD(num_classes=CLASSES + 1), (side, side))
    return sum(
        layer.flops
        for layer in layers
        if layer.name.startswith("vgg16/conv") and "norm" not in layer.name
    )


def seconds(found: list[Row], runs: int) -> dict[str, list[tuple[float, float]]]:
    """By the clock and of the CPU, of forward passes of one image, the networks in turns."""
    passes = {}
    for row in found:
        image = jax.random.normal(jax.random.key(1), (1, row.side, row.side, 3))
        shapes = jax.eval_shape(row.model.init, jax.random.key(0), image)
        params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3, leaf.dtype), shapes)
        run = jax.jit(row.model.apply)
        jax.block_until_ready(run(params, image))
        passes[row.name] = (run, params, image)
    taken: dict[str, list[tuple[float, float]]] = {row.name: [] for row in found}
    for _ in range(runs):
        for name, (run, *arguments) in passes.items():
            clock, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(*arguments))
            taken[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-speed", action="store_true", help="Run nothing, count only.")
    options = parser.parse_args()
    found = rows()
    print("| | input | boxes | outputs | parameters, M | in dense layers, M | GFLOP |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        layers = summary.summarize(row.model, (row.side, row.side))
        dense = sum(layer.parameters for layer in layers if len(layer.output) == 1)
        print(
            f"| {row.name} | {row.side} | {row.boxes} | {row.outputs:,} "
            f"| {sum(layer.parameters for layer in layers) / 1e6:.1f} | {dense / 1e6:.1f} "
            f"| {sum(layer.flops for layer in layers) / 1e9:.1f} |"
        )
    body = " and ".join(f"{vgg_flops(side) / 1e9:.1f} at {side} pixels" for side in (300, SIDE))
    print(f"\nthe 13 convolutions of VGG-16, GFLOP: {body}")
    if options.no_speed:
        return
    print(f"\n{options.runs} passes of one image, in turns, on {jax.devices()[0].device_kind}\n")
    print("| | ms, median | CPU ms, median | beside YOLOv1 | CPU, beside YOLOv1 |")
    print("|---|---|---|---|---|")
    medians = {
        name: [1e3 * statistics.median(column) for column in zip(*taken, strict=True)]
        for name, taken in seconds(found, options.runs).items()
    }
    for name, (clock, cpu) in medians.items():
        of_clock, of_cpu = (
            ours / yolo for ours, yolo in zip((clock, cpu), medians["YOLOv1"], strict=True)
        )
        print(f"| {name} | {clock:.0f} | {cpu:.0f} | {of_clock:.2f} | {of_cpu:.2f} |")


if __name__ == "__main__":
    main()
