"""Transfers a detector to other classes and keeps the heads of shared ones."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from ssd_jax.weights import loading

_PREDICTOR = re.compile(r"conf\d+/(kernel|bias)")  # the layer of a head that gives logits

# VOC and COCO call these by two names.
_SYNONYMS = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}


class Classes(NamedTuple):
    """The classes of the logits of a detector.

    Attributes:
      names: Names of label 1, 2, ...
      unused_logits: Logits of no class, counted from 1, see `ModelConfig.unused_logits`.
    """

    names: Sequence[str]
    unused_logits: Sequence[int] = ()

    def logits(self) -> dict[str, int]:
        """Index of the logit of each name; 0 is the background."""
        used = [k for k in range(1, self.total()) if k not in self.unused_logits]
        return dict(zip(map(_plain, self.names), used, strict=True))

    def total(self) -> int:
        """Logits of a prior, with the background and the unused_logits."""
        return 1 + len(self.names) + len(self.unused_logits)


def with_classes(
    weights: loading.Weights, params: Any, *, theirs: Classes, ours: Classes, share: bool
) -> tuple[loading.Weights, tuple[str, ...]]:
    """Converts the conf heads of weights to other classes.

    Classes that both have by name, and the background, keep their kernels and biases; all others
    take those of `params`. Synonyms of VOC and COCO count as the same class. A head that differs
    from that of `params` in more than its classes is left unchanged, for `loading.fit` to reject.

    Args:
      weights: Weights of a detector with the classes `theirs`.
      params: Initial parameters of the network with the classes `ours`.
      theirs: Classes of `weights`.
      ours: Classes of `params`.
      share: Whether shared classes are kept; else all conf heads are freshly initialized.

    Returns:
      The weights, and the names of our classes that were kept.
    """
    if (tuple(theirs.names), tuple(theirs.unused_logits)) == (
        tuple(ours.names),
        tuple(ours.unused_logits),
    ):
        return weights, tuple(ours.names)
    here, there = ours.logits(), theirs.logits()
    shared = [name for name in here if name in there] if share else []
    rows = [(0, 0), *((here[name], there[name]) for name in shared)]
    fresh = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {
        path: _replaced(array, fresh[path], rows, theirs.total())
        if _PREDICTOR.fullmatch(path)
        and path in fresh
        and _boxes(array, theirs) == _boxes(fresh[path], ours)
        else array
        for path, array in weights.arrays.items()
        if share or not _PREDICTOR.fullmatch(path)
    }
    kept = tuple(name for name in ours.names if _plain(name) in shared)
    return _without(weights, arrays), kept


def _boxes(array: Any, classes: Classes) -> tuple[int, ...]:
    """Reshapes the channels of a conf head to boxes and logits."""
    *shape, channels = array.shape
    return *shape, *divmod(channels, classes.total())


def _replaced(
    theirs: np.ndarray, ours: Any, rows: Sequence[tuple[int, int]], logits: int
) -> np.ndarray:
    """`[..., boxes * logits]` of ours, with the rows of some classes from theirs."""
    boxes = theirs.shape[-1] // logits
    split = np.array(ours).reshape(*ours.shape[:-1], boxes, -1)
    source = theirs.reshape(*theirs.shape[:-1], boxes, -1)
    here, there = map(list, zip(*rows, strict=True))
    split[..., here] = source[..., there]
    return split.reshape(ours.shape)


def _without(weights: loading.Weights, arrays: Mapping[str, np.ndarray]) -> loading.Weights:
    """Returns weights with these arrays; removed ones count as ignored."""
    dropped = {
        weights.names[path]: array.shape
        for path, array in weights.arrays.items()
        if path not in arrays
    }
    return weights._replace(arrays=dict(arrays), ignored={**weights.ignored, **dropped})


def _plain(name: str) -> str:
    return _SYNONYMS.get(name, name)
