"""The paper's SGD, its step schedule, and the variants that a config can name."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import optax
from optax import contrib

PyTree = dict | jax.Array

# RMS of an update before the learning rate, about that of Adam (Liu et al. 2025, "Muon is
# scalable").
_MUON_RMS = 0.2


def make_schedule(
    *,
    learning_rate: float,
    steps: int,
    schedule: str = "steps",
    milestones: tuple[int, ...] = (),
    lr_decay_factor: float = 0.1,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """Learning rate as a function of the step.

    Args:
      learning_rate: Base learning rate.
      steps: Length of the training, after which `"cosine"` reaches 0.
      schedule: `"steps"` (the paper's: multiply at each milestone) or `"cosine"`.
      milestones: Steps at which `"steps"` multiplies the learning rate by `lr_decay_factor`.
      lr_decay_factor: See `milestones`.
      warmup_steps: Linear rise from 0 at the start.

    Raises:
      ValueError: If `schedule` is unknown.

    Source: Liu et al. 2016, section 3 (1e-3, divided by 10).
    """
    if schedule == "steps":
        factors = dict.fromkeys(milestones, lr_decay_factor)
        decayed = optax.piecewise_constant_schedule(learning_rate, factors)
    elif schedule == "cosine":
        decayed = optax.cosine_decay_schedule(learning_rate, max(steps, 1))
    else:
        raise ValueError(f"schedule is {schedule!r}; choose steps or cosine")
    if not warmup_steps:
        return decayed
    return lambda step: decayed(step) * jax.numpy.minimum((step + 1) / warmup_steps, 1.0)


def make_optimizer(
    learning_rate: optax.Schedule,
    *,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bias_lr_multiplier: float = 2.0,
    clip_norm: float = 0.0,
    lr_multipliers: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """The authors' SGD with momentum and weight decay, or Adam or Muon with decoupled decay.

    Biases have `bias_lr_multiplier` times the learning rate and do not decay; the L2Norm scale is a
    weight. The learning rate is applied outside the momentum buffer (as in optax and torch; Caffe
    applies it inside).

    Args:
      learning_rate: The learning rate as a function of the step.
      optimizer: `"sgd"`, `"adam"` or `"muon"`, which makes the update of each kernel orthogonal
        (Jordan 2024) with the magnitude of Adam's; biases, scales and kernels with one input
        channel, such as depthwise ones, are updated by Adam.
      momentum: Momentum of SGD.
      weight_decay: Decay of all parameters but biases; for SGD it is L2, added to the gradient.
      bias_lr_multiplier: Multiplier of the learning rate for biases.
      clip_norm: Maximum global norm of the gradients; 0 disables clipping.
      lr_multipliers: Multipliers of the learning rate by pattern, see `matching`; if several match
        a parameter, the last one wins.

    Raises:
      ValueError: If `optimizer` is unknown.

    Source: Liu et al. 2016, section 3; the multiplier of biases is that of the authors' release.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=_not_bias)
    if optimizer == "sgd":
        direction = optax.chain(decay, optax.trace(momentum))
    elif optimizer == "adam":
        direction = optax.chain(optax.scale_by_adam(), decay)
    elif optimizer == "muon":
        # optax's Muon already negates its updates, and so does `scale_by_learning_rate` below.
        muon = contrib.muon(
            1.0, consistent_rms=_MUON_RMS, muon_weight_dimension_numbers=_kernels_as_matrices
        )
        direction = optax.chain(muon, optax.scale(-1.0), decay)
    else:
        raise ValueError(f"optimizer is {optimizer!r}; choose sgd, adam or muon")
    faster = optax.masked(optax.scale(bias_lr_multiplier), _is_bias)
    steps = (
        direction,
        faster,
        _scaled_by_path(lr_multipliers or {}),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax.chain(*((optax.clip_by_global_norm(clip_norm),) if clip_norm else ()), *steps)


def trainable(params: Any, freeze: Sequence[str]) -> Any:
    """Parameters that no pattern of `freeze` matches (see `matching`), nested like `params`."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    frozen = {path for pattern in freeze for path in matching(flat, pattern)}
    kept = {path: leaf for path, leaf in flat.items() if path not in frozen}
    return flax.traverse_util.unflatten_dict(kept, sep="/")


def with_trainable(params: Any, values: Any) -> Any:
    """Returns `params` with the given values of its trainable parameters."""
    flat, new = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (params, values))
    return flax.traverse_util.unflatten_dict({**flat, **new}, sep="/")


def matching(paths: Iterable[str], pattern: str) -> list[str]:
    """Paths of parameters, such as `vgg16/conv1_1/kernel`, that a pattern matches.

    Args:
      paths: Paths of parameters.
      pattern: A shell pattern in which `*` also matches `/`. It matches a parameter or a module
        that holds it: `vgg16/conv[12]_*`, `*/bias`, `conf0`.
    """
    return [
        path
        for path in paths
        if fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")
    ]


def _scaled_by_path(lr_multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of some parameters."""

    def scale(updates: Any, _: Any) -> Any:
        flat = flax.traverse_util.flatten_dict(updates, sep="/")
        factors = {
            path: factor
            for pattern, factor in lr_multipliers.items()
            for path in matching(flat, pattern)
        }
        scaled = {path: leaf * factors.get(path, 1.0) for path, leaf in flat.items()}
        return flax.traverse_util.unflatten_dict(scaled, sep="/")

    return optax.stateless(scale) if lr_multipliers else optax.identity()


def _kernels_as_matrices(params: PyTree) -> PyTree:
    """Lets Muon read `[rows, columns, in, out]` kernels as `[rows * columns * in, out]`."""

    def axes(x: jax.Array) -> contrib.MuonDimensionNumbers | None:
        is_matrix = x.ndim == 4 and x.shape[2] > 1
        return contrib.MuonDimensionNumbers((0, 1, 2), 3) if is_matrix else None

    return jax.tree.map(axes, params)


def _is_bias(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "bias", params)


def _not_bias(params: PyTree) -> PyTree:
    return jax.tree.map(lambda bias: not bias, _is_bias(params))
