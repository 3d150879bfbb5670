"""The loader's speed beside what simplejpeg alone decodes of the same files on the same cores.

  python benchmarks/loader.py --archives FOLDER_OF_VOC_ARCHIVES [--pictures 1024] [--runs 5]

Both use as many threads as there are cores and take turns in one process, A B A B; the table shows
medians and the median of the ratios of neighbours. `simplejpeg` decodes the files' bytes and throws
the pixels away; the loader also reads the records, shrinks, pads, stacks and keeps the order.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from concurrent import futures

import grain
import simplejpeg

from ssd_jax.data import datasets, loader

BATCH = 32


def simplejpeg_alone(files: list[bytes], threads: int) -> Callable[[], object]:
    def run() -> None:
        with futures.ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(simplejpeg.decode_jpeg, files, chunksize=8):
                pass

    return run


def ours(split: datasets.Split, count: int, threads: int, workers: int) -> Callable[[], object]:
    def run() -> None:
        batches = loader.training_batches(
            split.source,
            batch_size=BATCH,
            canvas=512,
            max_objects=split.max_objects,
            seed=0,
            threads=threads,
            workers=workers,
        )
        for _ in itertools.islice(batches, count // BATCH):
            pass

    return run


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archives", required=True, help="folder with VOC's archives")
    parser.add_argument("--split", default="2007/train")
    parser.add_argument("--cache_dir", default="~/.cache/ssd_jax")
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    split = datasets.load(
        "voc", options.split, archives=options.archives, cache_dir=options.cache_dir
    )
    count = min(options.pictures, len(split.source)) // BATCH * BATCH
    cores = len(os.sched_getaffinity(0))
    # The pictures that the loader decodes: the first of its shuffled order.
    order = grain.MapDataset.range(len(split.source)).shuffle(seed=0)
    files = [split.source[order[place]]["image"] for place in range(count)]
    alone = simplejpeg_alone(files, cores)
    print(f"{cores} cores, {count} pictures of {options.split}, {options.runs} runs\n")
    print("| threads | workers | loader, images/s | simplejpeg, images/s | ratio |")
    print("|---|---|---|---|---|")
    for threads, workers in ((cores, 0), (2 * cores, 0), (1, cores)):
        run = ours(split, count, threads, workers)
        alone(), run()
        pairs = [(seconds(run), seconds(alone)) for _ in range(options.runs)]
        mine, bare = (count / statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"| {threads} | {workers} | {mine:.0f} | {bare:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
