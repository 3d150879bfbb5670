"""Shared by the benchmarks: functions to be timed, and how they take turns."""

import contextlib
import functools
import time
from collections.abc import Callable

import jax
import numpy as np
import optax

from ssd_jax import augment, boxes, losses, matching
from ssd_jax import optimizer as optimizers
from ssd_jax.models import ssd
from ssd_jax.training import step as step_lib


def compiled(function: Callable, *arguments: object) -> Callable[[], object]:
    """Wraps a function of arrays on the device, after a first call."""
    placed = jax.device_put(arguments)
    run = jax.jit(function).lower(*placed).compile()
    jax.block_until_ready(run(*placed))
    return lambda: jax.block_until_ready(run(*placed))


def train_step(
    batch: step_lib.Batch, model: ssd.SSD | None = None, size: tuple[int, int] = (300, 300)
) -> tuple[Callable[[], object], jax.stages.Compiled]:
    """The whole train step on a batch in host memory, once done, and its program.

    Args:
      batch: See `noise`.
      model: None: SSD300 with 21 classes.
      size: (height, width) of the network's input in pixels.
    """
    model = model or ssd.SSD(num_classes=21)
    optimizer = optimizers.make_optimizer(optax.constant_schedule(1e-6))
    mesh = step_lib.make_mesh(jax.devices()[:1])
    step = step_lib.make_train_step(
        model,
        optimizer,
        prepare=functools.partial(
            step_lib.prepare,
            priors_cxcywh=ssd.default_boxes(model, size),
            transform=functools.partial(augment.augment, size=size),
        ),
        over_devices=functools.partial(step_lib.by_shard_map, mesh=mesh),
    )
    state = jax.device_put(
        step_lib.init_state(model, optimizer, size, 0), step_lib.replicated(mesh)
    )
    placed = step_lib.shard_batch(batch, mesh)
    program = step.lower(state, placed).compile()

    def run() -> None:
        nonlocal state
        state, metrics = program(state, placed)
        jax.block_until_ready((state, metrics))

    run()
    return run, program


def objective(
    priors: np.ndarray, loc: jax.Array, conf: jax.Array, gt_boxes: jax.Array, gt_labels: jax.Array
) -> object:
    """Matching, encoding, mining and the loss of a batch, and its gradients to the outputs."""

    def targets(gt_boxes: jax.Array, gt_labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        matches = matching.match(gt_boxes, gt_labels, priors)
        return boxes.encode(matches.boxes, priors), matches.labels

    gradient = jax.value_and_grad(losses.multibox_loss, (0, 1), has_aux=True)
    return gradient(loc, conf, *jax.vmap(targets)(gt_boxes, gt_labels))


def ground_truth(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[B, 40, 4]` and labels `[B, 40]` of images with 1 to 40 objects."""
    rng, most = np.random.default_rng(0), 40
    low = rng.uniform(0, 0.8, (count, most, 2))
    objects = np.concatenate([low, low + rng.uniform(0.02, 0.5, low.shape)], axis=-1).clip(0, 1)
    present = np.arange(most) < np.linspace(1, most, count).round()[:, None]
    labels = np.where(present, rng.integers(1, classes, present.shape), 0)
    return np.where(present[..., None], objects, 0).astype(np.float32), labels.astype(np.int32)


def outputs(
    kind: str, count: int, priors: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets `[B, P, 4]` and logits `[B, P, C]` as a network gives them.

    Args:
      kind: `"dense"`: random logits; `"trained"`: a few objects over a confident background.
      count: B, the number of images.
      priors: `[P, 4]` center and size.
      classes: C, with the background.
    """
    rng = np.random.default_rng(0)
    loc = rng.normal(0, 0.5, (count, len(priors), 4))
    conf = rng.normal(0, 1, (count, len(priors), classes))
    if kind == "trained":
        conf[..., 0] += 9
        for image in conf:
            for _ in range(6):  # objects, each seen by the priors around its own
                center, label = rng.integers(len(priors)), rng.integers(1, classes)
                near = np.abs(priors - priors[center]).max(axis=1) < 0.08
                image[near, label] += rng.uniform(6, 14, near.sum())
    return loc.astype(np.float32), conf.astype(np.float32)


def noise(count: int, *, canvas: int) -> step_lib.Batch:
    """A batch of noise on canvases, four objects of 21 classes on each; it changes no time."""
    rng, most = np.random.default_rng(0), 40
    low = rng.uniform(0, 0.6, (count, most, 2))
    labels = rng.integers(1, 21, (count, most)) * (np.arange(most) < 4)
    return {
        "image": rng.integers(0, 256, (count, canvas, canvas, 3), dtype=np.uint8),
        "valid_size": np.tile(np.float32([375, 500]), (count, 1)),
        "boxes": np.concatenate([low, low + 0.3], -1).astype(np.float32),
        "labels": labels.astype(np.int32),
        "position": np.arange(count, dtype=np.int32),
    }


def torch_device() -> str:
    """Where torch runs: on a GPU if JAX does.

    Raises:
      RuntimeError: If JAX has a GPU and this torch none.
    """
    import torch

    if jax.devices()[0].platform != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("JAX has a GPU and torch none: install its build for CUDA")
    torch.backends.cudnn.benchmark = True
    return "cuda"


def torch_precision(dtype: str) -> contextlib.AbstractContextManager:
    """Torch's automatic mixed precision in bfloat16, or nothing for float32."""
    import torch

    return torch.autocast(torch_device(), torch.bfloat16, enabled=dtype == "bfloat16")


def torch_wait() -> None:
    """Waits until a GPU has finished torch's work."""
    import torch

    if torch_device() == "cuda":
        torch.cuda.synchronize()


def measure(ways: list[Callable[[], object]], runs: int) -> list[list[float]]:
    """Milliseconds of each way; they take turns."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(runs):
        for run, own in zip(ways, times, strict=True):
            start = time.perf_counter()
            run()
            own.append(1e3 * (time.perf_counter() - start))
    return times
