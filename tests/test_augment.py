import colorsys
import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.stats

from ssd_jax import augment, resampling

OPTIONS = ("size", "policy", "channel_shuffle", "interpolations", "mean")
RESIZE = jax.jit(augment.resize, static_argnames="size")
AUGMENT = jax.jit(augment.augment, static_argnames=OPTIONS)
WARP = jax.jit(resampling.warp, static_argnames=("size", "interpolation"))
PHOTOMETRIC = jax.jit(augment.photometric, static_argnames="channel_shuffle")
DRAWS = 20_000
OBJECTS = np.float32([[0.1, 0.2, 0.45, 0.6], [0.5, 0.5, 0.95, 0.9], [0.6, 0.05, 0.7, 0.2]])


def make_image(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    """An image without hard edges, in which a shift of a tenth of a pixel is small."""
    y, x = np.mgrid[:height, :width] / 9.0
    waves = [np.sin(x + y / 2), np.cos(x / 2 - y), np.sin(x / 3) * np.cos(y / 2)]
    return np.uint8(127 + 100 * np.stack(waves, -1))


def lit_discs(height, width):
    """An image as a photograph is one: colored things with edges and shades, and some noise."""
    rng = np.random.default_rng(17)
    y, x = np.mgrid[:height, :width]
    image = np.stack([90 + 80 * y / height, 110 + 60 * x / width, 150 - 70 * y / height], -1)
    for _ in range(12):
        center, radius = rng.uniform(0, (height, width)), rng.uniform(8, 30)
        distance = np.hypot(y - center[0], x - center[1])
        shade = rng.uniform(30, 255, 3) * (1 - 0.5 * distance / radius)[..., None]
        image = np.where(distance[..., None] < radius, shade, image)
    return np.uint8(np.clip(image + rng.normal(0, 3, image.shape), 0, 255))


def on_canvas(image, height, width, fill=0):
    canvas = np.full((height, width, 3), fill, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
def _drawn(key, boxes, labels):
    """What the samplers propose for a key, and which crop is sampled."""
    return augment.propose_crops(key, boxes, labels), augment.sample_crop(key, boxes, labels)


def drawn(keys, boxes, labels):
    """Proposals and samples of many keys, a thousand at a time: compiled once for all tests."""
    chunks = [keys[start : start + 1000] for start in range(0, len(keys), 1000)]
    parts = [jax.device_get(_drawn(chunk, boxes, labels)) for chunk in chunks]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def flips_of(keys):
    """Whether each key flips: the box in the left half has moved to the right."""
    box = jnp.array([[0, 0, 0.25, 1]])
    flipped = functools.partial(augment.augment, size=1, policy="flip")
    canvas, valid_size = jnp.zeros((2, 2, 3), jnp.uint8), jnp.array([2, 2])
    rows = jax.jit(jax.vmap(flipped, in_axes=(0, None, None, None, None)))(
        keys, canvas, valid_size, box, jnp.array([1])
    )
    return np.asarray(rows.boxes[:, 0, 0] == 0.75)


KEYS = keys_of(3, 1000)


@functools.cache
def a_key(flip):
    return KEYS[int(np.flatnonzero(flips_of(KEYS) == flip)[0])]


def test_normalize_subtracts_the_mean_and_scales_nothing():
    pixels = np.uint8([[[0, 117, 255]]])
    np.testing.assert_array_equal(augment.normalize(pixels), [[[-123, 0, 151]]])
    other = augment.normalize(pixels[None], mean=(1, 2, 5))
    np.testing.assert_array_equal(other, [[[[-1, 115, 250]]]])


# --- Resize and flip ---


@pytest.mark.parametrize(
    ("valid_size", "size"),
    [((7, 9), (5, 6)), ((7, 9), (20, 13)), ((12, 4), (8, 8)), ((1, 1), (3, 3)), ((9, 1), (4, 4))],
)
def test_resize_equals_the_reference(valid_size, size):
    image = make_image(0, *valid_size)
    got = RESIZE(on_canvas(image, 12, 10), jnp.array(valid_size), size=size)
    expected = reference.resize(image.astype(np.float64), *size)
    np.testing.assert_allclose(got, expected, atol=1e-3)  # float32 at 255


def test_resize_plain_jit_and_vmap_agree():
    images = np.stack([on_canvas(make_image(seed, 6, 8 - seed), 8, 8) for seed in range(3)])
    valid_sizes = jnp.array([(6, 8), (6, 7), (6, 6)])
    resize = functools.partial(augment.resize, size=(5, 7))
    batched = jax.vmap(resize)(images, valid_sizes)
    for row in range(3):
        for function in (resize, functools.partial(RESIZE, size=(5, 7))):
            np.testing.assert_allclose(
                function(images[row], valid_sizes[row]), batched[row], atol=1e-3
            )


def test_resize_to_its_own_size_changes_nothing():
    image = make_image(1, 9, 9)
    np.testing.assert_array_equal(
        RESIZE(on_canvas(image, 12, 11), jnp.array([9, 9]), size=9), image
    )


def test_size_may_be_a_side_or_height_and_width():
    image, valid_size = make_image(2, 8, 8), jnp.array([8, 8])
    assert RESIZE(image, valid_size, size=(4, 6)).shape == (4, 6, 3)
    np.testing.assert_array_equal(
        RESIZE(image, valid_size, size=5), RESIZE(image, valid_size, size=(5, 5))
    )


@pytest.mark.parametrize("size", [(3, 4), (30, 40)])
@pytest.mark.parametrize("policy", ["flip", "ssd"])
@pytest.mark.parametrize("flip", [False, True])
def test_the_canvas_beyond_the_valid_size_never_leaks(size, flip, policy):
    image, valid_size = make_image(3, 7, 5), jnp.array([7, 5])
    results = [
        AUGMENT(
            a_key(flip),
            on_canvas(image, 16, 16, fill),
            valid_size,
            jnp.zeros((1, 4)),
            jnp.zeros(1, jnp.int8),
            size=size,
            policy=policy,
        ).image
        for fill in (0, 255)
    ]
    np.testing.assert_array_equal(*results)


def test_flip_mirrors_image_and_boxes_together():
    # A white box on black: the box has to lie on it after the flip, too.
    image = np.zeros((8, 8, 3), np.uint8)
    image[2:4, 1:3] = 255
    box = jnp.array([[1 / 8, 2 / 8, 3 / 8, 4 / 8]])
    for flip, columns in ((False, slice(1, 3)), (True, slice(5, 7))):
        got = AUGMENT(
            a_key(flip), image, jnp.array([8, 8]), box, jnp.array([1]), size=8, policy="flip"
        )
        white = np.zeros((8, 8, 3))
        white[2:4, columns] = 255
        np.testing.assert_array_equal(got.image, white)
        expected = [columns.start / 8, 2 / 8, columns.stop / 8, 4 / 8]
        np.testing.assert_array_equal(got.boxes[0], expected)


def test_half_of_the_keys_flip():
    # 1000 fair coins: 500 with a standard deviation of 16; five of them allowed.
    assert abs(flips_of(KEYS).sum() - 500) < 80


@pytest.mark.parametrize("policy", ["flip", "ssd"])
def test_the_same_key_gives_the_same_result(policy):
    arguments = (KEYS[0], make_image(4, 8, 8), jnp.array([8, 8]), OBJECTS, np.array([2, 0, 1]))
    first = AUGMENT(*arguments, size=4, policy=policy)
    plain = augment.augment(*arguments, size=4, policy=policy)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-3), first, plain)


