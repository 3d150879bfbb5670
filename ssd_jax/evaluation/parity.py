"""How close the detections of an exported model are to those of the detector in JAX."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ssd_jax.detection import Detections

_NEAR = 1e-4  # detections whose scores differ by less may change places
_SAME = 0.01  # detections with larger differences in box or score are different


class Difference(NamedTuple):
    """Differences between the detections of two detectors in the same images.

    Attributes:
      boxes: Largest difference of a coordinate, as a share of the image's width or height.
      scores: Largest difference of a score.
      alone: Detections of either that the other does not have.
      detections: How many were compared.
    """

    boxes: float = 0.0
    scores: float = 0.0
    alone: int = 0
    detections: int = 0

    def __add__(self, other: Any) -> "Difference":
        """The difference over the images of both."""
        return Difference(
            max(self.boxes, other.boxes),
            max(self.scores, other.scores),
            self.alone + other.alone,
            self.detections + other.detections,
        )


def difference(ours: Detections, theirs: Detections) -> Difference:
    """Compares `[D]` detections in one image, boxes in [0, 1], as NumPy arrays.

    Each is compared with the nearest of the other's that has its label: equal scores may have
    changed places. Where all D rows are used, the last ones may have been cut off in either.
    """
    near = _partners(ours, theirs)
    alone = near.alone + _partners(theirs, ours).alone
    return near._replace(alone=alone)


def _partners(ours: Detections, theirs: Detections) -> Difference:
    boxes = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(axis=-1)
    scores = np.abs(ours.scores[:, None] - theirs.scores[None])
    apart = np.where(ours.labels[:, None] == theirs.labels, np.maximum(boxes, scores), np.inf)
    rows, nearest = np.arange(len(apart)), apart.argmin(axis=1)
    last = min(ours.scores[-1], theirs.scores[-1]) + _NEAR  # of scores; _NEAR if some are unused
    used = ours.scores > (last if last > _NEAR else 0)
    found = used & (apart[rows, nearest] < _SAME)
    pairs = rows[found], nearest[found]
    return Difference(
        float(boxes[pairs].max(initial=0)),
        float(scores[pairs].max(initial=0)),
        int(np.sum(used & ~found)),
        int(np.sum(used)),
    )


def compare(ours: Mapping[int, Detections], theirs: Iterable[tuple[int, Detections]]) -> Difference:
    """Compares detections by image index, as returned by `Detector.predict_batches`."""
    return sum((difference(ours[index], found) for index, found in theirs), Difference())
