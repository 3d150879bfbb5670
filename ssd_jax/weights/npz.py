"""Weights in NumPy's .npz: arrays named by layer, `conv1_1/kernel`, in Flax's layout (HWIO)."""

import zipfile
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import errors


def load_into(params: Any, path: str | Path) -> tuple[Any, int]:
    """Replaces the parameters that a file has arrays for.

    A layer's name may be given with or without its module (`vgg16/conv1_1` or `conv1_1`).

    Args:
      params: Parameters of the network.
      path: The .npz file.

    Returns:
      The parameters, with the file's values where it has them, and how many arrays were taken.

    Raises:
      UserError: If the file is missing or is no .npz, an array's shape does not fit its layer, or
        no array belongs to the network.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
    except OSError as error:
        raise errors.UserError(f"config.model.pretrained={path}: {error.strerror}") from None
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise errors.UserError(f"config.model.pretrained={path} is no .npz: {error}") from None
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    taken = 0
    for name, value in flat.items():
        array = arrays.get(name, arrays.get(name.partition("/")[2]))
        if array is None:
            continue
        if array.shape != value.shape:
            raise errors.UserError(
                f"{path}: {name} has shape {array.shape}, the network's is {value.shape}; "
                f"config.model.width and backbone have to be those of the file"
            )
        flat[name] = jax.device_put(jnp.asarray(array, value.dtype), value.sharding)
        taken += 1
    if not taken:
        raise errors.UserError(
            f"{path}: none of its arrays ({', '.join(list(arrays)[:3])}, ...) is one of the network"
        )
    return flax.traverse_util.unflatten_dict(flat, sep="/"), taken
