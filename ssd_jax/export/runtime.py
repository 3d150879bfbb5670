"""Detectors that run their network in another runtime or as an exported program."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssd_jax import augment, build, config_checks, errors
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.detection import Detections
from ssd_jax.export import metadata, network


def detector(
    path: Path,
    described: Any,
    run: Callable[[np.ndarray], network.Arrays],
    *,
    takes: Sequence[tuple[Any, ...]],
) -> detector_lib.Detector:
    """Makes a detector of a function that runs a network on resized images.

    Args:
      path: Path of its file.
      described: The file's metadata.
      run: The network.
      takes: Name of each input and its sizes after the batch.
    """
    config, class_names = metadata.read(path, described)
    size = build.input_size(config.model)
    if list(takes) != [("images", *size, 3)]:
        raise errors.UserError(
            f"{path}: its network takes {config_checks.shown(takes)}, and its config has images of "
            f"{size}; write it again with export.py"
        )
    resize = jax.jit(jax.vmap(functools.partial(augment.resize, size=size)))
    finish = jax.jit(functools.partial(network.detections_of, config=config.eval))

    def predict(params: Any, images: Any, valid_sizes: Any) -> Detections:
        resized = np.asarray(resize(images, valid_sizes))
        outputs: dict[str, Any] = {}
        try:
            outputs = {name: np.asarray(values) for name, values in run(resized).items()}
        except Exception as error:  # of the runtimes, which have a dozen kinds
            raise metadata.unreadable(error, path, "does not run") from None
        if not _are_outputs(outputs, config, len(class_names), rows=len(resized)):
            shapes = {name: values.shape for name, values in outputs.items()}
            raise errors.UserError(
                f"{path}: its network gives {config_checks.shown(shapes)}, which is not what its "
                f"metadata say; write it again with export.py"
            )
        found = finish(outputs) if "loc" in outputs else Detections(**outputs)
        return _clean(path, jax.device_get(found), len(class_names))

    return detector_lib.Detector(config, class_names, params=None, predict=predict)


def _are_outputs(
    outputs: network.Arrays, config: config_lib.Config, num_classes: int, *, rows: int
) -> bool:
    """Checks the output shapes of a network for a batch of `rows` against a config."""
    most = config.eval.max_detections
    wanted = {"boxes": (rows, most, 4), "scores": (rows, most), "labels": (rows, most)}
    if "priors_cxcywh" in outputs:
        places = len(outputs["priors_cxcywh"]) if outputs["priors_cxcywh"].ndim else 0
        wanted = {
            "loc": (rows, places, 4),
            "conf": (rows, places, num_classes + 1),
            "priors_cxcywh": (places, 4),
        }
    kinds = {name: "i" if name == "labels" else "f" for name in wanted}
    return wanted == {name: values.shape for name, values in outputs.items()} and kinds == {
        name: values.dtype.kind for name, values in outputs.items()
    }


def _clean(path: Path, found: Any, num_classes: int) -> Detections:
    """Checks the detections of a third-party network before they are used as indices."""
    used = found.scores > 0
    labels = found.labels[used]
    finite = np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    if not finite or labels.min(initial=1) < 1 or labels.max(initial=1) > num_classes:
        raise errors.UserError(
            f"{path}: its network gives numbers that are not finite, or labels that no class has"
        )
    return found._replace(boxes=np.clip(found.boxes, 0, 1))
