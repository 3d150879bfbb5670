"""safetensors: the parameters alone, with the config to build their network from."""

from pathlib import Path
from typing import BinaryIO

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax import build, config_checks, errors
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.export import metadata
from ssd_jax.export.network import Arrays
from ssd_jax.weights import safetensors

# Errors of the standard library and the readers for broken headers and metadata.
BROKEN = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def write(detector: detector_lib.Detector, file: BinaryIO, outputs: str) -> None:
    """Writes the parameters by their path in the network; `outputs` has no effect."""
    library = metadata.require("safetensors.numpy")
    params = flax.traverse_util.flatten_dict(jax.device_get(detector.params), sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in params.items()}
    file.write(library.save(arrays, metadata=metadata.describe(detector, "parameters")))


def read(path: Path) -> detector_lib.Detector:
    """Reads the detector of a safetensors file of `export.write`.

    Raises:
      UserError: If it is none, or a package that it needs is missing.
    """
    try:
        described, arrays = safetensors.metadata(path), safetensors.read(path)
    except BROKEN as error:
        raise metadata.unreadable(error, path, "is no safetensors file") from None
    config, class_names = metadata.read(path, described)
    _check_parameters(path, arrays, config.model, len(class_names))
    params = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return detector_lib.Detector(config, class_names, jax.device_put(params))


def _check_parameters(
    path: Path, arrays: Arrays, config: config_lib.ModelConfig, num_classes: int
) -> None:
    """Checks that a file holds the parameters of the network that its metadata describe."""
    like = build.abstract_params(config, num_classes)
    wanted = {
        name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(like, sep="/").items()
    }
    found = {name: array.shape for name, array in arrays.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            there = config_checks.shown(found[name]) if name in found else "nothing"
            raise errors.UserError(
                f"{path} has {there} as {name[:80]}, and the network of its metadata "
                f"{wanted.get(name, 'nothing')}; write it again with export.py"
            )
        if not jnp.issubdtype(arrays[name].dtype, jnp.floating):
            raise errors.UserError(f"{path} has {arrays[name].dtype} as {name}, no float numbers")
