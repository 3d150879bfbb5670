"""Configs saved with runs and exported files.

They may come from third parties, so they are data: they are checked field by field, and their
`config.LOCAL` fields are ignored.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd_jax import config as config_lib
from ssd_jax import config_checks, errors, files, renamed

VERSION = 2  # format of a workdir: config and checkpoints; newer ones are rejected
MOST_BYTES = 16 * 2**20  # of a config with its class names, as JSON


def to_dict(config: config_lib.Config) -> dict[str, Any]:
    """A config as JSON knows it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def save(path: str | Path, config: config_lib.Config, class_names: tuple[str, ...]) -> None:
    """Writes a run's config, and the names of its classes, as JSON."""
    content = {
        "version": VERSION,
        "config": to_dict(config),
        "class_names": list(class_names),
    }
    files.write(path, json.dumps(content, indent=2) + "\n")


def load(path: str | Path) -> tuple[config_lib.Config, tuple[str, ...]]:
    """Reads what `save` wrote: the config and the class names.

    The file may come from a third party: it is checked by `from_mapping`, and `config.LOCAL` fields
    keep the values of this machine.

    Raises:
      UserError: If the file is missing, is not such a file, is of a newer version, or has a field
        that is not known or of a wrong type or value.
    """
    path = Path(path)
    try:
        data = files.read(path, at_most=MOST_BYTES)
        content = parse(data, where=f"{path} is not the config of a run")
    except FileNotFoundError:
        raise errors.UserError(
            f"{path} is missing: give the workdir of a training run, which holds it"
        ) from None
    except OSError as error:
        if errors.is_of_machine(error):
            raise errors.of_machine(error, path) from None
        raise errors.UserError(f"{path}: {error.strerror}") from None
    try:
        content = {"version": 1, **content}  # the first: none
        check_version(path, content["version"])
        config, names = content["config"], content["class_names"]
    except KeyError as error:
        raise errors.UserError(f"{path} is not the config of a run: it has no {error}") from None
    except TypeError as error:
        raise errors.UserError(f"{path} is not the config of a run: {error}") from None
    return from_mapping(config, where=path), config_checks.check_class_names(names, where=path)


def parse(text: str | bytes, *, where: object) -> Any:
    """Parses JSON of a third party.

    Args:
      text: The JSON, as UTF-8 where it is bytes; at most `MOST_BYTES`.
      where: Name of the file for the message.

    Raises:
      UserError: If it is none, or larger.
    """
    if len(text) > MOST_BYTES:
        raise errors.UserError(f"{where}: its config is larger than {MOST_BYTES} bytes")
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise errors.UserError(f"{where}: no JSON ({reason})") from None


def check_version(path: str | Path, version: int) -> None:
    """Rejects workdirs of a newer ssd_jax.

    Args:
      path: Path of the config or checkpoint for the message.
      version: The `VERSION` that it was written with.

    Raises:
      UserError: If it is above this one's.
      TypeError: If it is no whole number.
    """
    if type(version) is not int:
        raise TypeError(f"its version is {config_checks.shown(version)}")
    if version > VERSION:
        raise errors.UserError(
            f"{path} was written by a newer ssd_jax (format {config_checks.shown(version)}, this "
            f"one reads {VERSION}): update ssd_jax"
        )


def from_mapping(values: Any, *, where: object) -> config_lib.Config:
    """Builds the config saved with a trained network from its fields by name.

    Fields that are absent keep their defaults, `config.LOCAL` ones do in any case.

    Args:
      values: The JSON: parts by name, with fields by name, tuples as lists.
      where: Name of the file for the message.

    Raises:
      UserError: Naming `where` and the first field that is not known, or of a wrong type or value.
    """
    config = config_lib.Config()
    for name, value in _checked_names(values, config_lib.Config, f"{where}: config").items():
        if name == "seed":
            config.seed = _as_field(value, int)
            continue
        part = getattr(config, name)
        if isinstance(value, dict):
            value = renamed.fields(name, value)
        given = _checked_names(value, type(part), f"{where}: config.{name}")
        for field in given.keys() - set(config_lib.LOCAL.get(name, ())):
            setattr(part, field, _as_field(given[field], config_checks.FIELDS[name][field]))
    try:
        config_checks.validate(config)
    except errors.UserError as error:
        raise errors.UserError(f"{where}: {error}") from None
    return config


def _checked_names(values: Any, kind: type, where: str) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise errors.UserError(
            f"{where} is {config_checks.shown(values)}; it must be an object of fields"
        )
    if unknown := values.keys() - {field.name for field in dataclasses.fields(kind)}:
        raise errors.UserError(
            f"{where} has an unknown field {config_checks.shown(min(unknown))}: it may be of "
            f"another version of ssd_jax"
        )
    return values


def _as_field(value: Any, kind: Any) -> Any:
    """Converts a JSON value to the type of its field if possible: lists to tuples, 8.0 to 8."""
    if isinstance(value, list) and isinstance(kind, types.GenericAlias):
        return tuple(_as_field(each, typing.get_args(kind)[0]) for each in value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
