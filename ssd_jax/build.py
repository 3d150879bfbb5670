"""Builds the objects that a config describes: network, default boxes, splits, optimizer, ...

The functions that are built take arrays and know no config.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from ssd_jax import augment, config_checks, detection, errors, tta
from ssd_jax import config as config_lib
from ssd_jax import optimizer as optimizer_lib
from ssd_jax import priors as priors_lib
from ssd_jax.conventions import Conventions
from ssd_jax.data import datasets, images, loader
from ssd_jax.models import ssd

# --- The network ---


def input_size(config: config_lib.ModelConfig) -> tuple[int, int]:
    """(height, width) of the network's input in pixels."""
    return config.image_size, config.image_width or config.image_size


def mean(config: config_lib.ModelConfig) -> tuple[float, ...]:
    """RGB in 0..255 that is subtracted from the network's images."""
    return config.mean or augment.MEAN


def conventions(config: config_lib.ModelConfig) -> Conventions:
    """The conventions of the network of a config; its mean is never empty."""
    fields = {name: getattr(config, name) for name in Conventions._fields}
    return Conventions(**{**fields, "mean": mean(config)})


def with_conventions(
    config: config_lib.ModelConfig, conventions: Conventions
) -> config_lib.ModelConfig:
    """Returns a config with the conventions of trained parameters."""
    return dataclasses.replace(config, **conventions._asdict())


def model(config: config_lib.ModelConfig, num_classes: int) -> ssd.SSD:
    """The network of a config.

    Args:
      config: Describes the network.
      num_classes: Number of classes, without the background.

    Raises:
      UserError: If `config.source_maps`, `aspect_ratios` or `prior_scales` do not fit its maps, or
        `unused_logits` its logits.
    """
    if config.unused_logits and config.unused_logits[-1] > num_classes + len(config.unused_logits):
        raise errors.UserError(
            f"config.model.unused_logits has {config.unused_logits[-1]}: {num_classes} classes and "
            f"the unused logits are only {num_classes + len(config.unused_logits)} logits"
        )
    network = ssd.SSD(
        num_classes=num_classes + 1,
        backbone=config.backbone,
        width=config.width,
        atrous=config.atrous,
        source_maps=config.source_maps,
        aspect_ratios=config.aspect_ratios,
        prior_scales=config.prior_scales,
        padding=config.padding or "torch",
        prior_sizes=config.prior_sizes,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        variant=ssd.variant_for(config.backbone, input_size(config)),
        unused_logits=config.unused_logits,
    )
    if config.source_maps or config.aspect_ratios or config.prior_scales:
        try:
            spec = ssd.prior_spec(network, input_size(config))
        except ValueError as error:
            raise errors.UserError(f"config.model.{error}") from None
        try:
            priors_lib.check_number(spec)
        except ValueError as error:
            raise errors.UserError(f"config.model.source_maps, aspect_ratios: {error}") from None
    return network


def abstract_params(config: config_lib.ModelConfig, num_classes: int) -> Any:
    """Shapes and types of the parameters of the network of a config, by name."""
    return ssd.abstract_params(model(config, num_classes), input_size(config))


def priors(
    config: config_lib.ModelConfig, network: ssd.SSD, *, at: tuple[int, int] | None = None
) -> np.ndarray:
    """`[P, 4]` float32 default boxes (cxcywh) of the network of a config.

    Args:
      config: Describes the network.
      network: Network returned by `model`.
      at: (height, width) of another input than the training's, see `ssd.default_boxes`.
    """
    return ssd.default_boxes(
        network,
        input_size(config),
        clip=config.clip_priors,
        clip_sizes=config.clip_prior_sizes,
        at=at,
    )


# --- Detection ---


def views(config: config_lib.Config, network: ssd.SSD) -> list[tta.View]:
    """Views of an image by `config.eval.tta_flip` and `tta_sizes`, unmirrored ones first.

    Raises:
      UserError: If an input is too small for the network.
    """
    height, width = input_size(config.model)
    found = []
    for side in config.eval.tta_sizes or (min(height, width),):
        scale = side / min(height, width)
        size = (round(height * scale), round(width * scale))
        try:
            found.append(tta.View(size, priors(config.model, network, at=size)))
        except ValueError as error:
            raise errors.UserError(f"config.eval.tta_sizes has {side}: {error}") from None
    mirrored = [view._replace(mirrored=True) for view in found] if config.eval.tta_flip else []
    return [*found, *mirrored]


