"""The train step: a batch of images to new parameters, mapped over the devices."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssd_jax import augment, boxes, losses, matching
from ssd_jax import optimizer as optimizer_lib
from ssd_jax.models import ssd

AXIS = "data"  # the mapped axis: the batch is split over it
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """The training state that a step updates and a checkpoint stores.

    Attributes:
      step: Number of steps done, int32.
      params: Parameters of the network, float32.
      opt_state: State of the optimizer, for the parameters that are not frozen.
      ema: Moving average of the parameters, float32; None where none is kept.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None


class Targets(NamedTuple):
    """Targets of the network for a batch: `[B, P, 4]` offsets and `[B, P]` labels."""

    loc: jax.Array
    labels: jax.Array


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Prepare = Callable[[Batch], tuple[jax.Array, Targets]]
Loss = Callable[..., tuple[jax.Array, Metrics]]


def init_state(
    model: ssd.SSD,
    optimizer: optax.GradientTransformation,
    image_size: tuple[int, int],
    seed: int,
    *,
    ema: bool = False,
    freeze: Sequence[str] = (),
) -> TrainState:
    """Fresh parameters, the optimizer's state for them and, if wanted, their moving average.

    Args:
      model: The network.
      optimizer: Made by `optimizer.make_optimizer`.
      image_size: (height, width) of the network's input.
      seed: Seed of the initialization.
      ema: Whether to keep an average.
      freeze: Patterns of parameters that are not trained, see `optimizer.matching`.
    """
    params = ssd.init(jax.random.key(seed), model, image_size)
    average = jax.tree.map(jnp.copy, params) if ema else None
    opt_state = optimizer.init(optimizer_lib.trainable(params, freeze))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, average)


def updates_done(opt_state: Any) -> jax.Array | None:
    """Returns the number of updates counted by the schedule; None without a schedule."""
    return optax.tree.get(opt_state, "count", filtering=_is_schedules)


def with_updates_done(opt_state: Any, count: jax.Array) -> Any:
    """Sets the step count of the schedule in an optimizer's state."""
    return optax.tree.set(opt_state, _is_schedules, count=count)


def _is_schedules(path: Any, _: Any) -> bool:
    """Whether a part of an optimizer's state is the schedule's: Adam counts too."""
    return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of one axis over the devices, by default over all."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state: replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Splits a batch (this process's part of it) over the devices.

    Raises:
      ValueError: If the devices do not divide the batch.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, values)
        for name, values in batch.items()
    }


def prefetch(batches: Iterator[Batch], mesh: Mesh, *, ahead: int = 2) -> Iterator[Batch]:
    """Puts batches on the devices before they are asked for: transfers overlap with steps.

    Args:
      batches: Batches of this process in host memory.
      mesh: The devices.
      ahead: Number of batches prefetched to the devices.
    """
    ready: collections.deque[Batch] = collections.deque()
    for batch in batches:
        ready.append(shard_batch(batch, mesh))
        if len(ready) > ahead:
            yield ready.popleft()
    yield from ready


def prepare(
    example: Batch,
    *,
    priors_cxcywh: np.ndarray,
    transform: Callable[..., augment.Augmented],
    seed: int = 0,
    mean: Sequence[float] = augment.MEAN,
    iou_threshold: float = 0.5,
) -> tuple[jax.Array, Targets]:
    """Converts one example of a batch to the network's input and its targets.

    Args:
      example: One of a batch of `loader.training_batches`.
      priors_cxcywh: `[P, 4]` default boxes of the network.
      transform: `augment.augment` with its options.
      seed: The example's key depends on it and on the example's position in the stream.
      mean: RGB in 0..255 that is subtracted.
      iou_threshold: From which a prior matches a ground truth.
    """
    image, gt_boxes, gt_labels = transform(
        jax.random.fold_in(jax.random.key(seed), example["position"]),
        example["image"],
        example["valid_size"],
        example["boxes"],
        example["labels"],
    )
    priors = jnp.asarray(priors_cxcywh)
    matches = matching.match(gt_boxes, gt_labels, priors, iou_threshold=iou_threshold)
    targets = Targets(boxes.encode(matches.boxes, priors), matches.labels)
    return augment.normalize(image, mean=mean), targets


def loss_of_priors(loss: Loss, used: np.ndarray) -> Loss:
    """Returns a loss of the predictions of all priors and the targets of some.

    Args:
      loss: Function like `losses.multibox_loss`.
      used: Indices of the priors with targets. The others neither match nor are negatives.
    """

    def of_used(loc: jax.Array, conf: jax.Array, *targets: jax.Array, **options: Any) -> Any:
        return loss(loc[:, used], conf[:, used], *targets, **options)

    return of_used


