"""Default boxes (priors) of SSD300, SSD512, SSDLite and any other input size.

Everything here is NumPy and float64 until the last step: priors are constants of a model.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import numpy as np

_TWO, _THREE = (2.0,), (2.0, 3.0)
_ASPECT_RATIOS = {  # by the number of maps
    6: (_TWO, _THREE, _THREE, _THREE, _TWO, _TWO),
    7: (_TWO, _THREE, _THREE, _THREE, _THREE, _TWO, _TWO),
}


MOST_BOXES = 4_000_000  # of an input; SSD512 has 24,564


class PriorSpec(NamedTuple):
    """The parameters of a set of default boxes; `default_boxes` makes the boxes.

    Attributes:
      image_size: (height, width) of the network's input in pixels.
      feature_maps: (rows, columns) of each source map; a map that several scales share is repeated.
      steps: (vertical, horizontal) distance of neighboring centers in pixels, for each map.
      min_sizes: Side of the small square box in pixels, for each map.
      max_sizes: The large square box of a map has side sqrt(min * max).
      aspect_ratios: For each map the ratios r > 1; each gives a box of ratio r and one of 1 / r.
      offset: Position of a center in its cell; 0.5 is the middle.
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

# torchvision's SSDLite: ratios 2 and 3 on all maps, sizes of 0.2 to 0.95 of the side, evenly; the
# last large square is between 0.95 and 1.
_MAPS_320 = (20, 10, 5, 3, 2, 1)
SSDLITE320 = PriorSpec(
    image_size=(320, 320),
    feature_maps=tuple((n, n) for n in _MAPS_320),
    steps=tuple((320 / n, 320 / n) for n in _MAPS_320),
    min_sizes=(64, 112, 160, 208, 256, 304),
    max_sizes=(112, 160, 208, 256, 304, 320),
    aspect_ratios=(_THREE,) * 6,
)


def tiled(
    spec: PriorSpec,
    *,
    source_maps: Sequence[int] = (),
    aspect_ratios: Sequence[Sequence[float]] = (),
    prior_scales: Sequence[float] = (),
) -> PriorSpec:
    """The same spec with other maps, aspect ratios or sizes.

    A scale is a small square, a large one, and two boxes for each ratio. Scales are assigned to the
    maps in order, and several may share a map. Without `prior_scales`, as many scales as `spec` has
    keep its sizes; of another number the first and the last keep theirs, and those from the second
    on are evenly spaced.

    Args:
      spec: The published spec to start from.
      source_maps: For each scale, the smallest first, the index of its map, in ascending order;
        empty: one scale for each map.
      aspect_ratios: The ratios r > 1 of each scale, or one set for all; empty: those of `spec`.
      prior_scales: The side of each scale's small square over the input's shorter side, in
        ascending order; empty: the sizes of `spec`.

    Returns:
      The spec with one entry per scale; without arguments, `spec` itself.

    Raises:
      ValueError: If a map does not exist, or the numbers of scales differ.

    Source: Liu et al. 2016, section 3.1, tables 2 and 3.
    """
    last = len(spec.feature_maps) - 1
    chosen = tuple(source_maps) or tuple(range(last + 1))
    if not set(chosen) <= set(range(last + 1)):
        raise ValueError(f"source_maps is {chosen}; the maps have the numbers 0 to {last}")
    ratios = tuple(map(tuple, aspect_ratios)) or spec.aspect_ratios
    ratios = ratios * len(chosen) if len(ratios) == 1 else ratios
    if len(ratios) != len(chosen):
        raise ValueError(
            f"aspect_ratios has {len(ratios)} entries for {len(chosen)} scales; give one for each "
            f"scale, or one for all"
        )
    sizes = spec.min_sizes
    if prior_scales:
        if len(prior_scales) != len(chosen):
            raise ValueError(
                f"prior_scales has {len(prior_scales)} entries for {len(chosen)} scales; give one "
                f"for each scale, and their maps with source_maps"
            )
        sizes = tuple(scale * min(spec.image_size) for scale in prior_scales)
    elif len(chosen) != len(sizes):
        sizes = (sizes[0], *np.linspace(sizes[1], sizes[-1], len(chosen) - 1).tolist())
    return spec._replace(
        feature_maps=tuple(spec.feature_maps[number] for number in chosen),
        steps=tuple(spec.steps[number] for number in chosen),
        min_sizes=sizes,
        max_sizes=(*sizes[1:], max(sizes[-1], spec.max_sizes[-1])),
        aspect_ratios=ratios,
    )


