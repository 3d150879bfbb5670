"""Finds trained networks by path or name: runs, exported files and third-party weights."""

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.traverse_util
import jax
from absl import logging

from ssd_jax import build, config_checks, config_files, errors, export, third_party
from ssd_jax import config as config_lib
from ssd_jax.conventions import Conventions
from ssd_jax.detector import Detector
from ssd_jax.weights import hub, layouts, loading, transfer


class Trained(NamedTuple):
    """A trained network that has been found and not built yet.

    Attributes:
      place: Path of the network.
      folder: Folder for outputs about it.
      config: The config that it comes with.
      build: Makes the detector of a config.
    """

    place: Path
    folder: Path
    config: config_lib.Config
    build: Callable[[config_lib.Config], Detector]


def load_detector(
    path: str | Path, *, tta_flip: bool | None = None, tta_sizes: Sequence[int] | None = None
) -> Detector:
    """Loads a trained detector.

    Args:
      path: A workdir of `train.py` (its best checkpoint is taken), one checkpoint,
        `WORKDIR/checkpoints/STEP`, a file of `export.py`, a file with the weights of a third-party
        SSD, or the name of published ones, `ssd300-coco` or `ssdlite320-coco`.
      tta_flip: Also detect in the mirrored image; None: as the run's `config.eval.tta_flip` says.
      tta_sizes: Shorter sides of the inputs, in pixels; None: as `config.eval.tta_sizes` says.

    Returns:
      `detector(images, *, score_threshold=0.5)`, see `Detector`.

    Raises:
      UserError: If there is no checkpoint, its config is missing, the file is not of an SSD, or
        `tta_flip` or `tta_sizes` are not for it.
    """
    trained = find(path)
    config = copy.deepcopy(trained.config)
    config.eval.tta_flip = config.eval.tta_flip if tta_flip is None else tta_flip
    config.eval.tta_sizes = config.eval.tta_sizes if tta_sizes is None else tuple(tta_sizes)
    config_checks.validate(config)
    return trained.build(config)


def find(
    path_or_name: str | Path,
    *,
    data: config_lib.DataConfig | None = None,
    say: third_party.Say = logging.info,
) -> Trained:
    """Finds a trained network.

    Args:
      path_or_name: See `load_detector`.
      data: Says from where published weights are downloaded, and where they are kept; None: the
        defaults.
      say: Called with each line on what became of third-party weights, as they are loaded.

    Raises:
      UserError: If there is no such network.
    """
    if Path(path_or_name).is_dir():
        return find_run(path_or_name)
    if export.is_exported(path_or_name):
        return _find_exported(Path(path_or_name))
    return _find_third_party(path_or_name, data or config_lib.DataConfig(), say)


def find_run(path: str | Path) -> Trained:
    """Finds a run of `train.py` by its workdir or one of its checkpoints.

    Raises:
      UserError: If there is no checkpoint, or its config is missing.
    """
    from ssd_jax import checkpoints  # not above: it imports Orbax, which takes half a second

    folder = checkpoints.find(path)
    config, _ = config_files.load(_config_of(folder))
    return Trained(
        folder, _config_of(folder).parent, config, functools.partial(_restore, folder=folder)
    )


def _restore(config: config_lib.Config, folder: Path) -> Detector:
    """The detector of a config, with the parameters and classes of one checkpoint folder.

    Raises:
      UserError: If the config describes another network than the checkpoint's.
    """
    from ssd_jax import checkpoints

    trained, class_names = config_files.load(_config_of(folder))
    for field in (
        "backbone", "image_size", "image_width", "width", "atrous", "source_maps",
        "aspect_ratios", "prior_scales", *Conventions._fields,
    ):  # fmt: skip
        here, there = getattr(config.model, field), getattr(trained.model, field)
        if here != there:
            raise errors.UserError(
                f"config.model.{field} is {here}, but {folder} was trained with {there}"
            )
    like = build.abstract_params(config.model, len(class_names))
    params = checkpoints.restore_params(folder, like, ema=config.eval.ema)
    return Detector(config, class_names, params)