@pytest.mark.parametrize("policy", ["flip", "ssd"])
def test_padding_boxes_stay_zero(policy):
    boxes = np.float32([[0.25, 0.25, 0.5, 0.75], [0, 0, 0, 0], [0, 0, 0, 0]])
    for key in KEYS[:20]:
        got = AUGMENT(
            key,
            make_image(5, 8, 8),
            jnp.array([8, 8]),
            boxes,
            np.array([3, 0, 0]),
            size=4,
            policy=policy,
        )
        np.testing.assert_array_equal(got.boxes[1:], 0)
        np.testing.assert_array_equal(got.labels[1:], 0)
        assert got.labels[0] in (0, 3)


def test_more_padding_changes_nothing():
    image, valid_size = make_image(5, 8, 8), jnp.array([8, 8])
    for key in KEYS[:20]:
        few = AUGMENT(key, image, valid_size, OBJECTS, np.array([1, 2, 3]), size=4, policy="ssd")
        padded = np.pad(OBJECTS, ((0, 5), (0, 0))), np.array([1, 2, 3, 0, 0, 0, 0, 0])
        many = AUGMENT(key, image, valid_size, *padded, size=4, policy="ssd")
        np.testing.assert_array_equal(many.labels[:3], few.labels)
        np.testing.assert_array_equal(many.boxes[:3], few.boxes)
        np.testing.assert_array_equal(many.image, few.image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "rotate"}, r"'rotate'.*ssd, crop, flip"),
        ({"interpolations": ("linear", "bicubic")}, "bicubic; choose among linear, area"),
        ({"interpolations": ()}, "none; choose among linear, area"),
    ],
)
def test_an_unknown_option_is_refused_with_the_known_ones(options, message):
    nothing = jnp.zeros((1, 4)), jnp.zeros(1, int)
    arguments = (KEYS[0], make_image(7, 4, 4), jnp.array([4, 4]), *nothing)
    with pytest.raises(ValueError, match=message):
        augment.augment(*arguments, size=4, **options)


