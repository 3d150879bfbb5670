"""Detectors in third-party weights: what their arrays tell of the network, and what they do not."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from ssd_jax import build, detector, errors
from ssd_jax import config as config_lib
from ssd_jax.data import classes
from ssd_jax.models import ssd
from ssd_jax.weights import loading

Say = Callable[[str], object]

# What a head of so many logits, background included, tells apart: class names and unused logits.
_KNOWN_CLASSES: dict[int, tuple[tuple[str, ...], tuple[int, ...]]] = {
    21: (classes.VOC, ()),
    81: (classes.COCO, ()),
    91: (classes.COCO, classes.COCO_UNUSED_IDS),
}

_SIDES = {("ssd", 6): 300, ("ssd", 7): 512, ("ssdlite", 6): 320}
"""Pixels of a detector's input, by its backbone's style and its number of source maps."""

_FOREIGN_CANVAS = 640
"""Pixels of a third-party detector's canvas. No side of COCO's images is longer, so an image is
resampled once, as it was when these detectors were published."""


def describe(weights: loading.Weights) -> tuple[config_lib.Config, tuple[str, ...]]:
    """The config and the classes of a detector, from its heads and its layout."""
    logits, levels = loading.heads(weights)
    names = tuple(f"class {label}" for label in range(1, logits))
    names, unused_logits = _KNOWN_CLASSES.get(logits, (names, ()))
    layout = weights.layout
    config = config_lib.Config()
    config.model.backbone = loading.backbone_of(weights) or config.model.backbone
    config.model.image_size = _side(weights.path, config.model.backbone, levels)
    config.model.padding = layout.padding
    config.model.prior_sizes = layout.prior_sizes or ("coco" if names == classes.COCO else "voc")
    config.model.clip_priors = layout.clip_priors
    config.model.clip_prior_sizes = layout.clip_prior_sizes
    config.model.unused_logits = unused_logits
    config.model.mean = layout.mean
    config.data.canvas = _FOREIGN_CANVAS
    config.eval = dataclasses.replace(config.eval, **layout.detection)
    return config, names


def build_detector(
    config: config_lib.Config,
    *,
    weights: loading.Weights,
    class_names: Sequence[str],
    say: Say,
) -> detector.Detector:
    """The detector of a config with the parameters of somebody's file.

    Args:
      config: The config of the network, as `describe` gives it or changed by the user.
      weights: The file's arrays.
      class_names: Names of the classes.
      say: Called with each line on what became of the arrays.

    Raises:
      UserError: If a parameter has no value in the file, or one of another shape.
    """
    weights = loading.with_mean(weights, build.mean(config.model))
    params, report = loading.fit(build.abstract_params(config.model, len(class_names)), weights)
    if report.fresh:
        missing = ", ".join(report.fresh)
        raise errors.UserError(
            f"{weights.path} has no values for {missing}; give the whole detector's weights"
        )
    for line in _account(report, weights, config.model):
        say(line)
    return detector.Detector(config, class_names, params, loaded=report)


def knows_classes(weights: loading.Weights) -> bool:
    """Whether the number of a detector's logits tells its classes."""
    return loading.heads(weights)[0] in _KNOWN_CLASSES


def assumptions(weights: loading.Weights, config: config_lib.ModelConfig) -> list[str]:
    """What the file of a detector does not say and is assumed, in lines.

    Args:
      weights: The weights of the detector.
      config: Describes the network that they are for.
    """
    logits, _ = loading.heads(weights)
    told = knows_classes(weights) or weights.layout.prior_sizes or config.prior_scales
    if told or config.prior_sizes != "voc":
        return []
    return [
        f"its default boxes are taken to be VOC's, which {logits} logits do not tell; "
        f"--config.model.prior_sizes=coco takes COCO's"
    ]


def _side(path: Path, backbone: str, levels: int) -> int:
    """Pixels of the input of a detector with so many source maps."""
    style = ssd.BACKBONES[backbone].style
    if (style, levels) not in _SIDES:
        raise errors.UserError(
            f"{path} has {levels} source maps on {backbone}, where SSDLite has 6; give the weights "
            "of such a one"
        )
    return _SIDES[style, levels]


def _account(
    report: loading.Report, weights: loading.Weights, config: config_lib.ModelConfig
) -> list[str]:
    """What came of the weights of a detector, and what its file does not say, in lines."""
    counts = f"{len(report.loaded)} arrays loaded, {len(report.fresh)} left fresh"
    some = ", ".join(list(report.ignored)[:3]) + ", ..." * (len(report.ignored) > 3)
    ignored = f"{len(report.ignored)} ignored" + (f" ({some})" if some else "")
    return [f"{report.title}: {counts}, {ignored}", *assumptions(weights, config)]
