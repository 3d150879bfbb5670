"""Detectors in third-party checkpoints: the network that their arrays determine or leave open."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from ssd_jax import build, detector, errors
from ssd_jax import config as config_lib
from ssd_jax.data import classes
from ssd_jax.models import ssd
from ssd_jax.weights import loading

Say = Callable[[str], object]

# Class names and unused logits by the number of logits of a head, background included.
_KNOWN_CLASSES: dict[int, tuple[tuple[str, ...], tuple[int, ...]]] = {
    21: (classes.VOC, ()),
    81: (classes.COCO, ()),
    91: (classes.COCO, classes.COCO_UNUSED_IDS),
}

_SIDES = {("ssd", 6): 300, ("ssd", 7): 512, ("ssdlite", 6): 320}
"""Input size in pixels by the backbone's style and the number of source maps."""

_THIRD_PARTY_CANVAS = 640
"""Canvas of third-party detectors in pixels. No side of a COCO image is longer, so images are
resampled only once, as these detectors were evaluated when they were published."""


def describe(weights: loading.Weights) -> tuple[config_lib.Config, tuple[str, ...]]:
    """Returns the config and the class names of a detector, from its heads and its layout."""
    logits, levels = loading.heads(weights)
    names = tuple(f"class {label}" for label in range(1, logits))
    names, unused_logits = _KNOWN_CLASSES.get(logits, (names, ()))
    conventions = weights.layout.conventions
    by_classes = "coco" if names == classes.COCO else "voc"
    conventions = conventions._replace(
        prior_sizes=conventions.prior_sizes or by_classes, unused_logits=unused_logits
    )
    config = config_lib.Config()
    config.model = build.with_conventions(config.model, conventions)
    config.model.backbone = loading.backbone_of(weights) or config.model.backbone
    config.model.image_size = _side(weights.path, config.model.backbone, levels)
    config.data.canvas = _THIRD_PARTY_CANVAS
    config.eval = dataclasses.replace(config.eval, **weights.layout.detection)
    return config, names


def build_detector(
    config: config_lib.Config,
    *,
    weights: loading.Weights,
    class_names: Sequence[str],
    say: Say,
) -> detector.Detector:
    """Returns the detector of a config with the parameters of a third-party checkpoint.

    Args:
      config: The config of the network, as `describe` returns it or changed by the user.
      weights: The arrays of the checkpoint.
      class_names: Names of the classes.
      say: Called with each line of the report on the arrays.

    Raises:
      UserError: If a parameter is missing in the checkpoint or has another shape.
    """
    weights = loading.with_mean(weights, build.mean(config.model))
    params, report = loading.fit(build.abstract_params(config.model, len(class_names)), weights)
    if report.fresh:
        missing = ", ".join(report.fresh)
        raise errors.UserError(
            f"{weights.path} has no values for {missing}; give the weights of a whole detector"
        )
    for line in _account(report, weights, config.model):
        say(line)
    return detector.Detector(config, class_names, params, loaded=report)


def knows_classes(weights: loading.Weights) -> bool:
    """Whether the number of logits of a detector determines its classes."""
    return loading.heads(weights)[0] in _KNOWN_CLASSES


def assumptions(weights: loading.Weights, config: config_lib.ModelConfig) -> list[str]:
    """Returns a line for each assumption that the checkpoint of a detector leaves open.

    Args:
      weights: The weights of the detector.
      config: The config of its network.
    """
    logits, _ = loading.heads(weights)
    known = knows_classes(weights) or weights.layout.conventions.prior_sizes or config.prior_scales
    if known or config.prior_sizes != "voc":
        return []
    return [
        f"assuming VOC's default boxes, which {logits} logits leave open; "
        f"--config.model.prior_sizes=coco uses COCO's"
    ]


def _side(path: Path, backbone: str, levels: int) -> int:
    """Returns the input size in pixels of a detector by its number of source maps."""
    style = ssd.BACKBONES[backbone].style
    if (style, levels) not in _SIDES:
        raise errors.UserError(
            f"{path} has {levels} source maps on {backbone}, but SSDLite has 6; give the weights "
            f"of an SSDLite"
        )
    return _SIDES[style, levels]


def _account(
    report: loading.Report, weights: loading.Weights, config: config_lib.ModelConfig
) -> list[str]:
    """Returns the report on the weights of a detector and its assumptions, in lines."""
    counts = f"{len(report.loaded)} arrays loaded, {len(report.fresh)} missing"
    some = ", ".join(list(report.ignored)[:3]) + ", ..." * (len(report.ignored) > 3)
    ignored = f"{len(report.ignored)} ignored" + (f" ({some})" if some else "")
    return [f"{report.title}: {counts}, {ignored}", *assumptions(weights, config)]
