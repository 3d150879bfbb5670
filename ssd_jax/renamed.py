"""Old names of config fields and flags: those of version 0.1 are still accepted."""

from collections.abc import Mapping

FIELDS = {
    "model.gaps": "model.unused_logits",
    "data.max_bad_share": "data.max_unreadable_fraction",
    "train.scale_rate_from": "train.base_batch_size",
    "train.bias_rate": "train.bias_lr_multiplier",
    "train.rates": "train.lr_multipliers",
    "train.drops": "train.milestones",
    "train.drop_factor": "train.lr_decay_factor",
    "train.fresh_warmup_steps": "train.scratch_warmup_steps",
    "eval.flip": "eval.tta_flip",
    "eval.sizes": "eval.tta_sizes",
}
"""`PART.FIELD` of a config by its old name."""

FLAGS = {
    **{f"config.{old}": f"config.{new}" for old, new in FIELDS.items()},
    **{f"noconfig.{old}": f"noconfig.{new}" for old, new in FIELDS.items()},
    "onnx": "weights",
    "pictures": "images",
}
"""Flags of the scripts by their old name, without the dashes."""


def flag(argument: str) -> tuple[str, str]:
    """Replaces the old name of a flag on the command line.

    Args:
      argument: Such as `--config.eval.flip=true`; anything else is returned as it is.

    Returns:
      The argument with the new name, and a sentence that names it; empty if nothing was replaced.
    """
    dashes = argument[: len(argument) - len(argument.lstrip("-"))]
    name, equals, value = argument[len(dashes) :].partition("=")
    if not dashes or name not in FLAGS:
        return argument, ""
    return f"{dashes}{FLAGS[name]}{equals}{value}", f"--{name} is now --{FLAGS[name]}"


def fields(part: str, values: Mapping[str, object]) -> dict[str, object]:
    """Replaces the old names of the fields of one part of a saved config.

    Args:
      part: `model`, `data`, `train` or `eval`.
      values: Values by field name; where both names are present, the new one counts.
    """
    new = {
        name: FIELDS.get(f"{part}.{name}", f"{part}.{name}").partition(".")[2] for name in values
    }
    return {
        new[name]: value
        for name, value in values.items()
        if new[name] == name or new[name] not in values
    }


def field_now(name: str) -> str:
    """Returns a note with the current name of an old config field; empty for other names."""
    found = [new for old, new in FIELDS.items() if old.partition(".")[2] == name]
    return f"it is now config.{found[0]}" if found else ""
