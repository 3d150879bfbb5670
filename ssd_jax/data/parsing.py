"""JSON and YAML of strangers, read within bounds; and their values, made short for messages."""

import itertools
import json
import reprlib
from collections.abc import Callable
from typing import Any

import yaml

from ssd_jax import errors

MOST_YAML_BYTES = 1 << 20
MOST_YAML_VALUES = (
    100_000  # counted each time that an alias repeats them; the classes of LVIS: 2,406
)
MOST_JSON_BYTES = 8 << 30  # COCO's own is 0.45 GB, that of Objects365 some GB

_LONGEST_NUMBER = 100  # digits; PyYAML's time for one grows with their square
_LONGEST_SHOWN = 200  # characters
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as quick
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict, _BRIEF.maxtuple = 2, 4, 4, 4
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80


def shown(value: object) -> str:
    """A value of a file as a message shows it: as `repr` does, but short whatever it is."""
    try:
        return cut(_BRIEF.repr(value))
    except (ValueError, RecursionError):  # a number of more digits than Python prints, ...
        return f"a {type(value).__name__}"


def cut(text: object) -> str:
    """Shortens a text of a file for a message."""
    line = str(text)
    return line if len(line) <= _LONGEST_SHOWN else f"{line[: _LONGEST_SHOWN - 3]}..."


def json_content(data: bytes, name: str, hook: Callable[[dict[str, Any]], Any]) -> Any:
    """The content of a JSON file.

    Args:
      data: The whole file.
      name: Name of the file for messages.
      hook: Converts each object.

    Raises:
      UserError: If it is not JSON.
    """
    head = data[:4096].removeprefix(_BOM).lstrip(_BLANK)
    if not head.startswith((b"{", b"[")):  # before as much memory again is spent on it
        raise errors.UserError(
            f"{name}: not JSON (begins with {shown(head[:20])}); fetch or export it again"
        )
    try:
        return json.loads(data.decode("utf-8-sig"), object_hook=hook)
    except (ValueError, RecursionError) as error:
        reason = cut(error)
        raise errors.UserError(f"{name}: not JSON ({reason}); fetch or export it again") from error


def yaml_content(text: str, name: str) -> Any:
    """The content of a YAML file.

    Args:
      text: The whole file.
      name: Name of the file for messages.

    Raises:
      UserError: If it is not YAML, or its aliases expand to too much.
    """
    try:
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            _unfolded(node, {}, name)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (errors.UserError, MemoryError):
        raise
    except Exception as error:  # an impossible date is a ValueError, deep nesting a RecursionError
        reason = cut(" ".join(str(error).split()))
        raise errors.UserError(f"{name}: not YAML ({reason})") from error


def _unfolded(node: Any, known: dict[int, int | None], name: str) -> int:
    """How many values a node is once each alias is written out; `known` keeps those of nodes."""
    if isinstance(node, yaml.ScalarNode):
        if not node.tag.endswith(":str") and len(node.value) > _LONGEST_NUMBER:
            raise errors.UserError(f"{name}: not YAML ({cut(node.value)} is no number)")
        return 1
    if node is None:
        return 0
    if id(node) not in known:
        known[id(node)] = None
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = itertools.chain.from_iterable(children)
        known[id(node)] = 1 + sum(_unfolded(child, known, name) for child in children)
    count = known[id(node)]
    if count is None or count > MOST_YAML_VALUES:
        raise errors.UserError(
            f"{name}: its aliases unfold to more than {MOST_YAML_VALUES} values, or to themselves; "
            "write the names without aliases"
        )
    return count