def post_processing(config: config_lib.EvalConfig) -> Callable[..., detection.Detections]:
    """Returns `detection.detect` with the options of a config."""
    return functools.partial(
        detection.detect,
        score_threshold=config.score_threshold,
        iou_threshold=config.iou_threshold,
        top_k=config.top_k,
        max_detections=config.max_detections,
        clip_before_nms=config.clip_before_nms,
    )


# --- Data ---


def split(
    config: config_lib.DataConfig, name: str, *, training: bool = False, prepare: bool = True
) -> datasets.Split:
    """Opens a split of the dataset of a config, preparing it first if needed.

    Args:
      config: Describes the dataset.
      name: Name of the split.
      training: Leave out what cannot be read, up to `config.max_unreadable_fraction`; evaluation
        skips none.
      prepare: Whether it may be prepared, and downloaded, now.

    Raises:
      UserError: If the dataset or the split does not exist, is broken, or may not be prepared.
    """
    return datasets.load(
        config.dataset,
        name,
        path=config.path,
        archives=config.archives,
        cache_dir=config.cache_dir,
        max_unreadable_fraction=config.max_unreadable_fraction if training else None,
        memory_gib=config.memory_gib,
        max_megapixels=config.max_megapixels,
        prepare=prepare,
    )


def image(
    config: config_lib.DataConfig, record: Mapping[str, Any], *, fit: tuple[int, int] | None = None
) -> np.ndarray:
    """`[H, W, 3]` uint8 RGB of a record of a split.

    Args:
      config: Says how large an image may be.
      record: A record from `datasets.load`.
      fit: (height, width) that a larger image may be shrunk for, see `images.decode`.

    Raises:
      UserError: If it does not decode.
    """
    return images.decode(
        record["image"], name=record["name"], fit=fit, max_megapixels=config.max_megapixels
    )


def decoding(config: config_lib.DataConfig) -> loader.Decoding:
    """How a config decodes images for the network."""
    return loader.Decoding(config.canvas, config.threads, config.workers, config.max_megapixels)


def augmentation(config: config_lib.Config) -> functools.partial[augment.Augmented]:
    """`augment.augment` with the options of a config: `(key, image, valid_size, boxes, labels)`."""
    return functools.partial(
        augment.augment,
        size=input_size(config.model),
        policy=config.data.augment,
        channel_shuffle=config.data.channel_shuffle,
        interpolations=config.data.interpolations,
        mean=mean(config.model),
    )


# --- The optimizer ---


def learning_rate(config: config_lib.TrainConfig) -> float:
    """Base learning rate for the batch size of a config, scaled linearly.

    Source: Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.1, linear scaling.
    """
    meant_for = config.base_batch_size or config.batch_size
    return config.learning_rate * config.batch_size / meant_for


def warmup_steps(config: config_lib.Config) -> int:
    """Warm-up steps: a minimum applies without pretrained weights, which the paper always uses."""
    scratch = 0 if config.model.pretrained else config.train.scratch_warmup_steps
    return max(config.train.warmup_steps, scratch)


def schedule(config: config_lib.Config) -> optax.Schedule:
    """Learning rate of a config as a function of the step."""
    options = config.train
    return optimizer_lib.make_schedule(
        learning_rate=learning_rate(options),
        steps=options.steps,
        schedule=options.schedule,
        milestones=options.milestones,
        lr_decay_factor=options.lr_decay_factor,
        warmup_steps=warmup_steps(config),
    )


def optimizer(
    config: config_lib.TrainConfig, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer of a config with the learning rate that `schedule` returns."""
    return optimizer_lib.make_optimizer(
        learning_rate,
        optimizer=config.optimizer,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        bias_lr_multiplier=config.bias_lr_multiplier,
        clip_norm=config.clip_norm,
        lr_multipliers=config_checks.lr_multipliers(config.lr_multipliers),
    )
