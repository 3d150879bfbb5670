"""Mistakes in a config and in flags that are found before anything is compiled."""

import dataclasses

import flax.traverse_util
import jax

from ssd_jax import build, config_checks, errors
from ssd_jax import config as config_lib
from ssd_jax import optimizer as optimizer_lib
from ssd_jax.training import start


def check_patterns(options: config_lib.TrainConfig, paths: list[str]) -> None:
    """Rejects patterns that match no parameter, and a `freeze` that leaves none to train.

    Raises:
      UserError: If there is such a pattern.
    """
    patterns = {
        "freeze": options.freeze,
        "lr_multipliers": tuple(config_checks.lr_multipliers(options.lr_multipliers)),
    }
    for field, given in patterns.items():
        for pattern in given:
            if not optimizer_lib.matching(paths, pattern):
                raise errors.UserError(
                    f"config.train.{field}: {pattern!r} matches no parameter; they are "
                    f"{', '.join(paths[:3])}, ... (--summary lists the layers)"
                )
    if all(any(optimizer_lib.matching([path], p) for p in options.freeze) for path in paths):
        raise errors.UserError("config.train.freeze leaves no trainable parameter")


def settings(config: config_lib.Config) -> list[str]:
    """Lines of the config that must be equal on all processes."""
    data = dataclasses.replace(config.data, path="", archives="", cache_dir="", mirror="")
    own = dataclasses.replace(config, data=data)
    flat = jax.tree_util.tree_leaves_with_path(dataclasses.asdict(own))
    return [f"config{jax.tree_util.keystr(path)} = {value!r}" for path, value in flat]


def check_profile(profile: range, first: int, last: int) -> None:
    """Rejects a profile of steps outside the run.

    Args:
      profile: Steps to trace.
      first: The step that is done already.
      last: The last step of the run.

    Raises:
      UserError: If none of them is still to do.
    """
    if profile and not (profile.start <= last and profile.stop > first + 1):
        remaining = f"steps {first + 1} to {last} are" if first < last else "no step is"
        raise errors.UserError(
            f"--profile {profile.start}:{profile.stop} traces nothing: {remaining} still to do"
        )


def check_batch(options: config_lib.TrainConfig, devices: int) -> None:
    """Checks that a batch can be split over devices and accumulated parts.

    Raises:
      UserError: If it can't.
    """
    size, processes = options.batch_size, jax.process_count()
    if size % devices:
        where = f"{devices} devices" + (f" of {processes} processes" if processes > 1 else "")
        raise errors.UserError(
            f"config.train.batch_size ({size}) must be divisible by the {where}; "
            f"{size // devices * devices or devices} is"
        )
    if size // devices % options.accumulate:
        raise errors.UserError(
            f"config.train.accumulate ({options.accumulate}) must divide the {size // devices} "
            f"images of a device"
        )


def paths(config: config_lib.ModelConfig, num_classes: int) -> list[str]:
    """Paths of the parameters of the network of a config."""
    params = build.abstract_params(config, num_classes)
    return list(flax.traverse_util.flatten_dict(params, sep="/"))


def check_frozen(config: config_lib.Config, paths: list[str], source: start.ReadPretrained) -> None:
    """Checks that parameters that are frozen come from somewhere.

    Raises:
      UserError: If one would stay at random values.
    """
    frozen = [
        path for pattern in config.train.freeze for path in optimizer_lib.matching(paths, pattern)
    ]
    if not frozen:
        return
    if not config.model.pretrained:
        raise errors.UserError(
            f"config.train.freeze would keep {frozen[0]} at random values: give the weights to "
            f"start from by config.model.pretrained, or config.train.freeze='()'"
        )
    weights = source().weights
    if missing := [path for path in frozen if path not in weights.arrays]:
        raise errors.UserError(
            f"config.train.freeze would keep {missing[0]} at random values: {weights.path} has "
            f"none for it"
        )