@pytest.mark.parametrize("policy", ["flip", "ssd"])
def test_results_are_float32_in_the_range_of_pixels(policy):
    image = on_canvas(make_image(8, 9, 7), 16, 16)
    for key in KEYS[:30]:
        got = AUGMENT(
            key,
            image,
            jnp.array([9, 7]),
            jnp.zeros((1, 4)),
            jnp.zeros(1, jnp.int8),
            size=(30, 40),
            policy=policy,
        )
        assert (got.image.dtype, got.labels.dtype) == (jnp.float32, jnp.int32)
        assert got.image.min() >= 0
        assert got.image.max() <= 255 + 1e-3


# --- The crop ---


@pytest.fixture(scope="module")
def reference_crops():
    """Sampler (`[20000]`) and crop (`[20000, 4]`) of the reference's draws."""
    rng = random.Random(11)
    boxes = [tuple(map(float, box)) for box in OBJECTS]
    samplers, crops = zip(*(reference.sample_crop(rng, boxes) for _ in range(DRAWS)), strict=True)
    return np.array(samplers), np.array(crops)


@pytest.fixture(scope="module")
def our_crops():
    """Sampler and crop of as many draws; (0, 0, 1, 1) is sampler 0, the rest is not told apart."""
    return drawn(keys_of(5, DRAWS), OBJECTS, np.array([1, 2, 3]))[1]


def is_whole(crops):
    return (crops == [0, 0, 1, 1]).all(axis=1)


def p_of_counts(first, second):
    """Chi-square: the probability that two rows of counts differ so much by chance."""
    table = np.array([first, second])
    return scipy.stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue


def described(crops):
    """Scale, aspect ratio and relative place of crops, each by name."""
    size = crops[:, 2:] - crops[:, :2]
    return {
        "scale": np.sqrt(size.prod(axis=1)),
        "ratio": size[:, 0] / size[:, 1],
        "x": crops[:, 0] / np.maximum(1 - size[:, 0], 1e-9),
        "y": crops[:, 1] / np.maximum(1 - size[:, 1], 1e-9),
    }


