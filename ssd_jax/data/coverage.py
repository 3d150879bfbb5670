"""How large objects are, and how well default boxes cover them; pure functions of NumPy arrays."""

from collections.abc import Iterable

import numpy as np

SIZES = ("small", "medium", "large")
COVERED = 0.5  # IoU from which a prior matches

_BOUNDS = (32**2, 96**2)  # pixels of area between COCO's sizes; here the area is that of the box


def size_of(areas: np.ndarray) -> np.ndarray:
    """`[N]` index into `SIZES` of areas in pixels: COCO's, with its bounds 32^2 and 96^2."""
    return np.searchsorted(_BOUNDS, areas, side="right")


def best_iou(boxes: np.ndarray, priors_cxcywh: np.ndarray) -> np.ndarray:
    """The IoU of each box with the prior that fits it best.

    Of priors of one size whose centers are a full grid, the nearest fits best: it shares the most
    with the box along both sides. So a few priors are compared with a box, not thousands.

    Args:
      boxes: `[N, 4]` xyxy, normalized.
      priors_cxcywh: `[P, 4]`, normalized.

    Returns:
      `[N]` float32.
    """
    best = np.zeros(len(boxes), np.float32)
    sizes, member = np.unique(priors_cxcywh[:, 2:], axis=0, return_inverse=True)
    by_size = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    for size, rows in zip(sizes, by_size, strict=True):
        for centers in _nearest_centers(boxes, priors_cxcywh[rows, :2]):
            best = np.maximum(best, _iou_with(boxes, centers - size / 2, centers + size / 2))
    return best


def _nearest_centers(boxes: np.ndarray, centers: np.ndarray) -> Iterable[np.ndarray]:
    """`[N, 2]` or `[2]` centers to compare: the nearest of a full grid, else each of them."""
    axes = np.unique(centers[:, 0]), np.unique(centers[:, 1])
    if len(axes[0]) * len(axes[1]) != len(np.unique(centers, axis=0)):
        yield from centers
        return
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    yield np.stack([_nearest(middles[:, k], axes[k]) for k in range(2)], axis=1)


def _nearest(values: np.ndarray, sorted_points: np.ndarray) -> np.ndarray:
    """For each value the point that is closest."""
    above = np.searchsorted(sorted_points, values).clip(0, len(sorted_points) - 1)
    below = np.maximum(above - 1, 0)
    nearer_below = values - sorted_points[below] < sorted_points[above] - values
    return np.where(nearer_below, sorted_points[below], sorted_points[above])


def _iou_with(boxes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`[N]` IoU of boxes with boxes of these corners, `[N, 2]` or `[2]`."""
    shared = np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)
    intersection = np.prod(np.maximum(shared, 0), axis=-1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) + np.prod(high - low, axis=-1)
    return intersection / (areas - intersection)
