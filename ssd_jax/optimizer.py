"""The paper's SGD, its step schedule, and the variants that a config can name."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import optax
from optax import contrib

PyTree = dict | jax.Array

_MUON_RMS = 0.2  # of a step at rate 1, about that of Adam (Liu et al. 2025, "Muon is scalable")


def make_schedule(
    *,
    learning_rate: float,
    steps: int,
    schedule: str = "steps",
    drops: tuple[int, ...] = (),
    drop_factor: float = 0.1,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """Learning rate as a function of the step.

    Args:
      learning_rate: Base rate.
      steps: Length of the training; where `"cosine"` reaches 0.
      schedule: `"steps"` (the paper's: multiply at each drop) or `"cosine"`.
      drops: Steps at which `"steps"` multiplies the rate by `drop_factor`.
      drop_factor: See `drops`.
      warmup_steps: Linear rise from 0 at the start.

    Raises:
      ValueError: If `schedule` is unknown.

    Source: Liu et al. 2016, section 3 (1e-3, divided by 10).
    """
    if schedule == "steps":
        rate = optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(drops, drop_factor))
    elif schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, max(steps, 1))
    else:
        raise ValueError(f"schedule is {schedule!r}; choose steps or cosine")
    if not warmup_steps:
        return rate
    return lambda step: rate(step) * jax.numpy.minimum((step + 1) / warmup_steps, 1.0)


def make_optimizer(
    rate: optax.Schedule,
    *,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bias_rate: float = 2.0,
    clip_norm: float = 0.0,
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum and weight decay as the authors train, or Adam or Muon, decay decoupled.

    Biases learn at `bias_rate` times the rate and do not decay; the L2Norm scale is a weight. The
    rate stands outside the momentum buffer (optax, torch), where Caffe has it inside.

    Args:
      rate: Learning rate as a function of the step.
      optimizer: `"sgd"`, `"adam"` or `"muon"`, which makes each kernel's step orthogonal (Jordan
        2024) and as large as one of Adam's; biases, scales and kernels with one input, as those of
        channels on their own, then take Adam's.
      momentum: Of SGD.
      weight_decay: Of all parameters but biases; L2, added to the gradient, for SGD.
      bias_rate: Multiplier of the biases' rate.
      clip_norm: Largest norm of all gradients together, to which larger ones are scaled; 0: none.
      rates: Multiplier of the rate by the pattern of a parameter's path, see `matching`; of several
        that match, the last counts.

    Raises:
      ValueError: If `optimizer` is unknown.

    Source: Liu et al. 2016, section 3; the biases' rate is that of the authors' release.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=_not_bias)
    if optimizer == "sgd":
        direction = optax.chain(decay, optax.trace(momentum))
    elif optimizer == "adam":
        direction = optax.chain(optax.scale_by_adam(), decay)
    elif optimizer == "muon":
        # optax's Muon ends in the descent's sign, which `scale_by_learning_rate` brings below.
        muon = contrib.muon(
            1.0, consistent_rms=_MUON_RMS, muon_weight_dimension_numbers=_kernels_as_matrices
        )
        direction = optax.chain(muon, optax.scale(-1.0), decay)
    else:
        raise ValueError(f"optimizer is {optimizer!r}; choose sgd, adam or muon")
    faster = optax.masked(optax.scale(bias_rate), _is_bias)
    steps = (direction, faster, _scaled_by_path(rates or {}), optax.scale_by_learning_rate(rate))
    return optax.chain(*((optax.clip_by_global_norm(clip_norm),) if clip_norm else ()), *steps)


def learnt(params: Any, freeze: Sequence[str]) -> Any:
    """The parameters that no pattern of `freeze` matches, see `matching`; nested as `params` is."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    frozen = {path for pattern in freeze for path in matching(flat, pattern)}
    kept = {path: leaf for path, leaf in flat.items() if path not in frozen}
    return flax.traverse_util.unflatten_dict(kept, sep="/")


def with_learnt(params: Any, values: Any) -> Any:
    """`params` with the values of those that `learnt` gave."""
    flat, new = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (params, values))
    return flax.traverse_util.unflatten_dict({**flat, **new}, sep="/")


def matching(paths: Iterable[str], pattern: str) -> list[str]:
    """Those of some paths, `vgg16/conv1_1/kernel`, that a pattern names.

    Args:
      paths: Of parameters.
      pattern: As of a shell, where `*` takes `/` too; it names a parameter or a module above it:
        `vgg16/conv[12]_*`, `*/bias`, `conf0`.
    """
    return [
        path
        for path in paths
        if fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")
    ]


def _scaled_by_path(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of some parameters."""

    def scale(updates: Any, _: Any) -> Any:
        flat = flax.traverse_util.flatten_dict(updates, sep="/")
        factors = {
            path: rate for pattern, rate in rates.items() for path in matching(flat, pattern)
        }
        scaled = {path: leaf * factors.get(path, 1.0) for path, leaf in flat.items()}
        return flax.traverse_util.unflatten_dict(scaled, sep="/")

    return optax.stateless(scale) if rates else optax.identity()


def _kernels_as_matrices(params: PyTree) -> PyTree:
    """How Muon reads `[rows, columns, in, out]` kernels: inputs of an output as one axis."""

    def axes(x: jax.Array) -> contrib.MuonDimensionNumbers | None:
        is_matrix = x.ndim == 4 and x.shape[2] > 1
        return contrib.MuonDimensionNumbers((0, 1, 2), 3) if is_matrix else None

    return jax.tree.map(axes, params)


def _is_bias(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "bias", params)


def _not_bias(params: PyTree) -> PyTree:
    return jax.tree.map(lambda bias: not bias, _is_bias(params))