@pytest.mark.slow
@pytest.mark.parametrize("quantity", ["scale", "ratio", "x", "y"])
def test_crops_are_distributed_as_the_references(our_crops, reference_crops, quantity):
    ours, theirs = (crops[~is_whole(crops)] for crops in (our_crops, reference_crops[1]))
    result = scipy.stats.ks_2samp(described(ours)[quantity], described(theirs)[quantity])
    assert result.pvalue > 0.01


@pytest.mark.slow
def test_the_share_of_whole_images_is_the_references(our_crops, reference_crops):
    ours, theirs = (is_whole(crops).sum() for crops in (our_crops, reference_crops[1]))
    assert p_of_counts([ours, DRAWS - ours], [theirs, DRAWS - theirs]) > 0.01


@pytest.mark.slow
def test_the_share_of_each_sampler_is_the_references(reference_crops):
    """Among the found each is as likely; this draws from the proposals as `sample_crop` does."""
    proposals, _ = drawn(keys_of(6, DRAWS), OBJECTS, np.array([1, 2, 3]))
    chance = proposals.found / proposals.found.sum(axis=1, keepdims=True)
    expected = chance.sum(axis=0)
    counts = np.bincount(reference_crops[0], minlength=7)
    used = expected > 0
    assert counts[~used].sum() == 0
    assert scipy.stats.chisquare(counts[used], expected[used]).pvalue > 0.01


@pytest.mark.slow
def test_as_many_boxes_stay_as_in_the_reference(our_crops, reference_crops):
    cropped = jax.jit(jax.vmap(augment.crop_boxes, in_axes=(0, None, None)))
    _, labels = cropped(our_crops, OBJECTS, np.array([1, 2, 3]))
    ours = np.asarray(labels > 0) @ [1, 2, 4]  # which of the three stay
    theirs = [
        sum(bit for bit, box in zip((1, 2, 4), kept, strict=True) if box is not None)
        for kept in (reference.boxes_in_crop(crop, OBJECTS) for crop in reference_crops[1])
    ]
    assert p_of_counts(np.bincount(ours, minlength=8), np.bincount(theirs, minlength=8)) > 0.01


def test_a_sampler_is_found_only_where_its_overlap_is_reached():
    proposals, _ = drawn(keys_of(7, 1000), OBJECTS, np.array([1, 0, 3]))
    for crops, found in zip(*proposals, strict=True):
        for crop, real, least in zip(crops, found, (0, 0.1, 0.3, 0.5, 0.7, 0.9, 0), strict=True):
            best = max(reference.iou(crop, OBJECTS[row]) for row in (0, 2))  # 1 is padding
            assert not real or best >= least - 1e-6
    assert proposals.found[:, [0, 6]].all()
    assert 0 < proposals.found[:, 3].mean() < 1


def test_without_objects_the_crop_is_unconstrained_or_the_whole():
    for boxes, labels in ((np.zeros((0, 4)), np.zeros(0, int)), (OBJECTS, np.zeros(3, int))):
        proposals, crops = drawn(KEYS, boxes, labels)
        np.testing.assert_array_equal(proposals.found.sum(axis=0), [1000, 0, 0, 0, 0, 0, 1000])
        assert abs(is_whole(crops).sum() - 500) < 80


def test_crops_stay_in_the_image_and_in_the_papers_ranges():
    proposals, _ = drawn(keys_of(8, 2000), OBJECTS, np.array([1, 2, 3]))
    crops = proposals.crops[:, 1:].reshape(-1, 4)
    assert crops.min() >= 0
    assert crops.max() <= 1
    of = described(crops)
    assert of["scale"].min() >= 0.3 - 1e-5
    assert of["scale"].max() <= 1 + 1e-5
    assert of["ratio"].min() >= 0.5 - 1e-4
    assert of["ratio"].max() <= 2 + 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_boxes_follow_a_crop_as_in_the_reference(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.7, (20, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.02, 0.3, (20, 2))], 1).astype(np.float32)
    crop = np.float32([0.2, 0.1, 0.8, 0.65])
    got, labels = augment.crop_boxes(crop, boxes, np.arange(1, 21))
    expected = reference.boxes_in_crop(crop.tolist(), boxes.tolist())
    for row, (box, label) in enumerate(zip(expected, labels, strict=True)):
        assert label == (0 if box is None else row + 1)
        np.testing.assert_allclose(got[row], box or (0, 0, 0, 0), atol=1e-5)


