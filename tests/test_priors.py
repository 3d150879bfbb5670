import math

import numpy as np
import pytest
import reference

from ssd_jax import models, priors
from ssd_jax.models import ssd

SPECS = {
    "voc300": priors.SSD300_VOC,
    "coco300": priors.SSD300_COCO,
    "voc512": priors.SSD512_VOC,
    "coco512": priors.SSD512_COCO,
}
# The tables of the authors' release: side, maps, steps, sizes in pixels (the last is the last max).
MAPS_300, STEPS_300 = (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300)
MAPS_512, STEPS_512 = (64, 32, 16, 8, 4, 2, 1), (8, 16, 32, 64, 128, 256, 512)
PUBLISHED = {
    "voc300": (300, MAPS_300, STEPS_300, (30, 60, 111, 162, 213, 264, 315)),
    "coco300": (300, MAPS_300, STEPS_300, (21, 45, 99, 153, 207, 261, 315)),
    "voc512": (512, MAPS_512, STEPS_512, (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6)),
    "coco512": (
        512,
        MAPS_512,
        STEPS_512,
        (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
    ),
}
RATIOS = {
    300: [(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)],
    512: [(2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)],
}


@pytest.mark.parametrize("name", SPECS)
def test_priors_equal_the_reference_with_the_published_sizes(name):
    side, *tables = PUBLISHED[name]
    expected = reference.default_boxes(side, *tables, RATIOS[side])
    np.testing.assert_allclose(priors.default_boxes(SPECS[name]), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("spec", "per_map"),
    [
        # cells x cells x priors per cell
        (priors.SSD300_VOC, [5776, 2166, 600, 150, 36, 4]),
        (priors.SSD512_VOC, [16384, 6144, 1536, 384, 96, 16, 4]),
    ],
)
def test_counts_of_each_map(spec, per_map):
    cells = [rows * columns for rows, columns in spec.feature_maps]
    got = [n * per_cell for n, per_cell in zip(cells, spec.boxes_per_cell, strict=True)]
    assert got == per_map


@pytest.mark.parametrize(("name", "count"), [("voc300", 8732), ("coco512", 24564)])
def test_number_of_priors_is_the_papers(name, count):
    assert SPECS[name].num_boxes == count
    boxes = priors.default_boxes(SPECS[name])
    assert boxes.shape == (count, 4)
    assert boxes.dtype == np.float32


def test_first_and_last_boxes_of_voc_300_by_hand():
    boxes = priors.default_boxes(priors.SSD300_VOC) * 300
    between, last = math.sqrt(30 * 60), math.sqrt(264 * 315)
    root = math.sqrt(2)
    np.testing.assert_allclose(
        boxes[:5],
        [
            (4, 4, 30, 30),
            (4, 4, between, between),
            (4, 4, 30 * root, 30 / root),
            (4, 4, 30 / root, 30 * root),
            (12, 4, 30, 30),  # the next column, not the next row
        ],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        boxes[-4:],
        [
            (150, 150, 264, 264),
            (150, 150, last, last),
            (150, 150, 264 * root, 264 / root),
            (150, 150, 264 / root, 264 * root),
        ],
        rtol=1e-6,
    )


def test_clip_changes_134_priors_of_voc_300():
    free, clipped = (priors.default_boxes(priors.SSD300_VOC, clip=clip) for clip in (False, True))
    assert np.any(free != clipped, axis=1).sum() == 134
    np.testing.assert_array_equal(clipped, np.clip(free, 0, 1))


def test_published_size_gives_the_published_spec():
    for sizes, side in (("voc", 300), ("coco", 300), ("voc", 512), ("coco", 512)):
        model = models.SSD(num_classes=3, prior_sizes=sizes)
        spec = ssd.prior_spec(model, (side, side))
        assert spec == SPECS[f"{sizes}{side}"]


@pytest.mark.parametrize(
    ("size", "maps"),
    [
        # Halves rounded up four times (conv4_3 after three), stride 2 three times, twice less 2.
        ((320, 320), [(40, 40), (20, 20), (10, 10), (5, 5), (3, 3), (1, 1)]),
        ((400, 400), [(50, 50), (25, 25), (13, 13), (7, 7), (5, 5), (3, 3)]),
        ((300, 500), [(38, 63), (19, 32), (10, 16), (5, 8), (3, 6), (1, 4)]),
    ],
)
def test_other_sizes_take_their_maps_from_the_model(size, maps):
    model = models.SSD(num_classes=3)
    spec = ssd.prior_spec(model, size)
    assert list(spec.feature_maps) == maps
    boxes = ssd.default_boxes(model, size)
    assert len(boxes) == spec.num_boxes
    assert (boxes[:, :2] > 0).all()
    assert (boxes[:, :2] < 1).all()


def test_priors_of_a_non_square_input_are_square_in_pixels():
    model = models.SSD(num_classes=3)
    boxes = ssd.default_boxes(model, (300, 500)) * (500, 300, 500, 300)
    # The first of a cell: the shorter side is the published one, so 30 x 30 pixels.
    np.testing.assert_allclose(boxes[0, 2:], (30, 30), rtol=1e-6)
    # Centers are evenly spread over the input's sides: 63 columns, 38 rows.
    np.testing.assert_allclose(boxes[0, :2], (500 / 63 / 2, 300 / 38 / 2), rtol=1e-6)
    np.testing.assert_allclose(boxes[4, :2], (500 / 63 * 1.5, 300 / 38 / 2), rtol=1e-6)
    np.testing.assert_allclose(boxes[63 * 4, :2], (500 / 63 / 2, 300 / 38 * 1.5), rtol=1e-6)


def test_sizes_grow_with_the_shorter_side():
    spec = ssd.prior_spec(models.SSD(num_classes=3), (450, 400))
    np.testing.assert_allclose(spec.min_sizes, np.multiply(priors.SSD300_VOC.min_sizes, 4 / 3))


def test_another_number_of_maps_is_refused():
    with pytest.raises(ValueError, match="5 maps, the spec has 6"):
        priors.adapt(priors.SSD300_VOC, (300, 300), [(1, 1)] * 5)


@pytest.mark.parametrize("maps", [(), (0, 0, 1, 2, 3, 4, 5)])
def test_scales_of_ones_own(maps):
    scales = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)[: len(maps) or 6]
    spec = priors.tiled(
        priors.SSDLITE320, source_maps=maps, aspect_ratios=((2.0, 3.0),), prior_scales=scales
    )
    sides = [20, 20, 10, 5, 3, 2, 1] if maps else [20, 10, 5, 3, 2, 1]
    expected = reference.default_boxes(
        320,
        sides,
        [320 / side for side in sides],
        [320 * scale for scale in scales] + [320],
        [(2, 3)] * len(sides),
    )
    np.testing.assert_allclose(priors.default_boxes(spec), expected, atol=1e-6)


def test_scales_of_ones_own_follow_the_input():
    model = models.SSD(num_classes=2, backbone="mobilenet_v2", width=0.125, prior_scales=(0.1,) * 6)
    spec = ssd.prior_spec(model, (160, 240))
    assert spec.min_sizes == pytest.approx((16,) * 6)
    assert len(ssd.default_boxes(model, (160, 240))) == spec.num_boxes
