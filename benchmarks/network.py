"""SSD300's forward pass and train step: ours beside torchvision's.

  pip install -e . torch torchvision
  python benchmarks/network.py [--runs 5] [--compile]

21 classes, float32, torch's channels last. The two take turns in one process; the table shows
medians, and the median of the ratios of neighbours. `forward` is body and heads, without
post-processing. Our train step is the whole of ours, SSD's augmentation of canvases included;
torchvision's is its loss for pictures of 300 x 300, the backward pass and SGD. `--compile` has
torch compile its network.
"""

import argparse
import statistics
from collections.abc import Callable

import jax
import numpy as np
import torch
import torchvision
import turns

from ssd_jax.models import ssd

SIZE, CANVAS, CLASSES, OBJECTS = (300, 300), 320, 21, 4
Run = Callable[[], object]


def objects(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[B, N, 4]` in 0..1 and labels `[B, N]` of so many pictures."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.6, (count, OBJECTS, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, low.shape)], axis=-1)
    return boxes.astype(np.float32), rng.integers(1, CLASSES, (count, OBJECTS))


def our_forward(batch: int) -> Run:
    model = ssd.SSD(num_classes=CLASSES)
    images = np.random.default_rng(0).normal(0, 60, (batch, *SIZE, 3)).astype(np.float32)
    params = ssd.init(jax.random.key(0), model, SIZE)
    return turns.compiled(lambda p, x: ssd.predict(model, p, x), params, images)


def our_step(batch: int) -> Run:
    boxes, labels = objects(batch)
    canvases = np.random.default_rng(0).integers(0, 256, (batch, CANVAS, CANVAS, 3), dtype=np.uint8)
    examples = {
        "image": canvases,
        "extent": np.full((batch, 2), CANVAS, np.float32),
        "boxes": boxes,
        "labels": labels.astype(np.int32),
        "position": np.arange(batch, dtype=np.int32),
    }
    return turns.train_step(examples)[0]


def their_model() -> torch.nn.Module:
    model = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=CLASSES
    )
    return model.to(memory_format=torch.channels_last)


def their_forward(batch: int, *, compiled: bool) -> Run:
    model = their_model().eval()
    images = torch.randn(batch, 3, *SIZE).to(memory_format=torch.channels_last)

    def forward(images: torch.Tensor) -> object:
        return model.head(list(model.backbone(images).values()))

    function = torch.compile(forward) if compiled else forward

    def run() -> object:
        with torch.inference_mode():
            return function(images)

    run()
    return run


def their_step(batch: int, *, compiled: bool) -> Run:
    model = their_model().train()
    if compiled:
        model.backbone = torch.compile(model.backbone)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)
    boxes, labels = objects(batch)
    images = list(torch.rand(batch, 3, *SIZE).to(memory_format=torch.channels_last))
    targets = [
        {"boxes": torch.from_numpy(own * SIZE[0]), "labels": torch.from_numpy(names)}
        for own, names in zip(boxes, labels, strict=True)
    ]

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model(images, targets).values()).backward()
        optimizer.step()

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}; torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, {torch.get_num_threads()} threads; "
        f"{options.runs} runs\n"
    )
    print("| work | batch | ours, ms | torchvision, ms | ratio |\n|---|---|---|---|---|")
    for work, mine, peer, batches in (
        ("forward", our_forward, their_forward, (1, 8)),
        ("train step", our_step, their_step, (4, 8)),
    ):
        for batch in batches:
            ways = [mine(batch), peer(batch, compiled=options.compile)]
            ours, theirs = turns.measure(ways, options.runs)
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            medians = f"{statistics.median(ours):.0f} | {statistics.median(theirs):.0f}"
            print(f"| {work} | {batch} | {medians} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