def hostile_boxes(rng, *shape):
    """Tiny, whole, at the border, beyond float32's reach, none, and as many as there are rows.

    `shape` is that of the labels: (images, rows).
    """
    rows = np.zeros((*shape, 4), np.float32)
    low = rng.uniform(0, 1, (*shape, 2))
    kinds = rng.integers(0, 5, (*shape, 1))
    side = np.choose(kinds, [1e-7, 1e-4, 0.3, 1.0, 0.05]) * rng.uniform(0.5, 1, (*shape, 2))
    low = np.where(kinds == 3, 0, low)
    low = np.where(rng.random((*shape, 1)) < 0.3, np.round(low), low)  # at a border
    rows[..., :2], rows[..., 2:] = np.clip(low, 0, 1), np.clip(low + side, 0, 1)
    labels = rng.integers(1, 21, shape) * (rng.random(shape) < rng.random((shape[0], 1)))
    return rows, np.where((rows[..., 2:] > rows[..., :2]).all(-1), labels, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "images", "rows"),
    [("ssd", 10_000, 6), ("crop", 10_000, 6), ("flip", 10_000, 6), ("ssd", 200, 50)],
)
def test_no_box_leaves_the_image_or_loses_its_area(policy, images, rows):
    make = functools.partial(augment.augment, size=2, interpolations=("linear",), policy=policy)
    many = jax.jit(jax.vmap(make, in_axes=(0, None, None, 0, 0)))
    canvas, valid_size = make_image(9, 4, 4), jnp.array([3, 4])
    kept = 0
    for chunk in range(10):
        boxes, labels = hostile_boxes(np.random.default_rng(chunk), images, rows)
        got = jax.device_get(many(keys_of(chunk, images), canvas, valid_size, boxes, labels))
        assert np.isfinite(got.image).all()
        real = got.labels > 0
        assert not got.boxes[~real].any()
        left = got.boxes[real]
        assert ((left >= 0) & (left <= 1)).all()
        assert (left[:, 2:] > left[:, :2]).all()
        np.testing.assert_array_equal(got.labels[real], labels[real])
        kept += real.sum()
    assert kept > 1.5 * 10 * images


# --- The geometry ---

PLAIN = {"canvas": np.float32([0, 0, 50, 40]), "crop": np.float32([0, 0, 1, 1])}


def crop_in_pixels(canvas, crop):
    """Corners in [0, 1] of the canvas for whole pixels of it."""
    side = np.tile(np.subtract(canvas[2:], canvas[:2]), 2)
    return np.float32(crop) / np.float32(side)


def far_from_edges(low, high, side):
    """Which of 24 pixels between `low` and `high` are 4 or more away from 0 and from `side`."""
    place = low + (np.arange(24) + 0.5) * (high - low) / 24
    return (np.abs(place) >= 4) & (np.abs(place - side) >= 4)


