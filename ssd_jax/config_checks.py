"""Checks a config: types and values of its fields, and the memory that they imply."""

import dataclasses
import math
import os
import reprlib
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

from ssd_jax import augment as augment_lib
from ssd_jax import config as config_lib
from ssd_jax import errors, resampling
from ssd_jax.models import ssd

_MOST_CLASSES = 32_767  # which evaluations count in 16 bits
_MOST_CHARACTERS = 4_096  # of a text, and of a class's name
_MOST_VALUES = 10_000  # in a field that has several
_MOST_PIXELS = 2**28  # of the inputs of a batch that is evaluated, and of its canvases

_CHOICES = {
    ("model", "backbone"): ssd.BACKBONES,
    ("model", "padding"): ("", "torch", "tensorflow"),
    ("model", "dtype"): ("float32", "bfloat16"),
    ("model", "prior_sizes"): ("voc", "coco"),
    ("data", "dataset"): ("voc", "folder", "coco", "yolo", "synthetic"),
    ("data", "augment"): augment_lib.POLICIES,
    ("train", "optimizer"): ("sgd", "adam", "muon"),
    ("train", "schedule"): ("steps", "cosine"),
    ("train", "parallel"): ("shard_map", "pmap"),
}
_POSITIVE = {
    "model": ("image_size", "width"),
    "data": ("canvas", "threads", "max_megapixels"),
    "train": (
        "batch_size",
        "accumulate",
        "learning_rate",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
    ),
    "eval": ("batch_size", "top_k", "max_detections"),
}
_NOT_NEGATIVE = {
    "data": ("workers", "memory_gib"),
    "train": (
        "steps",
        "warmup_steps",
        "scratch_warmup_steps",
        "weight_decay",
        "cpu_devices",
        "base_batch_size",
        "clip_norm",
        "max_skipped",
        "watchdog_minutes",
    ),
    "eval": ("max_images",),
}
_SHARES = {"data": ("max_unreadable_fraction",), "train": ("ema_decay",)}
_AT_MOST = {
    "model": {"image_size": 4_096, "image_width": 4_096, "width": 16},
    "data": {"canvas": 8_192, "threads": 1_024, "workers": 1_024},
    "train": {"cpu_devices": 1_024},
    "eval": {"top_k": 100_000, "max_detections": 100_000},
}
_LENGTHS = {"source_maps": 32, "aspect_ratios": 32, "prior_scales": 32, "tta_sizes": 32}


def validate(config: config_lib.Config) -> None:
    """Checks the type and the value of every field.

    Raises:
      UserError: Naming the first field that is wrong, and what it may be.
    """
    _check_types(config)
    for (part, field), choices in _CHOICES.items():
        value = getattr(getattr(config, part), field)
        if value not in tuple(choices):
            raise errors.UserError(
                f"config.{part}.{field} is {shown(value)}; choose one of {', '.join(choices)}"
            )
    least = ssd.BACKBONES[config.model.backbone].least_side
    for field in ("image_size", "image_width"):
        side = getattr(config.model, field)
        if side < least and (field, side) != ("image_width", 0):
            raise errors.UserError(
                f"config.model.{field} is {side}; the maps of {config.model.backbone} need at "
                f"least {least} pixels"
            )
    if len(config.model.mean) not in (0, 3):
        raise errors.UserError(
            f"config.model.mean is {shown(config.model.mean)}; give three numbers, RGB in 0..255, "
            f"or none"
        )
    drawn = config.data.interpolations
    if not drawn or set(drawn) - set(resampling.INTERPOLATIONS):
        raise errors.UserError(
            f"config.data.interpolations is {shown(drawn)}; give some of "
            f"{resampling.INTERPOLATIONS}"
        )
    _check_boxes(config.model)
    _check_sizes(config.eval.tta_sizes, least)
    lr_multipliers(config.train.lr_multipliers)
    for fields, low, high, meaning in (
        (_POSITIVE, 1e-12, math.inf, "above 0"),
        (_NOT_NEGATIVE, 0, math.inf, "at least 0"),
        (_SHARES, 0, 1, "from 0 to 1"),
    ):
        for part, names in fields.items():
            for field in names:
                value = getattr(getattr(config, part), field)
                if not low <= value <= high:
                    raise errors.UserError(
                        f"config.{part}.{field} is {value}; it must be {meaning}"
                    )
    _check_amounts(config)


