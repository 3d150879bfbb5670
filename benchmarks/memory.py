"""Memory that a train step of SSD300 needs, from XLA's own analysis; nothing is run.

  python benchmarks/memory.py [--batch 32] [--width 1.0]

`held` are inputs and outputs, mostly parameters and optimizer; `temporary` is what the step needs
meanwhile, mostly activations; `peak` is the most of all of it at any moment (nan where JAX does not
tell). XLA's CPU compiler merges the recomputation, so `remat` only has an effect on GPU and TPU.
"""

import argparse
import functools
import math

import jax
import jax.numpy as jnp
import optax

from ssd_jax import augment, optimizer
from ssd_jax.models import ssd
from ssd_jax.training import step as step_lib

SIDE, CANVAS, OBJECTS = 300, 500, 40
VARIANTS = (
    {"dtype": jnp.float32},
    {"dtype": jnp.float32, "remat": True},
    {"dtype": jnp.float32, "accumulate": 4},
    {"dtype": jnp.bfloat16},
    {"dtype": jnp.bfloat16, "remat": True},
    {"dtype": jnp.bfloat16, "accumulate": 4},
)


def lower(
    batch: int, width: float, *, dtype: jnp.dtype, remat: bool = False, accumulate: int = 1
) -> jax.stages.Lowered:
    """The step, before it is compiled."""
    size = (SIDE, SIDE)
    model = ssd.SSD(num_classes=21, width=width, dtype=dtype, remat=remat)
    sgd = optimizer.make_optimizer(optax.constant_schedule(1e-3))
    step = step_lib.make_train_step(
        model,
        sgd,
        prepare=functools.partial(
            step_lib.prepare,
            priors_cxcywh=ssd.default_boxes(model, size),
            transform=functools.partial(augment.augment, size=size),
        ),
        over_devices=functools.partial(
            step_lib.by_shard_map, mesh=step_lib.make_mesh(jax.devices()[:1])
        ),
        accumulate=accumulate,
    )
    state = jax.eval_shape(lambda: step_lib.init_state(model, sgd, size, 0))
    shapes = {
        "image": ((batch, CANVAS, CANVAS, 3), jnp.uint8),
        "valid_size": ((batch, 2), jnp.float32),
        "boxes": ((batch, OBJECTS, 4), jnp.float32),
        "labels": ((batch, OBJECTS), jnp.int32),
        "position": ((batch,), jnp.int32),
    }
    examples = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return step.lower(state, examples)


def analyze(lowered: jax.stages.Lowered) -> tuple[float, float, float]:
    """GiB held, temporary and at the peak, which is NaN where JAX does not tell."""
    found = lowered.compile().memory_analysis()
    peak = getattr(found, "peak_memory_in_bytes", math.nan)
    return found.argument_size_in_bytes / 2**30, found.temp_size_in_bytes / 2**30, peak / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=float, default=1.0)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {options.batch}\n")
    print("| type | remat | parts | held, GiB | temporary, GiB | peak, GiB |")
    print("|---|---|---|---|---|---|")
    for variant in VARIANTS:
        held, temporary, peak = analyze(lower(options.batch, options.width, **variant))
        print(
            f"| {jnp.dtype(variant['dtype']).name} | {variant.get('remat', False)} | "
            f"{variant.get('accumulate', 1)} | {held:.2f} | {temporary:.2f} | {peak:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