@pytest.mark.parametrize("interpolation", resampling.INTERPOLATIONS)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("canvas", "crop"),
    [
        ((0, 0, 50, 40), (0, 0, 50, 40)),  # nothing: 50 x 40 to 24 x 24, smaller
        ((0, 0, 50, 40), (10, 5, 28, 21)),  # a crop, larger
        ((-30, -25, 90, 101), (0, 0, 120, 126)),  # expanded
        ((-30, -25, 90, 101), (20, 15, 70, 80)),  # expanded, then the image's corner
        ((-30, -25, 90, 101), (90, 70, 110, 80)),  # nothing but the mean
    ],
)
def test_one_resampling_equals_expand_crop_resize_flip(canvas, crop, flip, interpolation):
    image = smooth(40, 50)
    pixels, coverage = WARP(
        on_canvas(image, 64, 64, 255),
        jnp.array([40, 50]),
        canvas=np.float32(canvas),
        crop=crop_in_pixels(canvas, crop),
        flip=flip,
        interpolation=interpolation,
        size=24,
    )
    coverage = coverage[..., None]
    got = np.asarray(pixels * coverage + np.float32(augment.MEAN) * (1 - coverage))
    expected = reference.warp(image, canvas, crop, augment.MEAN, 24, flip, interpolation)
    differences = np.abs(got - expected)
    if canvas != (0, 0, 50, 40):
        # Filters that reach over the image's edge ring there in the plain sequence, not in ours.
        columns = far_from_edges(canvas[0] + crop[0], canvas[0] + crop[2], 50)
        rows = far_from_edges(canvas[1] + crop[1], canvas[1] + crop[3], 40)
        differences = differences[rows][:, columns[::-1] if flip else columns]
        assert differences.size > 0.2 * got.size
    # float32 places; nearest may take the other of two pixels at the same distance.
    assert differences.mean() < (0.1 if interpolation == "nearest" else 0.01)
    assert np.abs(got - expected).mean() < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("flip", [False, True])
def test_real_images_are_resampled_as_expand_crop_resize_flip(shared, flip):
    import tarfile

    from ssd_jax.data import images

    with tarfile.open(shared / "voc/VOCtrainval_06-Nov-2007.tar") as archive:
        names = [n for n in archive.getnames() if n.endswith(".jpg")][:4]
        real = [images.decode(archive.extractfile(n).read(), name=n) for n in names]
    rng = np.random.default_rng(0)
    for image in real:
        height, width = image.shape[:2]
        left, top = -rng.integers(0, 200, 2)
        canvas = (left, top, left + width + 300, top + height + 250)
        x0, y0 = rng.integers(0, 200, 2)
        crop = (x0, y0, x0 + 350, y0 + 310)
        pixels, coverage = WARP(
            on_canvas(image, 512, 512),
            jnp.array([height, width]),
            canvas=np.float32(canvas),
            crop=crop_in_pixels(canvas, crop),
            flip=flip,
            size=300,
        )
        expected = reference.warp(image, canvas, crop, augment.MEAN, 300, flip, "linear")
        inside = np.asarray(coverage) > 0.999
        assert inside.mean() > 0.2
        assert np.abs(np.asarray(pixels) - expected)[inside].mean() < 1.5


def test_colors_may_come_before_the_resampling_or_after():
    """SPEC has them first. They differ where a step clips, and in hue across an edge."""
    image = lit_discs(120, 150)
    canvas, crop = np.float32([-20, -30, 200, 210]), (10, 10, 160, 130)
    place = {"canvas": canvas, "crop": crop_in_pixels(canvas, crop), "size": 100}
    valid_size = jnp.array([120, 150])
    changed = []
    for key in KEYS[:40]:
        pixels, coverage = WARP(image, valid_size, **place)
        last = np.asarray(PHOTOMETRIC(key, pixels))
        first = np.asarray(WARP(PHOTOMETRIC(key, image), valid_size, **place)[0])
        interior = np.asarray(coverage) > 0.999
        assert np.abs(last - first)[interior].mean() < 1.5
        changed.append(np.abs(last - np.asarray(pixels))[interior].mean())
    assert interior.mean() > 0.4
    assert np.median(changed) > 10  # levels, which most colors are moved by


