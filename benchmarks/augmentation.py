"""Cost of the augmentation in a train step of SSD300.

  python benchmarks/augmentation.py [--batch 32] [--step_batch 4] [--runs 5]

Times the augmentation of a batch alone, compiled, and a whole train step with the augmentation in
it, in turn, in one process. A batch that is too large for the machine is stepped in smaller ones
(`--step_batch`), whose time is scaled to the batch.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import turns

from ssd_jax import augment
from ssd_jax.training import step as step_lib

SIZE, CANVAS = (300, 300), 512


def augmentation(count: int, policy: str) -> Callable[[], object]:
    batch = jax.device_put(turns.noise(count, canvas=CANVAS))
    transform = functools.partial(augment.augment, size=SIZE, policy=policy)

    @jax.jit
    def run(batch: step_lib.Batch) -> augment.Augmented:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), batch["position"])
        return jax.vmap(transform)(
            keys, batch["image"], batch["valid_size"], batch["boxes"], batch["labels"]
        )

    return lambda: jax.block_until_ready(run(batch))


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--step_batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    step, _ = turns.train_step(turns.noise(options.step_batch, canvas=CANVAS))
    step()
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}; batch {options.batch}, "
        f"stepped by {options.step_batch}; {options.runs} runs\n"
    )
    print("| policy | augmentation, ms | train step, ms | share |\n|---|---|---|---|")
    for policy in augment.POLICIES:
        run = augmentation(options.batch, policy)
        run()
        pairs = [(seconds(run), seconds(step)) for _ in range(options.runs)]
        scale = options.batch / options.step_batch
        mine = statistics.median(first for first, _ in pairs) * 1e3
        whole = statistics.median(second for _, second in pairs) * 1e3 * scale
        share = statistics.median(first / (second * scale) for first, second in pairs)
        print(f"| {policy} | {mine:.1f} | {whole:.0f} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()
