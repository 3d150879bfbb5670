"""Speed of the loader compared with simplejpeg alone on the same files and cores.

  python benchmarks/loader.py --archives FOLDER_OF_VOC_ARCHIVES [--images 1024] [--runs 5]

Records come from memory, where `config.data.memory_gib` keeps them after the first epoch, or from
their files. Both sides use as many threads as there are cores and take turns in one process, A B A
B; the table shows medians and the median of the ratios of neighbors. `simplejpeg` decodes the
files' bytes and throws the pixels away; the loader also shrinks, pads, stacks and keeps the order.
Its time excludes the start of the stream, which a run pays once.
"""

import argparse
import functools
import itertools
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent import futures

import simplejpeg

from ssd_jax import config
from ssd_jax.data import datasets, loader

BATCH = 32
WARM_UP = 8  # batches
REST = 1.0  # seconds for threads to finish prefetching


def simplejpeg_alone(files: list[bytes], threads: int) -> float:
    """Seconds that decoding these files takes."""
    with futures.ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        for _ in pool.map(_decode, (files[at : at + BATCH] for at in range(0, len(files), BATCH))):
            pass
        return time.perf_counter() - began


def _decode(files: Iterable[bytes]) -> None:
    for file in files:
        simplejpeg.decode_jpeg(file)


def stream(split: datasets.Split, threads: int, workers: int = 0) -> Iterator[loader.Batch]:
    """Batches of canvases without end."""
    return loader.training_batches(
        split.source,
        batch_size=BATCH,
        max_objects=split.max_objects,
        seed=0,
        decoding=loader.Decoding(config.DataConfig().canvas, threads, workers),
    )


def ours(split: datasets.Split, count: int, threads: int, workers: int) -> float:
    """Seconds that `count` images take once the stream flows."""
    batches = stream(split, threads, workers)
    for _ in itertools.islice(batches, WARM_UP):
        pass
    began = time.perf_counter()
    for _ in itertools.islice(batches, count // BATCH):
        pass
    taken = time.perf_counter() - began
    del batches
    time.sleep(REST)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archives", required=True, help="folder with VOC's archives")
    parser.add_argument("--split", default="2007/train")
    parser.add_argument("--cache_dir", default="~/.cache/ssd_jax")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    open_split = functools.partial(
        datasets.load,
        "voc",
        options.split,
        archives=options.archives,
        cache_dir=options.cache_dir,
    )
    split = open_split(memory_gib=config.DataConfig().memory_gib)
    from_files = open_split()
    count = min(options.images, len(split.source)) // BATCH * BATCH
    cores = len(os.sched_getaffinity(0))
    # The images that the loader decodes: the first of its shuffled order.
    order = loader.epoch_order(len(split.source), 0, 0)
    files = [split.source[int(order[place])]["image"] for place in range(count)]
    for index in range(len(split.source)):  # as after an epoch
        split.source[index]
    print(f"{cores} cores, {count} images of {options.split}, {options.runs} runs\n")
    print("| records | threads | workers | loader, images/s | simplejpeg, images/s | ratio |")
    print("|---|---|---|---|---|---|")
    for records, source, threads, workers in (
        ("memory", split, cores, 0),
        ("memory", split, 2 * cores, 0),
        ("files", from_files, cores, 0),
        ("files", from_files, 2 * cores, 0),
        ("files", from_files, 1, cores),
    ):
        pairs = [
            (ours(source, count, threads, workers), simplejpeg_alone(files, cores))
            for _ in range(options.runs)
        ]
        mine, bare = (count / statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"| {records} | {threads} | {workers} | {mine:.0f} | {bare:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