def test_a_box_marks_the_same_pixels_after_expansion_and_crop():
    """A white square in the image is where its box says, whatever was drawn."""
    image = np.zeros((60, 60, 3), np.uint8)
    image[20:44, 12:40] = 255
    box = np.float32([[12 / 60, 20 / 60, 40 / 60, 44 / 60]])
    options = {"size": 120, "mean": (0, 0, 0), "interpolations": ("area",)}
    shown = 0
    for key in keys_of(12, 60):
        got = AUGMENT(key, image, jnp.array([60, 60]), box, jnp.array([1]), **options)
        pixels, boxes, labels = jax.device_get(got)
        bright = pixels.mean(axis=2) > 0.5 * pixels.max()
        if labels[0] and pixels.max() > 50:
            rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(boxes[0] * 120, edges, atol=1.5)
            shown += 1
    assert shown > 30


def test_the_mean_surrounds_an_expanded_image():
    canvas = np.float32([-10, -20, 30, 40])
    pixels, coverage = WARP(
        make_image(1, 10, 10), jnp.array([10, 10]), canvas=canvas, crop=PLAIN["crop"], size=60
    )
    # 10 of 40 columns from the tenth on, 10 of 60 rows from the twentieth on.
    inside = np.zeros((60, 60), bool)
    inside[20:30, 15:30] = True
    assert coverage[~inside].max() < 0.5
    assert coverage[21:29, 17:28].min() == 1
    assert np.isfinite(pixels).all()


def test_the_surround_is_exactly_the_mean():
    """So that the network's input is 0 there: noise about 0 would decide which ReLUs are open."""
    surrounded = 0
    for key in keys_of(15, 12):
        got = AUGMENT(
            key,
            make_image(2, 16, 16),
            jnp.array([16, 16]),
            jnp.zeros((1, 4)),
            jnp.zeros(1, jnp.int8),
            size=(30, 40),
            policy="ssd",
        )
        away = np.abs(np.asarray(got.image) - np.float32(augment.MEAN)).max(axis=2)
        if (away < 1e-2).mean() > 0.2:  # an expanded one
            assert (away[away < 1e-2] == 0).all()
            surrounded += 1
    assert surrounded >= 3


def test_expansion_is_as_the_paper_says():
    valid_size = jnp.array([300.0, 400.0])
    expand = jax.jit(jax.vmap(lambda key: augment._expansion(key, valid_size)))
    canvas = np.asarray(expand(keys_of(13, DRAWS)))
    size = canvas[:, 2:] - canvas[:, :2]
    plain = (size == [400, 300]).all(axis=1)
    assert scipy.stats.binomtest(int(plain.sum()), DRAWS, 0.5).pvalue > 0.01
    ratio = size[~plain] / [400, 300]
    assert scipy.stats.kstest(ratio[:, 0], "uniform", args=(1, 3)).pvalue > 0.01
    np.testing.assert_allclose(ratio[:, 0], ratio[:, 1], atol=1 / 300)
    large = ratio[:, 1] > 1.5  # elsewhere whole pixels show in the place
    for axis, side in enumerate((400, 300)):
        place = -canvas[~plain][large][:, axis] / (size[~plain][large][:, axis] - side)
        assert scipy.stats.kstest(place, "uniform").pvalue > 0.01


def test_each_interpolation_is_drawn_as_often():
    draw = functools.partial(augment._draw_interpolation, names=("area", "cubic", "lanczos"))
    counts = np.bincount(jax.jit(jax.vmap(draw))(keys_of(14, 3000)), minlength=5)
    assert counts[[0, 2]].sum() == 0
    assert scipy.stats.chisquare(counts[[1, 3, 4]]).pvalue > 0.01


# --- The colors ---


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.3, 1.5])
def test_saturation_is_colorsys(factor):
    image = make_image(20, 12, 12)
    got = np.asarray(augment.adjust_saturation(image, factor))
    for pixel, result in zip(image.reshape(-1, 3), got.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)
        np.testing.assert_allclose(result, 255 * np.array(expected), atol=0.01)


@pytest.mark.parametrize("degrees", [-36.0, -7.5, 0.0, 12.0, 36.0, 170.0])
def test_hue_is_colorsys(degrees):
    image = np.concatenate([make_image(21, 12, 12), np.full((1, 12, 3), 77, np.uint8)])  # gray too
    got = np.asarray(augment.adjust_hue(image, degrees))
    for pixel, result in zip(image.reshape(-1, 3), got.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, saturation, value)
        np.testing.assert_allclose(result, 255 * np.array(expected), atol=0.01)


