"""Recognizes the layout of a file by the names of its arrays, and its missing entries."""

import collections
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ssd_jax import errors
from ssd_jax.models import mobilenet_v3, ssd
from ssd_jax.weights import layouts

# Parts of names that torch adds when a module is compiled, sharded or checkpointed.
_INSERTED = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Prefixes of an average of the weights, which is what its makers evaluate, and of moments.
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|averaged?)([^a-z]|$)")
_MOMENTS = re.compile(r"(^|[^a-z])(optim\w*|exp_avg\w*|moment\w*|grads?|gradients?)([^a-z]|$)")
_WRAPPERS = re.compile(r"((model|net|network|state_dict|model_state_dict|module|detector)\.)*")
_OF_AVERAGE, _OF_WEIGHTS, _OF_OTHERS = range(3)  # kinds of prefixes
_MOST_PREFIXES, _MOST_COMPLETE = 200, 8  # of one layout, that are checked
_DEEPEST = 12  # parts of an entry's name
_STAGE = re.compile(r"[a-z]*\d*")
_KERAS_OPTIMIZER = re.compile(r"optimizer(_weights)?/")  # holds moments by the layers' names
_KERAS_LAYER = re.compile(r"(?:^|/)(block\d_conv\d|fc[12]|predictions)/")


class _Candidate(NamedTuple):
    """A candidate layout for the names of a file.

    Attributes:
      layout: The layout.
      prefix: Stands before all its entries in the file.
      named: The file's name of each name under the prefix, without it.
      faults: Missing entries of its backbone, and others in their place.
    """

    layout: layouts.Layout
    prefix: str
    named: dict[str, str]
    faults: int

    def rank(self) -> tuple[int, int, int]:
        """The less, the better: whole, then rather a detector, then the prefix."""
        entries = sum(name in self.named for name in self.layout.entries)
        return self.faults, -entries, self.kind()

    def kind(self) -> int:
        """Kind of the prefix: an average of the weights, the weights themselves, or others."""
        if _AVERAGE.search(self.prefix.lower()):
            return _OF_AVERAGE
        return _OF_WEIGHTS if _WRAPPERS.fullmatch(self.prefix) else _OF_OTHERS


def recognize(
    path: Path, arrays: Mapping[str, np.ndarray]
) -> tuple[layouts.Layout, dict[str, str]]:
    """Whose names these are.

    All entries of a layout may have a common prefix, of containers and wrappers, whatever it is.
    Where several are whole, the average of a model's weights is taken, then what has a usual name
    such as `model.`; the layout's title mentions it. Optimizer moments are never accepted.

    Args:
      path: The file, for messages.
      arrays: Its arrays, by name.

    Returns:
      The layout, and the file's name of each entry by the name that the layout has for it.

    Raises:
      UserError: If two arrays are one entry of the layout, or two networks as good as each other.
    """
    plain = by_entry(
        path,
        (
            (_plain(name, array), name)
            for name, array in arrays.items()
            if not _KERAS_OPTIMIZER.match(name)
        ),
    )
    found = [candidate for layout in layouts.LAYOUTS for candidate in _candidates(layout, plain)]
    if not found:
        return layouts.OURS, {name: name for name in arrays}
    best = min(found, key=_Candidate.rank)
    layout = _as_far_as_it_fits(best.layout, best.named, arrays)
    others = [
        other
        for other in found
        if other.layout is best.layout and other is not best and best.faults == other.faults == 0
    ]
    for other in others:
        if best.kind() == other.kind() == _OF_OTHERS and not _same(best, other, arrays):
            by_entry(path, (*best.named.items(), *other.named.items()))
    if others:
        rest = ", ".join(repr(other.prefix[:80]) for other in others)
        title = f"{layout.title} under {best.prefix[:80]!r} ({rest} is whole too)"
        layout = layout._replace(title=title)
    return layout, best.named


