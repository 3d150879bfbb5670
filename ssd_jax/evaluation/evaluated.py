"""An evaluation in one file, `detections.npz`: the detections and the ground truth."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssd_jax import download, errors, files
from ssd_jax.evaluation import voc
from ssd_jax.weights import npz

NAME = "detections.npz"

_TIMES = 50  # that the file shrinks by at most: names are as long as the longest, padded


class Evaluated(NamedTuple):
    """The detections and ground truth of an evaluation.

    Attributes:
      config: The run's config as JSON knows it.
      class_names: Label k is `class_names[k - 1]`.
      sizes: Image's name -> (height, width) in pixels.
      detections: Detections for `voc.evaluate`.
      ground_truth: Ground truth for `voc.evaluate`; its images are those of `sizes`, in the same
        order.
    """

    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    detections: voc.DetectionsById
    ground_truth: voc.GroundTruthById


def save(folder: Path, evaluated: Evaluated) -> None:
    """Writes an evaluation into a folder; boxes and scores as float32.

    Raises:
      OSError: If the file can't be written.
    """
    found, objects = voc.flatten(
        evaluated.detections, evaluated.ground_truth, class_names=evaluated.class_names
    )
    columns: dict[str, Any] = {
        "config": np.array(json.dumps(evaluated.config)),
        "class_names": np.array(evaluated.class_names, str),
        "names": np.array(list(evaluated.sizes), str),
        "sizes": np.array(list(evaluated.sizes.values()), np.int32).reshape(-1, 2),
        **_columns("found", found, np.float32),
        **_columns("objects", objects, bool),
    }
    with files.replacing(folder / NAME) as file:
        np.savez_compressed(file, **columns)


def load(folder: Path) -> Evaluated:
    """Reads what `save` wrote.

    Raises:
      UserError: If the file is missing or does not contain an evaluation.
      MachineError: If the machine could not read it.
    """
    path = folder / NAME
    try:
        with files.open_regular(path) as stream:
            columns = npz.read(stream, times=_TIMES)
        _check(columns)
        names = columns["names"].tolist()
        sizes = [(int(height), int(width)) for height, width in columns["sizes"]]
        config = json.loads(str(columns["config"]))
        if not isinstance(config, dict):
            raise TypeError(f"its config is {config!r:.60}")
        return Evaluated(
            config=config,
            class_names=tuple(columns["class_names"].tolist()),
            sizes=dict(zip(names, sizes, strict=True)),
            detections=_by_name(names, columns, "found", ("values", "labels")),
            ground_truth=_by_name(names, columns, "objects", ("labels", "values")),
        )
    except FileNotFoundError:
        raise errors.UserError(
            f"{path} is missing: {folder} holds no evaluation; make one by "
            f"python evaluate.py --workdir {folder}"
        ) from None
    except Exception as error:  # NumPy, zipfile, zlib and tokenize raise a dozen kinds
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
        reason = " ".join(f"{error!s:.300}".split()) or type(error).__name__
        raise errors.UserError(
            f"{path} is not the detections of an evaluation ({reason}); write it again by "
            f"python evaluate.py --workdir {folder}"
        ) from None


def _check(columns: Mapping[str, np.ndarray]) -> None:
    """Checks that the columns contain indices of existing images and classes.

    Raises:
      ValueError: If they do not.
      KeyError: If one is missing.
    """
    names, classes, sizes = (columns[name] for name in ("names", "class_names", "sizes"))
    if names.dtype.kind != "U" or classes.dtype.kind != "U":
        raise ValueError("its names are no texts")
    if sizes.dtype.kind != "i" or sizes.shape != (len(names), 2) or not (sizes > 0).all():
        raise ValueError("its sizes are none of images")
    counts = {"image": len(columns["names"]), "labels": len(columns["class_names"]) + 1}
    for prefix in ("found", "objects"):
        rows = [columns[f"{prefix}_{name}"] for name in ("image", "boxes", "labels", "values")]
        image, boxes, labels, _ = rows
        if boxes.shape[1:] != (4,) or any(row.shape[:1] != image.shape for row in rows):
            raise ValueError(f"its columns of {prefix} do not belong together")
        if not all(row.dtype.kind in "biuf" and np.isfinite(row).all() for row in rows):
            raise ValueError(f"its columns of {prefix} hold no numbers")
        for name, values in (("image", image), ("labels", labels)):
            least = 0 if name == "image" else 1
            if values.size and not least <= values.min() <= values.max() < counts[name]:
                raise ValueError(f"its {prefix}_{name} are out of range")


def settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a config, as JSON knows it, by their dotted names; without passwords."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        inner = settings(value) if isinstance(value, Mapping) else {}
        shown = download.public(str(value))
        flat |= {f"{name}.{field}": text for field, text in inner.items()} or {name: shown}
    return flat


def _columns(prefix: str, rows: voc.Rows, values: type) -> dict[str, np.ndarray]:
    return {
        f"{prefix}_image": rows.image.astype(np.int32),
        f"{prefix}_boxes": rows.boxes.astype(np.float32),
        f"{prefix}_labels": rows.labels.astype(np.int16),
        f"{prefix}_values": rows.values.astype(values),
    }


def _by_name(
    names: list[str], columns: Mapping[str, np.ndarray], prefix: str, order: tuple[str, str]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Splits consecutive rows by image: boxes and two more columns."""
    counts = np.bincount(columns[f"{prefix}_image"], minlength=len(names))
    ends = np.cumsum(counts)[:-1]
    boxes, first, second = (
        np.split(columns[f"{prefix}_{name}"], ends) for name in ("boxes", *order)
    )
    return dict(zip(names, zip(boxes, first, second, strict=True), strict=True)) if names else {}