def test_brightness_and_contrast_end_in_the_range():
    image = np.float32([[0, 100, 250]])
    np.testing.assert_array_equal(augment.adjust_brightness(image, 32.0), [[32, 132, 255]])
    np.testing.assert_array_equal(augment.adjust_brightness(image, -32.0), [[0, 68, 218]])
    np.testing.assert_array_equal(augment.adjust_contrast(image, 1.5), [[0, 150, 255]])
    np.testing.assert_array_equal(augment.adjust_contrast(image, 0.5), [[0, 50, 125]])


def plain_photometric(image, delta, contrast, saturation, degrees, contrast_first):
    """The order of SPEC section 5 for one pixel, by colorsys."""
    rgb = np.clip(image + delta, 0, 255)
    rgb = np.clip(rgb * contrast, 0, 255) if contrast_first else rgb
    hue, s, value = colorsys.rgb_to_hsv(*(rgb / 255))
    rgb = np.array(colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(s * saturation, 1), value))
    rgb = 255 * rgb
    return rgb if contrast_first else np.clip(rgb * contrast, 0, 255)


def test_photometric_is_one_of_the_papers_sequences():
    """Its own numbers, read off by running it on pixels that show one operation each."""
    image = np.float32([[[100, 100, 100], [180, 120, 60], [10, 200, 240]]])
    seen = set()
    for key in KEYS[:40]:
        got = np.asarray(PHOTOMETRIC(key, image))[0]
        keys = jax.random.split(key, 6)
        delta = float(augment._draw(keys[0], -32, 32, neutral=0.0))
        contrast, saturation = (
            float(augment._draw(keys[n], 0.5, 1.5, neutral=1.0)) for n in (1, 3)
        )
        first = bool(jax.random.bernoulli(keys[2]))
        degrees = float(augment._draw(keys[4], -36, 36, neutral=0.0))
        for pixel, result in zip(image[0], got, strict=True):
            expected = plain_photometric(pixel, delta, contrast, saturation, degrees, first)
            np.testing.assert_allclose(result, expected, atol=0.05)
        seen.add((delta != 0, contrast != 1, first, saturation != 1, degrees != 0))
    assert len(seen) > 15  # of 32 combinations


@pytest.mark.parametrize(("low", "high", "neutral"), [(-32, 32, 0.0), (0.5, 1.5, 1.0)])
def test_each_operation_has_half_a_chance_and_uniform_strength(low, high, neutral):
    draw = functools.partial(augment._draw, low=low, high=high, neutral=neutral)
    values = np.asarray(jax.jit(jax.vmap(draw))(keys_of(22, DRAWS)))
    applied = values != neutral
    assert scipy.stats.binomtest(int(applied.sum()), DRAWS, 0.5).pvalue > 0.01
    assert scipy.stats.kstest(values[applied], "uniform", args=(low, high - low)).pvalue > 0.01


def test_channels_are_shuffled_on_request_only():
    image = np.tile(np.float32([10, 100, 200]), (2, 2, 1))
    orders = {False: set(), True: set()}
    for shuffle, seen in orders.items():
        many = jax.vmap(lambda k, s=shuffle: augment._shuffled(k, image) if s else image)
        for pixels in np.asarray(jax.jit(many)(keys_of(23, 300))):
            seen.add(tuple(pixels[0, 0].tolist()))
    assert orders[False] == {(10, 100, 200)}
    assert len(orders[True]) == math.factorial(3)
    for key in KEYS[:5]:
        plain = PHOTOMETRIC(key, image)
        shuffled = PHOTOMETRIC(key, image, channel_shuffle=True)
        np.testing.assert_allclose(np.sort(plain), np.sort(shuffled), atol=1e-4)
