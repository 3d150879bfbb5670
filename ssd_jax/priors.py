"""Default boxes (priors) of SSD300, SSD512 and any other input size.

Everything here is NumPy and float64 until the last step: priors are constants of a model.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_TWO, _THREE = (2.0,), (2.0, 3.0)
_ASPECT_RATIOS = {  # by the number of maps
    6: (_TWO, _THREE, _THREE, _THREE, _TWO, _TWO),
    7: (_TWO, _THREE, _THREE, _THREE, _THREE, _TWO, _TWO),
}


class PriorSpec(NamedTuple):
    """What default boxes are made of; `default_boxes` makes them.

    Attributes:
      image_size: (height, width) of the network's input in pixels.
      feature_maps: (rows, columns) of each source map.
      steps: (vertical, horizontal) distance of neighbouring centres in pixels, for each map.
      min_sizes: Side of the small square box in pixels, for each map.
      max_sizes: The large square box of a map has side sqrt(min * max).
      aspect_ratios: For each map the ratios r > 1; each gives a box of ratio r and one of 1 / r.
      offset: Position of a centre in its cell, 0.5 is the middle.
    """

    image_size: tuple[int, int]
    feature_maps: tuple[tuple[int, int], ...]
    steps: tuple[tuple[float, float], ...]
    min_sizes: tuple[float, ...]
    max_sizes: tuple[float, ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    offset: float = 0.5

    @property
    def boxes_per_cell(self) -> tuple[int, ...]:
        """Number of priors in a cell of each map: 2 squares and 2 for each aspect ratio."""
        return tuple(2 + 2 * len(ratios) for ratios in self.aspect_ratios)

    @property
    def num_boxes(self) -> int:
        """P, the number of priors of all maps."""
        cells = (rows * columns for rows, columns in self.feature_maps)
        return sum(n * per_cell for n, per_cell in zip(cells, self.boxes_per_cell, strict=True))


def _published(
    side: int, maps: Sequence[int], steps: Sequence[int], sizes: Sequence[float]
) -> PriorSpec:
    return PriorSpec(
        image_size=(side, side),
        feature_maps=tuple((n, n) for n in maps),
        steps=tuple((step, step) for step in steps),
        min_sizes=tuple(sizes[:-1]),
        max_sizes=tuple(sizes[1:]),
        aspect_ratios=_ASPECT_RATIOS[len(maps)],
    )


_MAPS_300, _STEPS_300 = (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300)
_MAPS_512, _STEPS_512 = (64, 32, 16, 8, 4, 2, 1), (8, 16, 32, 64, 128, 256, 512)

# Liu et al. 2016, sections 2.2, 3.1 and 3.4; the pixel values are those of the authors' release.
SSD300_VOC = _published(300, _MAPS_300, _STEPS_300, (30, 60, 111, 162, 213, 264, 315))
SSD300_COCO = _published(300, _MAPS_300, _STEPS_300, (21, 45, 99, 153, 207, 261, 315))
SSD512_VOC = _published(
    512, _MAPS_512, _STEPS_512, (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6)
)
SSD512_COCO = _published(
    512, _MAPS_512, _STEPS_512, (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72)
)


def adapt(
    spec: PriorSpec, image_size: tuple[int, int], feature_maps: Sequence[tuple[int, int]]
) -> PriorSpec:
    """The same default boxes for another input size, non-square ones included.

    Sizes grow with the shorter side. As in the authors' release, a step that is not given is the
    input's side over the map's side; at the size and maps of `spec`, `spec` itself comes back.

    Args:
      spec: The published spec to start from.
      image_size: (height, width) in pixels.
      feature_maps: (rows, columns) of each source map, as many as `spec` has.

    Returns:
      The spec for that size.

    Raises:
      ValueError: If the number of maps differs from that of `spec`.
    """
    if len(feature_maps) != len(spec.feature_maps):
        raise ValueError(
            f"feature_maps has {len(feature_maps)} maps, the spec has {len(spec.feature_maps)}"
        )
    maps = tuple((int(rows), int(columns)) for rows, columns in feature_maps)
    if (tuple(image_size), maps) == (spec.image_size, spec.feature_maps):
        return spec
    height, width = image_size
    scale = min(height, width) / min(spec.image_size)
    return spec._replace(
        image_size=(height, width),
        feature_maps=maps,
        steps=tuple((height / rows, width / columns) for rows, columns in maps),
        min_sizes=tuple(size * scale for size in spec.min_sizes),
        max_sizes=tuple(size * scale for size in spec.max_sizes),
    )


def default_boxes(spec: PriorSpec, *, clip: bool = False, clip_sizes: bool = False) -> np.ndarray:
    """Makes the default boxes of all maps.

    Args:
      spec: What they are made of.
      clip: Clamp (cx, cy, w, h) to [0, 1], as amdegroot's and lufficc's SSD do and the authors'
        does not.
      clip_sizes: Clamp (w, h) alone, as torchvision's does.

    Returns:
      `[P, 4]` float32 (cx, cy, w, h) over the input's width and height; ordered by map, row, column
      and prior: 8732 for SSD300, 24564 for SSD512.

    Source: Liu et al. 2016, section 2.2, "Choosing scales and aspect ratios for default boxes".
    """
    levels = [_level(spec, index) for index in range(len(spec.feature_maps))]
    boxes = np.concatenate(levels).astype(np.float32)
    if clip_sizes:
        boxes[:, 2:] = np.clip(boxes[:, 2:], 0, 1)
    return np.clip(boxes, 0, 1) if clip else boxes


def _level(spec: PriorSpec, index: int) -> np.ndarray:
    """`[rows * columns * boxes_per_cell, 4]` priors of one map."""
    height, width = spec.image_size
    (rows, columns), (step_y, step_x) = spec.feature_maps[index], spec.steps[index]
    cy = (np.arange(rows) + spec.offset) * step_y / height
    cx = (np.arange(columns) + spec.offset) * step_x / width
    shapes = _cell_shapes(spec.min_sizes[index], spec.max_sizes[index], spec.aspect_ratios[index])
    boxes = np.empty((rows, columns, len(shapes), 4))
    boxes[..., 0] = cx[None, :, None]
    boxes[..., 1] = cy[:, None, None]
    boxes[..., 2:] = np.asarray(shapes) / (width, height)
    return boxes.reshape(-1, 4)


def _cell_shapes(
    min_size: float, max_size: float, ratios: Sequence[float]
) -> list[tuple[float, float]]:
    """(width, height) in pixels of the priors of a cell, in their order."""
    between = math.sqrt(min_size * max_size)
    wide_and_tall = (
        (min_size * math.sqrt(ratio), min_size / math.sqrt(ratio))
        for ratio in itertools.chain.from_iterable((r, 1 / r) for r in ratios)
    )
    return [(min_size, min_size), (between, between), *wide_and_tall]
