"""Parses names of splits such as `2007/trainval+2012/trainval` and `train[:80%]`."""

import re
from typing import NamedTuple

import tensorflow_datasets as tfds

from ssd_jax import errors

_PART = re.compile(r"(?:(?P<year>\w+)/)?(?P<name>\w+)(?P<slice>\[[^\]]*\])?")
HELP = 'as in "2007/trainval+2012/trainval" or, of a folder, "train[:80%]"'


class Part(NamedTuple):
    """One of the names joined by "+"; `year` and `slice` (with brackets) may be empty."""

    year: str
    name: str
    slice: str


def parse(part: str, split: str) -> Part:
    """Parses one of the names; `split` is the whole text, for the message.

    Raises:
      UserError: If it is not such a name.
    """
    match = _PART.fullmatch(part.strip())
    if match is None:
        raise errors.UserError(f"split {split!r}: {part.strip()!r} is no split's name, {HELP}")
    return Part(match["year"] or "", match["name"], match["slice"] or "")


def bounds(part: Part, length: int, split: str) -> tuple[int, int]:
    """Returns the first record of a slice in tfds' syntax and the one after its last.

    Raises:
      UserError: If it is no slice, or an empty one.
    """
    whole = tfds.core.SplitInfo(name="part", shard_lengths=[length], num_bytes=0)
    try:
        instruction = tfds.core.ReadInstruction.from_spec(f"part{part.slice}")
        (bounds,) = instruction.to_absolute({"part": whole})
    except (ValueError, AssertionError) as error:
        raise errors.UserError(
            f"split {split!r}: cannot take {part.slice} of {length} images, {HELP}"
        ) from error
    start, stop, _ = slice(bounds.from_, bounds.to).indices(length)
    if start >= stop:
        raise errors.UserError(f"split {split!r}: {part.slice} of {length} images is none")
    return start, stop