def _check_types(config: config_lib.Config) -> None:
    if not _fits(int, config.seed):
        raise _mistyped("config.seed", config.seed, int)
    for part, kinds in FIELDS.items():
        for field, kind in kinds.items():
            value = getattr(getattr(config, part), field)
            if not _fits(kind, value):
                raise _mistyped(f"config.{part}.{field}", value, kind)


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value has the type of a field, is finite and not too long."""
    if isinstance(kind, types.GenericAlias):
        element = typing.get_args(kind)[0]
        fits = isinstance(value, tuple) and len(value) <= _MOST_VALUES
        return fits and all(_fits(element, each) for each in value)
    if kind is str:
        return isinstance(value, str) and _is_text(value)
    if kind is bool or isinstance(value, bool):
        return kind is type(value)
    if kind is int:
        return isinstance(value, int) and abs(value) < 2**63
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _is_text(value: str) -> bool:
    """Whether a text can be a path, which may contain surrogate-escaped bytes."""
    try:
        return b"\0" not in os.fsencode(value) and len(value) <= _MOST_CHARACTERS
    except UnicodeEncodeError:
        return False


def _mistyped(field: str, value: Any, kind: Any) -> errors.UserError:
    example = f", such as {_EXAMPLES[kind]}" if kind in _EXAMPLES else ""
    return errors.UserError(f"{field} is {shown(value)}; it must be {_named(kind)}{example}")


def _named(kind: Any, *, several: bool = False) -> str:
    """A field's type in words."""
    if isinstance(kind, types.GenericAlias):
        word = "tuples" if several else "a tuple"
        return f"{word} of {_named(typing.get_args(kind)[0], several=True)}"
    one, more = {
        int: ("a whole number", "whole numbers"),
        float: ("a finite number", "finite numbers"),
        bool: ("true or false", ""),
        str: (f"a text of at most {_MOST_CHARACTERS} characters", "texts"),
    }[kind]
    return more if several else one


def shown(value: Any) -> str:
    """Returns the beginning of a given value for a message, quickly even if it is large."""
    return _SHORT.repr(value)


def _check_amounts(config: config_lib.Config) -> None:
    """Limits the memory that a config implies."""
    for part, limits in _AT_MOST.items():
        for field, most in limits.items():
            if (value := getattr(getattr(config, part), field)) > most:
                raise errors.UserError(f"config.{part}.{field} is {value}; it may be {most:,}")
    for part in ("model", "eval"):
        for field in _LENGTHS.keys() & FIELDS[part].keys():
            if len(value := getattr(getattr(config, part), field)) > _LENGTHS[field]:
                raise errors.UserError(
                    f"config.{part}.{field} has {len(value)} entries; it may have {_LENGTHS[field]}"
                )
    _check_pixels(config)


def _check_pixels(config: config_lib.Config) -> None:
    """Bounds the batches of an evaluation."""
    options = config.eval
    height, width = config.model.image_size, config.model.image_width or config.model.image_size
    sides = options.tta_sizes or (min(height, width),)
    scales = [side / min(height, width) for side in sides]
    most = _AT_MOST["model"]["image_size"]
    if max(scales) * max(height, width) > most:
        raise errors.UserError(
            f"config.eval.tta_sizes has {max(sides)}, which makes an input of more than {most:,} "
            f"pixels on a side; give smaller ones"
        )
    looks = sum(scale**2 for scale in scales) * height * width * (1 + options.tta_flip)
    for pixels, what in (
        (looks, "inputs of config.model.image_size and config.eval.tta_sizes"),
        (config.data.canvas**2, "canvases of config.data.canvas"),
    ):
        if options.batch_size * pixels > _MOST_PIXELS:
            raise errors.UserError(
                f"config.eval.batch_size is {options.batch_size}: the {what} have "
                f"{options.batch_size * pixels:.0f} pixels together; make it at most "
                f"{max(1, int(_MOST_PIXELS / pixels))}"
            )


