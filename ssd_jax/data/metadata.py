"""The facts stored with a prepared dataset in tfds' `metadata.json`."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_DECODERS = ("pillow", "simplejpeg")


class Metadata(NamedTuple):
    """Facts found while a dataset was prepared; the field names are the keys of the file.

    Attributes:
      category_ids: The dataset's own id of each class.
      joined: Splits that are not stored because they are concatenations of these splits.
      skipped: By split, the images that cannot be used and why.
      conditions: Result of `conditions`.
      by_order: Whether the dataset has no predefined splits.
      unannotated: Splits without published annotations.
      object_counts: By stored split, the number of objects of each record.
    """

    category_ids: tuple[int, ...]
    joined: Mapping[str, Sequence[str]]
    skipped: Mapping[str, Mapping[str, str]]
    conditions: Mapping[str, str]
    by_order: bool
    unannotated: tuple[str, ...]
    object_counts: Mapping[str, Sequence[int]]

    def to_json(self) -> dict[str, Any]:
        """The values of the file by its keys."""
        fields = self._asdict()
        lists = {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
        return fields | lists

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Metadata":
        """Parses the output of `to_json`."""
        fields = {name: content[name] for name in cls._fields}
        lists = {name: tuple(fields[name]) for name in ("category_ids", "unannotated")}
        return cls(**(fields | lists))

    def may_be_repaired(self) -> bool:
        """Whether images are lacking that could perhaps be used by now."""
        return any(self.skipped.values()) and self.conditions != conditions()

    def stored(self, split: str) -> Sequence[str]:
        """The stored splits that a split is made of."""
        return self.joined.get(split, [split])


def conditions() -> dict[str, str]:
    """Returns everything besides the files that decides which images can be used.

    Where some could not, and one of these has changed, they are tried again.
    """
    return {name: importlib.metadata.version(name) for name in _DECODERS}
