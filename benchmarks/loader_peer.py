"""Training images per second: our loader and augmentation beside torchvision's.

  pip install -e . torch torchvision
  python benchmarks/loader_peer.py --archives FOLDER_OF_VOC_ARCHIVES [--images 512] [--runs 5]

Both read the same JPEG files from the same records in the same order, in batches of 32.
torchvision's side is torch's DataLoader with `--workers` processes, Pillow, and the transforms of
torchvision's own SSD training in their second version; lists are collated. Our loader has as many
threads and gives canvases; our augmentation runs in the train step, here alone on the same device.
It makes images of 300 x 300; torchvision resizes in its model, which is not part of this. The
three take turns in one process; the table shows medians, and the median of the ratios of
neighbors. The middle of a stream is timed: a run pays the start once.
"""

import argparse
import functools
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import loader as loader_alone
import torch
import torchvision
from PIL import Image
from torch.utils import data
from torchvision import tv_tensors
from torchvision.transforms import v2

from ssd_jax import augment
from ssd_jax.data import datasets, loader, records

BATCH, SIZE = 32, (300, 300)
WARM_UP = 8  # batches
REST = 1.0  # seconds for threads to finish prefetching


class Images(data.Dataset):
    """Records as torchvision's datasets give them, transformed for SSD."""

    def __init__(self, source: records.Records):
        self._source = source
        self._transform = v2.Compose(
            [
                v2.RandomPhotometricDistort(),
                v2.RandomZoomOut(fill=list(augment.MEAN)),
                v2.RandomIoUCrop(),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float, scale=True),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        record = self._source[index]
        image = Image.open(io.BytesIO(record["image"])).convert("RGB")
        size = torch.tensor(image.size * 2)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(record["boxes"]) * size, format="XYXY", canvas_size=image.size[::-1]
        )
        target = {"boxes": boxes, "labels": torch.from_numpy(record["labels"]).long()}
        return self._transform(image, target)


def as_lists(batch: list[tuple]) -> tuple:
    return tuple(zip(*batch, strict=True))


def torchvisions(split: datasets.Split, total: int, workers: int) -> data.DataLoader:
    """So many batches, each time that it is iterated; the images come in our loader's order."""
    order = loader.epoch_order(len(split.source), 0, 0).tolist()
    return data.DataLoader(
        Images(split.source),
        BATCH,
        sampler=list(itertools.islice(itertools.cycle(order), total * BATCH)),
        num_workers=workers,
        collate_fn=as_lists,
        persistent_workers=True,
        multiprocessing_context="forkserver",  # a fork of this process has JAX's locks, not threads
    )


@jax.jit
def transform(batch: loader.Batch) -> augment.Augmented:
    """Our augmentation of a batch."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), batch["position"])
    run = jax.vmap(functools.partial(augment.augment, size=SIZE))
    return run(keys, *(batch[name] for name in ("image", "valid_size", "boxes", "labels")))


def augmented(batch: loader.Batch) -> augment.Augmented:
    return jax.block_until_ready(transform(batch))


def seconds(start: Callable[[], Iterator[Any]], count: int) -> float:
    """Seconds of `count` batches in the middle of a stream."""
    batches = start()
    for _ in itertools.islice(batches, WARM_UP):
        pass
    began = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    taken = time.perf_counter() - began
    for _ in batches:
        pass
    del batches
    time.sleep(REST)
    return taken


def make_ways(split: datasets.Split, count: int, workers: int) -> dict[str, Callable]:
    """Returns the function that starts each pipeline."""
    total = WARM_UP + count + 2 * workers  # torch's workers are that far ahead

    def canvases() -> Iterator[loader.Batch]:
        return itertools.islice(loader_alone.stream(split, workers), total)

    return {
        "ours, the loader": canvases,
        "ours, with augmentation": lambda: map(augmented, canvases()),
        "torchvision's": functools.partial(iter, torchvisions(split, total, workers)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archives", required=True, help="folder with VOC's archives")
    parser.add_argument("--split", default="2007/train")
    parser.add_argument("--cache_dir", default="~/.cache/ssd_jax")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    split = datasets.load(
        "voc", options.split, archives=options.archives, cache_dir=options.cache_dir
    )
    count = options.images // BATCH
    images = count * BATCH
    ways = make_ways(split, count, options.workers)
    turns = [[seconds(start, count) for start in ways.values()] for _ in range(options.runs)]
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}; torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; {options.workers} workers, {images} images "
        f"of {options.split}, {options.runs} runs\n"
    )
    print("| pipeline | images/s | times torchvision's |\n|---|---|---|")
    for name, times in zip(ways, zip(*turns, strict=True), strict=True):
        ratio = statistics.median(turn[-1] / own for turn, own in zip(turns, times, strict=True))
        print(f"| {name} | {images / statistics.median(times):.0f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