def _check_boxes(model: config_lib.ModelConfig) -> None:
    if not model.atrous and not model.backbone.startswith("vgg"):
        raise errors.UserError(
            f"config.model.atrous is False, and {model.backbone} has no such layers; give "
            f"--config.model.atrous=true"
        )
    maps, ratios = model.source_maps, model.aspect_ratios
    if min(maps, default=0) < 0 or list(maps) != sorted(maps):
        raise errors.UserError(
            f"config.model.source_maps is {shown(maps)}; give the number of a map for each scale, "
            f"never falling, such as '(0, 1, 2, 3, 4, 4)'"
        )
    if any(len(of_scale) > 16 or min(of_scale, default=2) <= 1 for of_scale in ratios):
        raise errors.UserError(
            f"config.model.aspect_ratios is {shown(ratios)}; give at most 16 ratios above 1 for "
            f"each scale, or once for all, such as '((2,),)' or '((),)'"
        )
    scales = model.prior_scales
    if not all(0 < scale <= 1 for scale in scales) or list(scales) != sorted(scales):
        raise errors.UserError(
            f"config.model.prior_scales is {shown(scales)}; give a share of the input's shorter "
            f"side for each scale, above 0, at most 1 and never falling, such as "
            f"'(0.1, 0.2, 0.37, 0.54, 0.71, 0.88)'"
        )
    unused = model.unused_logits
    if min(unused, default=1) < 1 or list(unused) != sorted(set(unused)):
        raise errors.UserError(
            f"config.model.unused_logits is {shown(unused)}; give ascending indices from 1"
        )


def _check_sizes(sizes: tuple[int, ...], least: int) -> None:
    if len(set(sizes)) < len(sizes) or min(sizes, default=least) < least:
        raise errors.UserError(
            f"config.eval.tta_sizes is {shown(sizes)}; give different whole numbers of pixels, "
            f"each at least {least}, such as '(300, 400)', or '()'"
        )


def lr_multipliers(fields: Sequence[str]) -> dict[str, float]:
    """Parses the `PATTERN=NUMBER` entries of `config.train.lr_multipliers`.

    Raises:
      UserError: If one is not of that form, or the number is not above 0.
    """
    found = {}
    for text in fields:
        pattern, _, number = text.rpartition("=")
        try:
            found[pattern] = float(number)
        except ValueError:
            found[pattern] = math.nan
        if not (pattern and 0 < found[pattern] < math.inf):
            raise errors.UserError(
                f"config.train.lr_multipliers has {shown(text)}; give PATTERN=NUMBER, such as "
                f"'conf*=10'; config.train.freeze excludes parameters from training"
            )
    return found


def check_class_names(names: Any, *, where: object) -> tuple[str, ...]:
    """Checks the class names saved with a trained network.

    Args:
      names: The names from JSON.
      where: Name of the file for the message.

    Raises:
      UserError: If they are no list of different texts that are not empty.
    """
    if not isinstance(names, list | tuple) or not 0 < len(names) <= _MOST_CLASSES:
        raise errors.UserError(
            f"{where}: class_names is {shown(names)}; it must be a list of 1 to {_MOST_CLASSES:,} "
            f"names"
        )
    for name in names:
        if not isinstance(name, str) or not (name.strip() and _is_text(name) and _is_unicode(name)):
            raise errors.UserError(
                f"{where}: class_names has {shown(name)}; a name is a text that is not empty, of "
                f"at most {_MOST_CHARACTERS} characters"
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise errors.UserError(f"{where}: class_names has {shown(twice)} twice")
    return tuple(names)


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which cannot be drawn or written."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _fields_of(part: type) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(part)}


FIELDS = {
    "model": _fields_of(config_lib.ModelConfig),
    "data": _fields_of(config_lib.DataConfig),
    "train": _fields_of(config_lib.TrainConfig),
    "eval": _fields_of(config_lib.EvalConfig),
}
_EXAMPLES = {
    tuple[int, ...]: "'(300, 400)'",
    tuple[float, ...]: "'(123, 117, 104)'",
    tuple[str, ...]: "\"('conf*=10',)\"",
    tuple[tuple[float, ...], ...]: "'((2,),)'",
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
