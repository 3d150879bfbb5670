"""The train step on a CPU with memory in huge pages, as train.py asks for it, and without.

  python benchmarks/huge_pages.py [--runs 3] [--steps 5]

XLA allocates memory at every step. Each row is of new processes that take turns; it shows
medians of the processes' medians, and how much of their CPU time went into the kernel. Where Linux
gives huge pages to all programs or to none, the two are the same: see
/sys/kernel/mm/transparent_hugepage/enabled, where this is for `madvise`.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

WORK = {  # trained networks: batch size, options of the network, input size
    "configs/quickstart.py": (8, {"width": 0.25}, 300),
    "SSD300": (4, {}, 300),
    "SSDLite on MobileNetV2, all layers": (32, {"backbone": "mobilenet_v2"}, 320),
}
TUNABLES = ("", "glibc.malloc.hugetlb=1")


def one(name: str, steps: int) -> None:
    """Prints the median seconds of a step, and the kernel's share of the CPU time."""
    import turns

    from ssd_jax.models import ssd

    batch, options, side = WORK[name]
    model = ssd.SSD(num_classes=21, **options)
    run, _ = turns.train_step(turns.noise(batch, canvas=side), model, (side, side))
    run()
    before, times = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(steps):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    print(statistics.median(times), system / (user + system))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", choices=WORK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.steps)
        return
    print("| train step | batch | small pages, ms | huge pages, ms | ratio | kernel | kernel |")
    print("|---|---|---|---|---|---|---|")
    for name, (batch, *_) in WORK.items():
        found: list[list[list[float]]] = [[], []]
        for _ in range(options.runs):
            for tunables, own in zip(TUNABLES, found, strict=True):
                command = [sys.executable, __file__, "--one", name, "--steps", str(options.steps)]
                environment = {**os.environ, "GLIBC_TUNABLES": tunables}
                said = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                ).stdout
                own.append([float(word) for word in said.split()])
        (small, of_small), (huge, of_huge) = (
            [statistics.median(column) for column in zip(*rows, strict=True)] for rows in found
        )
        ratio = statistics.median(b[0] / a[0] for a, b in zip(*found, strict=True))
        print(
            f"| {name} | {batch} | {1e3 * small:.0f} | {1e3 * huge:.0f} | {ratio:.2f} | "
            f"{of_small:.0%} | {of_huge:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
