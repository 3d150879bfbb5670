"""Metadata of exported files: written, and checked when they are read."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

from ssd_jax import build, config_checks, config_files, errors, version
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib

VARIANCES = (0.1, 0.2)  # of detection.detect

_IMAGES = (
    "images: float32 [batch, height, width, 3], RGB in 0..255, resized to image_size bilinearly, "
    "the aspect ratio not kept; the mean is subtracted inside"
)

_TAKES = {
    "detections": _IMAGES,
    "raw": _IMAGES,
    "parameters": "of the network of config, which takes RGB in 0..255 minus mean",
}

_GIVES = {
    "detections": "boxes [batch, D, 4], corners (xmin, ymin, xmax, ymax) in [0, 1]; scores "
    "[batch, D]; labels [batch, D] int32, k is class_names[k - 1]; best first, unused rows are 0",
    "raw": "loc [batch, P, 4], offsets to priors_cxcywh [P, 4]; conf [batch, P, C], logits of the "
    "background and the classes",
    "parameters": "arrays by layer/kernel (height, width, in, out), layer/bias and layer/scale",
}


def describe(detector: detector_lib.Detector, content: str) -> dict[str, str]:
    """Metadata for consumers; all but `ssd_jax`, `content` and the two texts are JSON.

    Args:
      detector: The exported detector.
      content: `"detections"`, `"raw"` or "parameters".
    """
    config = detector.config
    size = build.input_size(config.model)
    kept = {
        "model": dataclasses.asdict(dataclasses.replace(config.model, pretrained="")),
        "data": {"dataset": config.data.dataset, "canvas": config.data.canvas},
        "eval": dataclasses.asdict(dataclasses.replace(config.eval, max_images=0)),
    }
    return {
        "ssd_jax": version.VERSION,
        "content": content,
        "input": _TAKES[content],
        "output": _GIVES[content],
        "class_names": json.dumps(detector.class_names),
        "image_size": json.dumps(size),
        "mean": json.dumps(build.mean(config.model)),
        "variances": json.dumps(VARIANCES),
        "config": json.dumps(kept),
    }


def read(path: Path, described: Any) -> tuple[config_lib.Config, tuple[str, ...]]:
    """Returns the config and the class names in the metadata of a file."""
    if not isinstance(described, dict) or not {"config", "class_names"} <= described.keys():
        raise errors.UserError(
            f"{path} was not written by export.py: its metadata lack what ssd_jax needs"
        )
    told = {
        name: config_files.parse(_text(path, described[name]), where=f"{path}: {name}")
        for name in ("config", "class_names", "image_size", "mean", "variances")
        if name in described
    }
    config = config_files.from_mapping(told["config"], where=path)
    network = {
        "image_size": list(build.input_size(config.model)),
        "mean": list(build.mean(config.model)),
        "variances": list(VARIANCES),
    }
    for name, value in network.items():
        if told.get(name, value) != value:
            raise errors.UserError(
                f"{path}: its metadata have {config_checks.shown(told[name])} as {name}, but its "
                f"config has {value}; write it again with export.py"
            )
    return config, config_checks.check_class_names(told["class_names"], where=path)


def _text(path: Path, value: Any) -> str:
    if not isinstance(value, str):
        raise errors.UserError(f"{path}: its metadata have {config_checks.shown(value)} for a text")
    return value


def unreadable(error: Exception, path: Path, what: str) -> errors.UserError:
    """Returns the error for a file that cannot be read: of the machine, or of the file."""
    if isinstance(error, errors.UserError):
        return error
    if errors.is_of_machine(error):
        return errors.of_machine(error, path)
    return errors.UserError(f"{path} {what}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Shortens the message of an exception to one line, or returns its type if it has none."""
    return " ".join(str(error)[:300].split()) or type(error).__name__


def require(module: str) -> Any:
    """Imports a package that only exports need.

    Raises:
      UserError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise errors.UserError(
            f"{module.partition('.')[0]} is not installed ({error}): pip install -e '.[export]'"
        ) from None
