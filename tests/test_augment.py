import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssd_jax import augment

RESIZE = jax.jit(augment.resize, static_argnames="size")
AUGMENT = jax.jit(augment.augment, static_argnames=("size", "policy"))


def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def on_canvas(image, height, width, fill=0):
    canvas = np.full((height, width, 3), fill, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def flips_of(keys):
    """Whether each key flips: the box in the left half has moved to the right."""
    box = jnp.array([[0, 0, 0.25, 1]])
    flipped = functools.partial(augment.augment, size=1, policy="flip")
    canvas, extent = jnp.zeros((2, 2, 3), jnp.uint8), jnp.array([2, 2])
    rows = jax.jit(jax.vmap(flipped, in_axes=(0, None, None, None, None)))(
        keys, canvas, extent, box, jnp.array([1])
    )
    return np.asarray(rows.boxes[:, 0, 0] == 0.75)


KEYS = jax.random.split(jax.random.key(3), 1000)


@functools.cache
def a_key(flip):
    return KEYS[int(np.flatnonzero(flips_of(KEYS) == flip)[0])]


@pytest.mark.parametrize(
    ("extent", "size"),
    [((7, 9), (5, 6)), ((7, 9), (20, 13)), ((12, 4), (8, 8)), ((1, 1), (3, 3)), ((9, 1), (4, 4))],
)
def test_resize_equals_the_reference(extent, size):
    image = picture(0, *extent)
    got = RESIZE(on_canvas(image, 12, 10), jnp.array(extent), size=size)
    expected = reference.resize(image.astype(np.float64), *size)
    np.testing.assert_allclose(got, expected, atol=1e-3)  # float32 at 255


def test_resize_plain_jit_and_vmap_agree():
    images = np.stack([on_canvas(picture(seed, 6, 8 - seed), 8, 8) for seed in range(3)])
    extents = jnp.array([(6, 8), (6, 7), (6, 6)])
    resize = functools.partial(augment.resize, size=(5, 7))
    batched = jax.vmap(resize)(images, extents)
    for row in range(3):
        for function in (resize, functools.partial(RESIZE, size=(5, 7))):
            np.testing.assert_allclose(function(images[row], extents[row]), batched[row], atol=1e-3)


def test_resize_to_its_own_size_changes_nothing():
    image = picture(1, 9, 9)
    np.testing.assert_array_equal(
        RESIZE(on_canvas(image, 12, 11), jnp.array([9, 9]), size=9), image
    )


def test_size_may_be_a_side_or_height_and_width():
    image, extent = picture(2, 8, 8), jnp.array([8, 8])
    assert RESIZE(image, extent, size=(4, 6)).shape == (4, 6, 3)
    np.testing.assert_array_equal(RESIZE(image, extent, size=5), RESIZE(image, extent, size=(5, 5)))


@pytest.mark.parametrize("size", [(3, 4), (30, 40)])
@pytest.mark.parametrize("flip", [False, True])
def test_the_canvas_beyond_the_extent_never_leaks(size, flip):
    image, extent = picture(3, 7, 5), jnp.array([7, 5])
    results = [
        AUGMENT(
            a_key(flip),
            on_canvas(image, 16, 16, fill),
            extent,
            jnp.zeros((1, 4)),
            jnp.zeros(1, int),
            size=size,
            policy="flip",
        ).image
        for fill in (0, 255)
    ]
    np.testing.assert_array_equal(*results)


def test_flip_mirrors_picture_and_boxes_together():
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


def test_the_same_key_gives_the_same_result():
    image, box = picture(4, 8, 8), jnp.array([[0.25, 0.25, 0.5, 0.75]])
    arguments = (KEYS[0], image, jnp.array([8, 8]), box, jnp.array([2]))
    first = AUGMENT(*arguments, size=6, policy="flip")
    plain = augment.augment(*arguments, size=6, policy="flip")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-3), first, plain)


@pytest.mark.parametrize("flip", [False, True])
def test_padding_boxes_stay_zero(flip):
    boxes = jnp.array([[0.25, 0.25, 0.5, 0.75], [0, 0, 0, 0]])
    got = AUGMENT(
        a_key(flip),
        picture(5, 8, 8),
        jnp.array([8, 8]),
        boxes,
        jnp.array([3, 0]),
        size=4,
        policy="flip",
    )
    np.testing.assert_array_equal(got.boxes[1], 0)
    np.testing.assert_array_equal(got.labels, [3, 0])


def test_policy_none_only_resizes():
    image, extent = picture(6, 8, 8), jnp.array([8, 6])
    box = jnp.array([[0.1, 0.2, 0.3, 0.4]])
    for key in (a_key(True), a_key(False)):
        got = AUGMENT(key, image, extent, box, jnp.array([1]), size=5, policy="none")
        np.testing.assert_allclose(got.image, RESIZE(image, extent, size=5), atol=1e-3)
        np.testing.assert_array_equal(got.boxes, box)


def test_an_unknown_policy_is_refused_with_the_known_ones():
    arguments = (KEYS[0], picture(7, 4, 4), jnp.array([4, 4]), jnp.zeros((1, 4)), jnp.zeros(1, int))
    with pytest.raises(ValueError, match=r"'rotate'.*flip, none"):
        augment.augment(*arguments, size=4, policy="rotate")


def test_results_are_float32_in_the_range_of_pixels():
    image = picture(8, 9, 7)
    got = AUGMENT(
        KEYS[1],
        image,
        jnp.array([9, 7]),
        jnp.zeros((1, 4)),
        jnp.zeros(1, jnp.int8),
        size=30,
        policy="flip",
    )
    assert (got.image.dtype, got.labels.dtype) == (jnp.float32, jnp.int32)
    assert got.image.min() >= 0
    assert got.image.max() <= 255 + 1e-3
