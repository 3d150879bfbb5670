import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssd_jax import boxes


def random_boxes(seed, *shape):
    """Corners with sides from 0.05 to 0.55; they may reach beyond the image."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(-0.2, 0.9, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(0.05, 0.55, (*shape, 2))], -1).astype(np.float32)


def random_priors(seed, *shape):
    return np.asarray(boxes.xyxy_to_cxcywh(random_boxes(seed, *shape)))


def ways(function, *batched):
    """Results of `function` on a batch: plain, under `jit`, and under `vmap`."""
    plain = [function(*row) for row in zip(*batched, strict=True)]
    jitted = [jax.jit(function)(*row) for row in zip(*batched, strict=True)]
    return {"plain": np.stack(plain), "jit": np.stack(jitted), "vmap": jax.vmap(function)(*batched)}


def check_ways(function, expected, *batched, atol):
    for name, result in ways(function, *batched).items():
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=atol, err_msg=name)


def test_center_and_size_of_a_box_by_hand():
    box = jnp.array([0.25, 0.5, 0.75, 0.625])
    np.testing.assert_array_equal(boxes.xyxy_to_cxcywh(box), [0.5, 0.5625, 0.5, 0.125])


def test_conversions_are_inverse_and_take_any_leading_shape():
    corners = random_boxes(0, 3, 5)
    back = boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(corners))
    assert back.shape == corners.shape
    np.testing.assert_allclose(back, corners, atol=1e-6)


def test_area_of_an_inverted_box_is_zero():
    np.testing.assert_array_equal(
        boxes.area(jnp.array([[0, 0, 0.5, 0.25], [0.5, 0, 0, 0.25], [0.5, 0.5, 0, 0]])),
        [0.125, 0, 0],
    )


def test_iou_by_hand():
    # Two squares of side 2 that share one unit square: 1 / (4 + 4 - 1).
    a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
    b = jnp.array([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
    np.testing.assert_allclose(boxes.pairwise_iou(a, b), [[1 / 7, 1, 0]], rtol=1e-7)


def test_iou_equals_the_reference_plain_jit_and_vmap():
    a, b = random_boxes(1, 4, 7), random_boxes(2, 4, 9)
    expected = [
        [[reference.iou(x, y) for y in right] for x in left]
        for left, right in zip(a, b, strict=True)
    ]
    check_ways(boxes.pairwise_iou, expected, a, b, atol=1e-6)


@pytest.mark.parametrize("side", [1e-3, 1e-6, 1e-12])
def test_iou_of_tiny_boxes_has_no_bias(side):
    box = jnp.array([[0, 0, side, side]])
    half = jnp.array([[0, 0, side, side / 2]])
    np.testing.assert_allclose(boxes.pairwise_iou(box, half), [[0.5]], rtol=1e-6)


def test_iou_without_area_is_zero_and_has_a_finite_gradient():
    points = jnp.array([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    value, gradient = jax.value_and_grad(lambda x: boxes.pairwise_iou(x, x).sum())(points)
    assert value == 0
    assert np.isfinite(gradient).all()


def test_encode_by_hand():
    # One prior side to the right, e times as wide: 1 / 0.1 and 1 / 0.2; the same for y, halved.
    prior = jnp.array([[0.5, 0.5, 0.2, 0.4]])
    box = boxes.cxcywh_to_xyxy(jnp.array([[0.7, 0.7, 0.2 * np.e, 0.2]]))
    np.testing.assert_allclose(boxes.encode(box, prior), [[10, 5, 5, -np.log(2) / 0.2]], rtol=1e-5)


def test_encode_equals_the_reference_plain_jit_and_vmap():
    targets, priors = random_boxes(3, 4, 8), random_priors(4, 4, 8)
    expected = [
        [reference.encode(*pair) for pair in zip(*rows, strict=True)]
        for rows in zip(targets, priors, strict=True)
    ]
    check_ways(boxes.encode, expected, targets, priors, atol=1e-4)


def test_decode_equals_the_reference_plain_jit_and_vmap():
    loc = np.random.default_rng(5).normal(0, 3, (4, 8, 4)).astype(np.float32)
    priors = random_priors(6, 4, 8)
    expected = [
        [reference.decode(*pair) for pair in zip(*rows, strict=True)]
        for rows in zip(loc, priors, strict=True)
    ]
    check_ways(boxes.decode, expected, loc, priors, atol=1e-5)


@pytest.mark.parametrize("variances", [(0.1, 0.2), (1.0, 1.0)])
def test_decode_inverts_encode(variances):
    targets, priors = random_boxes(7, 50), random_priors(8, 50)
    encode = functools.partial(boxes.encode, variances=variances)
    decode = functools.partial(boxes.decode, variances=variances)
    np.testing.assert_allclose(decode(encode(targets, priors), priors), targets, atol=1e-6)


def test_variances_divide_the_offsets():
    targets, priors = random_boxes(9, 5), random_priors(10, 5)
    bare = boxes.encode(targets, priors, variances=(1.0, 1.0))
    np.testing.assert_allclose(
        boxes.encode(targets, priors), bare / jnp.array([0.1, 0.1, 0.2, 0.2]), rtol=1e-5, atol=1e-6
    )


def test_zero_offsets_decode_to_the_prior():
    priors = random_priors(11, 6)
    np.testing.assert_array_equal(
        boxes.decode(jnp.zeros((6, 4)), priors), boxes.cxcywh_to_xyxy(priors)
    )


def test_clip_keeps_boxes_in_the_image():
    box = jnp.array([-0.5, 0.25, 1.5, 0.75])
    np.testing.assert_array_equal(boxes.clip(box), [0, 0.25, 1, 0.75])