def _config_of(folder: Path) -> Path:
    """The `config.json` of the run that a checkpoint belongs to."""
    return folder.parent.parent / "config.json"


def _find_exported(path: Path) -> Trained:
    """Finds a file of `export.py`, which contains its config."""
    loaded = export.load(path)

    def build_detector(config: config_lib.Config) -> Detector:
        if config == loaded.config:
            return loaded
        if loaded.params is None:
            raise errors.UserError(
                f"{path}: --config, tta_flip and tta_sizes cannot change an exported file; give "
                f"them to export.py, which writes it"
            )
        return Detector(config, loaded.class_names, loaded.params)

    return Trained(path, _folder_for(path), copy.deepcopy(loaded.config), build_detector)


def _find_third_party(
    path_or_name: str | Path, data: config_lib.DataConfig, say: third_party.Say
) -> Trained:
    """Finds a detector in a third-party file; its number of logits determines its classes."""
    weights = loading.read(hub.locate(path_or_name, cache_dir=data.cache_dir, mirror=data.mirror))
    config, class_names = third_party.describe(weights)
    build_detector = functools.partial(
        third_party.build_detector, weights=weights, class_names=class_names, say=say
    )
    return Trained(weights.path, _folder_for(path_or_name), config, build_detector)


def _folder_for(path_or_name: str | Path) -> Path:
    """Returns the folder for outputs about a file."""
    return Path("runs") / Path(path_or_name).stem


class Pretrained(NamedTuple):
    """Pretrained weights for a training.

    Attributes:
      weights: The weights of the network, or of its backbone.
      classes: The classes of a detector; None for a backbone, and where they are not known.
      conventions: What they were trained with.
      assumed: Conventions that the file leaves open and are assumed, in lines.
    """

    weights: loading.Weights
    classes: transfer.Classes | None
    conventions: Conventions
    assumed: tuple[str, ...] = ()


def read_pretrained(config: config_lib.Config) -> Pretrained:
    """Reads the pretrained weights of a config, `config.model.pretrained`.

    That is a run's workdir or checkpoint, a safetensors file of `export.py`, a file with
    third-party weights, or a name of `hub.NAMES`.

    Raises:
      UserError: If it can't be had or read.
    """
    model = config.model
    path = hub.locate(model.pretrained, cache_dir=config.data.cache_dir, mirror=config.data.mirror)
    if path.is_dir() or export.is_exported(path):
        return _pretrained_of(path, load_detector(path))
    weights = loading.read(path, backbone=model.backbone, atrous=model.atrous)
    if not loading.has_heads(weights):
        conventions = weights.layout.conventions._replace(prior_sizes="voc")
        return Pretrained(weights, None, conventions)
    described, names = third_party.describe(weights)
    known = third_party.knows_classes(weights)
    return Pretrained(
        weights,
        transfer.Classes(names, described.model.unused_logits) if known else None,
        build.conventions(described.model),
        tuple(third_party.assumptions(weights, described.model)),
    )


def _pretrained_of(path: Path, detector: Detector) -> Pretrained:
    """Returns the parameters of a detector of ours as pretrained weights."""
    if detector.params is None:
        raise errors.UserError(
            f"{path} cannot be trained further; give the run's workdir, or the safetensors file "
            f"beside it"
        )
    conventions = build.conventions(detector.config.model)
    flat = flax.traverse_util.flatten_dict(jax.device_get(detector.params), sep="/")
    layout = layouts.OURS._replace(title="a detector of ours", conventions=conventions)
    weights = loading.Weights(path, layout, flat, {name: name for name in flat}, {})
    classes = transfer.Classes(detector.class_names, conventions.unused_logits)
    return Pretrained(weights, classes, conventions)