def _same(one: _Candidate, other: _Candidate, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether two candidates have the same numbers: the same network twice."""
    return all(
        name in other.named and np.array_equal(arrays[own], arrays[other.named[name]])
        for name, own in one.named.items()
        if name in one.layout.entries
    )


def _candidates(layout: layouts.Layout, plain: Mapping[str, str]) -> Iterator[_Candidate]:
    """Prefixes under which a file contains most of a layout's backbone."""
    # `layer1.0.conv1.weight` is no `conv1.weight` under a prefix.
    mark = layout.mark
    longer = tuple(name for name in layout.entries if name.endswith(mark) and name != mark)
    prefixes = {
        name.removesuffix(mark)
        for name in plain
        if name.endswith(mark) and not name.endswith(longer)
    } - {f"{name}/" for name in ssd.BACKBONES}  # with these they are our own names
    likely = [prefix for prefix in prefixes if not _MOMENTS.search(prefix.lower())]
    likely = sorted(likely, key=lambda prefix: (len(prefix), prefix))[:_MOST_PREFIXES]
    backbone = [name for name, ours in layout.entries.items() if _in_backbone(layout, ours)]
    lacks = {prefix: sum(prefix + name not in plain for name in backbone) for prefix in likely}
    fewest = min(lacks.values(), default=0)
    for prefix in [prefix for prefix in lacks if lacks[prefix] == fewest][:_MOST_COMPLETE]:
        named = {
            name.removeprefix(prefix): own for name, own in plain.items() if name.startswith(prefix)
        }
        yield _Candidate(layout, prefix, named, fewest + len(strange(layout, named)))


def nearest(names: Collection[str]) -> str:
    """Describes the most similar layout and its first missing entry.

    Args:
      names: Names of all arrays of an unknown file.
    """
    shares: dict[tuple[int, str], float] = collections.defaultdict(float)
    for name in names:
        ends = [0, *(match.end() for match in re.finditer("[./]", name))][-_DEEPEST:]
        for end in ends:
            for number in _layouts_with(name[end:]):
                shares[number, name[:end]] += 1 / len(layouts.LAYOUTS[number].entries)
    if not shares:
        return "no layout that is known has any of its names"
    number, prefix = max(shares, key=lambda pair: shares[pair])
    layout, there = layouts.LAYOUTS[number], {*names}
    lacking = next((name for name in layout.entries if prefix + name not in there), layout.mark)
    return f"it comes nearest to {layout.title}, of which it has no {prefix[:80]}{lacking}"


@functools.cache
def _by_entry() -> dict[str, list[int]]:
    """Numbers of the layouts that have an entry."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for number, layout in enumerate(layouts.LAYOUTS):
        for name in layout.entries:
            found[name].append(number)
    return dict(found)


def _layouts_with(entry: str) -> list[int]:
    return _by_entry().get(entry, [])


def is_number(array: np.ndarray) -> bool:
    """Whether an array is of truth values, integers or floats, bfloat16 among them."""
    return array.dtype.kind in "biuf" or array.dtype == ml_dtypes.bfloat16


def by_entry(path: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The file's name of each entry, from pairs of an entry and a name.

    Raises:
      UserError: If an entry has two names.
    """
    named: dict[str, str] = {}
    for entry, name in pairs:
        if entry in named:
            raise errors.UserError(
                f"{path}: {named[entry]} and {name} are both {entry}; give a file that has one of "
                "them"
            )
        named[entry] = name
    return named


def missing(layout: layouts.Layout, names: Collection[str]) -> list[str]:
    """The entries of a layout's backbone that are not among the names of a file."""
    return [
        name
        for name, ours in layout.entries.items()
        if _in_backbone(layout, ours) and name not in names
    ]


def strange(layout: layouts.Layout, names: Collection[str]) -> list[str]:
    """Names of a file within the backbone of a layout that are not among its entries.

    A deeper network of the same family has such: it would be loaded in part.
    """
    stages = {_stage(name) for name, ours in layout.entries.items() if _in_backbone(layout, ours)}
    known = {*layout.entries, *layout.unused}
    return [
        name
        for name in names
        if _stage(name) in stages and name not in known and not is_counter(name)
    ]


def is_counter(name: str) -> bool:
    """Whether an entry only counts BatchNorm's steps of training."""
    return name.endswith(layouts.COUNTER)


def _in_backbone(layout: layouts.Layout, ours: str) -> bool:
    return ours.rpartition("/")[0] in layouts.BACKBONES[layout.backbone].layers


def _stage(name: str) -> str:
    """`layer2` of `layer2.0.conv1.weight`, `conv3` of `conv3_1/0`, `features`, `backbone`."""
    return _STAGE.match(name)[0]  # type: ignore[index]


def _plain(name: str, array: np.ndarray) -> str:
    """Keras' `fc1/fc1/kernel:0`, `fc1/fc1_W_1:0` and `layers/fc1/vars/0` end in one name."""
    if layer := _KERAS_LAYER.search(name):
        return f"{name[: layer.start(1)]}{layer[1]}/{'bias' if array.ndim == 1 else 'kernel'}"
    return _INSERTED.sub("", name)


def _as_far_as_it_fits(
    layout: layouts.Layout, named: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> layouts.Layout:
    """Whether names differ in numbers and shapes only.

    Of torchvision's two VGG-16s one has no classifier, or only NaN. Its MobileNetV3 is wider at
    the end than the one in its SSDLite.
    """
    if layout is layouts.TORCHVISION["vgg16"]:
        name = named.get("classifier.0.bias")
        array = arrays[name] if name is not None else np.array(np.nan)
        there = is_number(array) and np.isfinite(array).all()
        return layout if there else layouts.TORCHVISION_FEATURES
    if layout is layouts.MOBILENET_V3:
        name = named.get(layouts.LAST_NORM)
        wide = name is not None and arrays[name].size > mobilenet_v3.LAST
        return layouts.MOBILENET_V3_WIDE if wide else layout
    return layout
