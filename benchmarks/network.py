"""SSD300's forward pass and train step: ours beside torchvision's.

  pip install -e . torch torchvision
  python benchmarks/network.py [--runs 5] [--compile]
  python benchmarks/network.py --dtype bfloat16 --forward 32 --step 64,128 --runs 20    # on a GPU

21 classes, torch's channels last; torch runs on a GPU where JAX does. In bfloat16 ours computes in
it throughout, and torch by its automatic mixed precision. The two take turns in one process; the
table shows medians, and the median of the ratios of neighbors. `forward` is backbone and heads,
without post-processing. Our train step is the whole of ours, SSD's augmentation of canvases
included; torchvision's is its loss for images of 300 x 300, the backward pass and SGD.
`--compile` has torch compile its network.
"""

import argparse
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchvision
import turns

from ssd_jax.models import ssd

SIZE, CANVAS, CLASSES, OBJECTS = (300, 300), 500, 21, 4
Run = Callable[[], object]


def objects(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[B, N, 4]` in 0..1 and labels `[B, N]` of so many images."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.6, (count, OBJECTS, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, low.shape)], axis=-1)
    return boxes.astype(np.float32), rng.integers(1, CLASSES, (count, OBJECTS))


def our_forward(batch: int, dtype: str) -> Run:
    model = ssd.SSD(num_classes=CLASSES, dtype=jnp.dtype(dtype))
    images = np.random.default_rng(0).normal(0, 60, (batch, *SIZE, 3)).astype(np.float32)
    params = ssd.init(jax.random.key(0), model, SIZE)
    return turns.compiled(lambda p, x: ssd.predict(model, p, x), params, images)


def our_step(batch: int, dtype: str) -> Run:
    model = ssd.SSD(num_classes=CLASSES, dtype=jnp.dtype(dtype))
    return turns.train_step(turns.noise(batch, canvas=CANVAS), model)[0]


def their_model() -> torch.nn.Module:
    model = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=CLASSES
    )
    return model.to(turns.torch_device(), memory_format=torch.channels_last)


def their_forward(batch: int, dtype: str, *, compiled: bool) -> Run:
    model = their_model().eval()
    images = torch.randn(batch, 3, *SIZE, device=turns.torch_device())
    images = images.to(memory_format=torch.channels_last)

    def forward(images: torch.Tensor) -> object:
        return model.head(list(model.backbone(images).values()))

    function = torch.compile(forward) if compiled else forward

    def run() -> object:
        with torch.inference_mode(), turns.torch_precision(dtype):
            outputs = function(images)
        turns.torch_wait()
        return outputs

    run()
    return run


def their_step(batch: int, dtype: str, *, compiled: bool) -> Run:
    model = their_model().train()
    if compiled:
        model.backbone = torch.compile(model.backbone)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)
    boxes, labels = objects(batch)
    device = turns.torch_device()
    images = torch.rand(batch, 3, *SIZE, device=device).to(memory_format=torch.channels_last)
    targets = [
        {
            "boxes": torch.from_numpy(own * SIZE[0]).to(device),
            "labels": torch.from_numpy(names).to(device),
        }
        for own, names in zip(boxes, labels, strict=True)
    ]

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with turns.torch_precision(dtype):
            loss = sum(model(list(images), targets).values())
        loss.backward()
        optimizer.step()
        turns.torch_wait()

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--forward", default="1,8", help="batches of the forward pass")
    parser.add_argument("--step", default="4,8", help="batches of the train step")
    options = parser.parse_args()
    print(
        f"{options.dtype}; jax {jax.__version__} on {jax.devices()[0].device_kind}; torch "
        f"{torch.__version__}, torchvision {torchvision.__version__} on {turns.torch_device()}, "
        f"{torch.get_num_threads()} threads; {options.runs} runs\n"
    )
    print("| work | batch | ours, ms | torchvision, ms | ratio |\n|---|---|---|---|---|")
    for work, mine, peer, batches in (
        ("forward", our_forward, their_forward, options.forward),
        ("train step", our_step, their_step, options.step),
    ):
        for batch in map(int, filter(None, batches.split(","))):
            ways = [
                mine(batch, options.dtype),
                peer(batch, options.dtype, compiled=options.compile),
            ]
            ours, theirs = turns.measure(ways, options.runs)
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            medians = f"{statistics.median(ours):.4g} | {statistics.median(theirs):.4g}"
            print(f"| {work} | {batch} | {medians} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