def make_train_step(
    model: ssd.SSD,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare,
    over_devices: Callable[[Step], Step],
    loss: Loss = losses.multibox_loss,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    freeze: Sequence[str] = (),
) -> Step:
    """Builds the jit-compiled step that the devices run together on a batch.

    Args:
      model: The network.
      optimizer: Made by `optimizer.make_optimizer`.
      prepare: From an example of a batch to the network's input and targets, see `step.prepare`.
      over_devices: `by_shard_map` or `by_pmap` of a mesh; its number of devices has to divide the
        batch.
      loss: From predictions and targets to the loss and its metrics, as `losses.multibox_loss`.
      accumulate: Number of parts in which a device processes its share of the batch one after the
        other; it has to divide the share. The result is the same up to rounding.
      ema_decay: Decay of the moving average, if the state has one; see `_average`.
      freeze: Patterns of the parameters that are not trained, see `optimizer.matching`; as for
        `init_state`. The backward pass stops at the first trainable layer.

    Returns:
      `step(state, batch) -> (state, metrics)`; the state that goes in is donated under
      `by_shard_map`. A batch is one of `loader.training_batches`, put there by `shard_batch`, and
      perhaps `stop`, `[devices]` float32, whose sum is returned among the metrics: a process that
      received a stop signal informs the others this way. The metrics are those of the global batch:
      what `losses.multibox_loss` gives, `grad_norm`, and `skipped`, which is 1 where the loss, a
      gradient, a box or a valid size is not finite: the step then counts, but changes nothing else.
    """

    def loss_fn(
        learnt: Any, params: Any, images: jax.Array, targets: Targets, positives: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        loc, conf = ssd.apply(model, optimizer_lib.with_trainable(params, learnt), images)
        return loss(loc, conf, targets.loc, targets.labels, positives=positives)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        examples = {name: values for name, values in batch.items() if name != "stop"}
        images, targets = jax.vmap(prepare)(examples)
        # The loss divides by the positives of the global batch, so all of its parts add up.
        positives = jax.lax.psum(jnp.sum(targets.labels > 0), AXIS)
        learnt = optimizer_lib.trainable(state.params, freeze)
        gradient = functools.partial(jax.grad(loss_fn, has_aux=True), learnt, state.params)
        parts = functools.partial(_sum_of_parts, gradient, parts=accumulate)
        grads, metrics = jax.lax.psum(parts((images, targets), positives), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, learnt)
        learnt = optax.apply_updates(learnt, updates)
        params = optimizer_lib.with_trainable(state.params, learnt)
        average = None if state.ema is None else _average(state, params, ema_decay)
        norm = optax.tree.norm(grads)
        # A box that is no number would be dropped in silence, as one outside of the image is.
        given = jnp.sum(batch["boxes"]) + jnp.sum(batch["valid_size"])
        finite = jnp.isfinite(metrics["loss"] + norm + jax.lax.psum(given, AXIS))
        params, opt_state, average = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, average),
            (state.params, state.opt_state, state.ema),
        )
        metrics |= {"grad_norm": norm, "skipped": 1.0 - finite}
        if "stop" in batch:
            metrics["stop"] = jax.lax.psum(jnp.sum(batch["stop"]), AXIS)
        return TrainState(state.step + 1, params, opt_state, average), metrics

    return over_devices(train_step)


def _sum_of_parts(
    gradient: Callable[..., tuple[Any, Metrics]],
    examples: tuple[jax.Array, Targets],
    positives: jax.Array,
    *,
    parts: int,
) -> tuple[Any, Metrics]:
    """Gradients and metrics of a batch with activations that do not fit into memory at once."""
    if parts == 1:
        return gradient(*examples, positives)
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), examples)

    def add(total: Any, part: tuple[jax.Array, Targets]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(*part, positives)), None

    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], split), positives)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, split)[0]


def _average(state: TrainState, params: Any, decay: float) -> Any:
    """Updates the moving average, with a smaller decay at the start of a training.

    At step t, from 0, it keeps min(decay, (1 + t) / (10 + t)) of itself. What is frozen stays
    what it is, to the bit.
    """
    step = state.step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - keep) * (new - old), state.ema, params)


def by_shard_map(train_step: Step, *, mesh: Mesh) -> Step:
    """Maps a step over the devices of a mesh by `jax.shard_map`; the state is donated."""
    mapped = jax.shard_map(
        train_step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def by_pmap(train_step: Step, *, mesh: Mesh) -> Step:
    """Maps the same step over the devices of a mesh by `jax.pmap`."""
    pmapped = jax.pmap(
        train_step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=list(mesh.devices.flat),
    )
    return lambda state, batch: pmapped(state, _split(batch, mesh.size))


def _split(batch: Batch, parts: int) -> Batch:
    """`[B, ...]` to `[parts, B / parts, ...]`, the form that pmap maps over."""
    return {name: x.reshape(parts, -1, *x.shape[1:]) for name, x in batch.items()}