def inside(priors_cxcywh: np.ndarray) -> np.ndarray:
    """`[P]` bool: which of `[P, 4]` default boxes lie inside the image."""
    chex.assert_shape(priors_cxcywh, (None, 4))
    center, size = np.split(np.asarray(priors_cxcywh, np.float64), 2, axis=-1)
    reach = np.abs(center - 0.5) + size / 2
    return np.all(reach <= 0.5 + 1e-6, axis=-1)


def adapt(
    spec: PriorSpec, image_size: tuple[int, int], feature_maps: Sequence[tuple[int, int]]
) -> PriorSpec:
    """The same default boxes for another input size, non-square ones included.

    Sizes scale with the shorter side. As in the authors' release, a step is the input's side over
    the map's side; at the size and maps of `spec`, the result is `spec` itself.

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


def at_size(
    spec: PriorSpec,
    image_size: tuple[int, int],
    feature_maps: Sequence[tuple[int, int]],
    strides: Sequence[float],
) -> PriorSpec:
    """The default boxes of a trained network on an input of another size.

    A trained network predicts in pixels: its boxes keep their sizes, and their distance where that
    is the network's stride. Where it is not, as on SSD300's last two maps, they are spread over the
    input's sides. `adapt` is for a network that is still to be trained.

    Args:
      spec: The spec at the size that the network was trained at.
      image_size: (height, width) in pixels of the other input.
      feature_maps: (rows, columns) of each source map there.
      strides: Pixels from a cell of each map to the next, by the network's layers.

    Returns:
      The spec for that size; at its own size and maps, `spec` itself.
    """
    maps = tuple((int(rows), int(columns)) for rows, columns in feature_maps)
    if (tuple(image_size), maps) == (spec.image_size, spec.feature_maps):
        return spec
    height, width = image_size
    steps = tuple(
        (
            step_y if step_y == stride else height / rows,
            step_x if step_x == stride else width / columns,
        )
        for (step_y, step_x), stride, (rows, columns) in zip(spec.steps, strides, maps, strict=True)
    )
    return spec._replace(image_size=(height, width), feature_maps=maps, steps=steps)


def check_number(spec: PriorSpec) -> None:
    """Bounds the default boxes, so that their spec can't make them fill the memory.

    Raises:
      ValueError: If there are more than `MOST_BOXES`.
    """
    if spec.num_boxes > MOST_BOXES:
        raise ValueError(
            f"an input of {spec.image_size} has {spec.num_boxes:,} default boxes; "
            f"there may be {MOST_BOXES:,}"
        )


def default_boxes(spec: PriorSpec, *, clip: bool = False, clip_sizes: bool = False) -> np.ndarray:
    """Makes the default boxes of all maps.

    Args:
      spec: The parameters of the boxes.
      clip: Clamp (cx, cy, w, h) to [0, 1], as amdegroot's and lufficc's SSD do, unlike the
        authors'.
      clip_sizes: Clamp (w, h) only, as torchvision's SSD does.

    Returns:
      `[P, 4]` float32 (cx, cy, w, h) over the input's width and height; ordered by map, row, column
      and prior: 8732 for SSD300, 24564 for SSD512.

    Raises:
      ValueError: See `check_number`.

    Source: Liu et al. 2016, section 2.2, "Choosing scales and aspect ratios for default boxes".
    """
    check_number(spec)
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
