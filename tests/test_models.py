import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax import models
from ssd_jax.models import layers, ssd, summary

CONVOLUTIONS_OF_THE_BODY = 15  # 13 of VGG-16, fc6, fc7


@functools.cache
def shapes(size, **options):
    """(parameters, predictions) of a model at an input size; nothing is computed."""
    model = models.SSD(**{"num_classes": 21, **options})
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    predictions, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    return variables["params"], predictions


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def paths(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_parameter_count_is_torchvisions():
    # ssd300_vgg16 with COCO's 91 classes, as torchvision documents it.
    assert count(shapes((300, 300), num_classes=91)[0]) == 35_641_826


@pytest.mark.parametrize(("side", "priors"), [(300, 8732), (512, 24564)])
def test_outputs_have_a_row_for_every_prior_of_the_paper(side, priors):
    loc, conf = shapes((side, side))[1]
    assert (loc.shape, conf.shape) == ((2, priors, 4), (2, priors, 21))


@pytest.mark.parametrize("size", [(300, 300), (512, 512), (300, 500), (320, 320)])
def test_outputs_and_default_boxes_have_the_same_rows(size):
    model = models.SSD(num_classes=21)
    assert shapes(size)[1].loc.shape[1] == len(ssd.default_boxes(model, size))


@pytest.mark.parametrize(
    ("side", "maps"), [(300, (38, 19, 10, 5, 3, 1)), (512, (64, 32, 16, 8, 4, 2, 1))]
)
def test_feature_maps_are_the_papers(side, maps):
    model = models.SSD(num_classes=21)
    assert ssd.feature_map_shapes(model, (side, side)) == [(n, n) for n in maps]


def test_bfloat16_computation_keeps_parameters_and_outputs_float32():
    params, predictions = shapes((300, 300), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert (predictions.loc.dtype, predictions.conf.dtype) == (jnp.float32, jnp.float32)


def test_width_multiplies_every_channel_count_but_the_heads():
    full, half = (shapes((300, 300), width=width)[0] for width in (1.0, 0.5))
    assert full.keys() == half.keys()
    for (path, wide), narrow in zip(paths(full).items(), jax.tree.leaves(half), strict=True):
        head = path.startswith(("['loc", "['conf")) and "_" not in path
        outputs = wide.shape[-1] if head else wide.shape[-1] // 2
        assert narrow.shape[-1] == outputs, path
    assert shapes((300, 300), width=0.5)[1].conf.shape == (2, 8732, 21)


@pytest.mark.parametrize("size", [(64, 64), (64, 300), (8, 8)])
def test_an_input_too_small_is_refused(size):
    with pytest.raises(ValueError, match=rf"an input of \({size[0]}, {size[1]}\) is too small"):
        ssd.prior_spec(models.SSD(num_classes=3), size)


@functools.cache
def small(side):
    """A narrow model whose every parameter is random, so that no signal is zero by design."""
    model = models.SSD(num_classes=3, width=1 / 8)
    rng = np.random.default_rng(0)

    def fill(leaf):
        fan_in = math.prod(leaf.shape[:-1])
        scale = math.sqrt(2 / fan_in) if leaf.ndim > 1 else 0.1
        return (rng.standard_normal(leaf.shape) * scale).astype(np.float32)

    return model, jax.tree.map(fill, shapes((side, side), num_classes=3, width=1 / 8)[0])


def random_images(side, count=1):
    rng = np.random.default_rng(1)
    return rng.normal(0, 1, (count, side, side, 3)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("side", [300, 512])
def test_the_gradient_of_every_parameter_is_nonzero(side):
    model, params = small(side)
    rng = np.random.default_rng(2)
    weights = jax.tree.map(
        lambda out: rng.standard_normal((1, *out.shape[1:])).astype(np.float32),
        shapes((side, side), num_classes=3, width=1 / 8)[1],
    )

    def loss(params):
        out = model.apply({"params": params}, random_images(side))
        return jnp.vdot(out.loc, weights.loc) + jnp.vdot(out.conf, weights.conf)

    gradients = paths(jax.jit(jax.grad(loss))(params))
    sources = {300: 6, 512: 7}[side]
    assert len(gradients) == 2 * (CONVOLUTIONS_OF_THE_BODY + 2 * (sources - 2) + 2 * sources) + 1
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


def test_images_one_after_the_other_give_what_the_batch_gives():
    model = models.SSD(num_classes=4, width=0.125)
    params = ssd.init(jax.random.key(0), model, (300, 300))
    images = random_images(300, count=3)
    together = jax.jit(functools.partial(ssd.apply, model))(params, images)
    each = jax.jit(functools.partial(ssd.predict, model))(params, images)
    for got, wanted in zip(each, together, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_cpu_takes_one_image_after_the_other(platform):
    model = models.SSD(num_classes=4, width=0.125)
    images = jax.ShapeDtypeStruct((3, 300, 300, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    traced = jax.jit(functools.partial(ssd.predict, model)).trace(params, images)
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in lowered) == (platform == "cpu")


def test_images_of_a_batch_do_not_mix():
    model, params = small(300)
    images = random_images(300, count=2)
    apply = jax.jit(functools.partial(ssd.apply, model))
    both = apply(params, images)
    alone = apply(params, np.stack([images[1], images[1]]))
    np.testing.assert_allclose(both.loc[1], alone.loc[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both.conf[1], alone.conf[0], rtol=1e-4, atol=1e-4)
    assert np.abs(both.loc[0] - both.loc[1]).max() > 0.1


def test_rows_are_ordered_by_row_column_prior_and_coordinate():
    # Only the bias of the first loc head is set: its channel is prior * 4 + coordinate.
    model, params = small(300)
    params = jax.tree.map(np.zeros_like, params)
    params["loc0"]["bias"] = np.arange(16, dtype=np.float32)
    params["conf1"]["bias"] = np.arange(18, dtype=np.float32)
    out = jax.jit(functools.partial(ssd.apply, model))(params, random_images(300, count=2))
    expected = np.arange(16).reshape(4, 4)
    np.testing.assert_array_equal(out.loc[0, : 38 * 38 * 4], np.tile(expected, (38 * 38, 1)))
    np.testing.assert_array_equal(out.loc[0, 38 * 38 * 4 :], 0)
    second = slice(38 * 38 * 4, 38 * 38 * 4 + 19 * 19 * 6)
    classes = np.arange(18).reshape(6, 3)
    np.testing.assert_array_equal(out.conf[0, second], np.tile(classes, (19 * 19, 1)))


def pool_by_flax(x):
    odd = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
    return nn.max_pool(x, window_shape=(2, 2), strides=(2, 2), padding=odd)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 75, 75, 2), (1, 5, 4, 1), (1, 4, 7, 2)])
def test_max_pool_equals_flax_with_explicit_padding(shape):
    # Different values everywhere, negative ones too: no ties, and padding must never win.
    x = np.random.default_rng(3).permutation(math.prod(shape)).reshape(shape).astype(np.float32)
    x -= x.max() + 1
    weights = np.random.default_rng(4).normal(size=pool_by_flax(x).shape).astype(np.float32)
    np.testing.assert_array_equal(layers.max_pool_2x2(x), pool_by_flax(x))
    got, expected = (
        jax.grad(lambda y, pool=pool: jnp.vdot(pool(y), weights))(x)
        for pool in (layers.max_pool_2x2, pool_by_flax)
    )
    np.testing.assert_array_equal(got, expected)


def test_max_pool_rounds_odd_sides_up():
    # The third pool of SSD300; rounded down, conv4_3 would have 37 rows.
    assert layers.max_pool_2x2(jnp.zeros((1, 75, 75, 1))).shape == (1, 38, 38, 1)


def test_l2_norm_by_hand():
    norm = layers.L2Norm()
    x = jnp.array([[[[3.0, 4.0], [0.0, -2.0]]]])
    out, variables = norm.init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(out, [[[[12, 16], [0, -20]]]], rtol=1e-6)
    np.testing.assert_array_equal(variables["params"]["scale"], [20, 20])
    scaled = norm.apply({"params": {"scale": jnp.array([1.0, 10.0])}}, x)
    np.testing.assert_allclose(scaled, [[[[0.6, 8], [0, -10]]]], rtol=1e-6)


def test_l2_norm_has_a_finite_gradient_at_an_all_zero_position():
    norm = layers.L2Norm()
    variables = {"params": {"scale": jnp.full(4, 20.0)}}
    x = jnp.zeros((1, 2, 2, 4)).at[0, 0, 0, 0].set(1)
    value, gradient = jax.value_and_grad(lambda x: norm.apply(variables, x).sum())(x)
    assert value == 20
    assert np.isfinite(gradient).all()


def test_l2_norm_is_computed_in_float32():
    # Squares of 1e3 over 512 channels overflow float16.
    norm = layers.L2Norm()
    variables = {"params": {"scale": jnp.ones(512)}}
    out = norm.apply(variables, jnp.full((1, 512), 1e3, jnp.float16))
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(out, 1 / math.sqrt(512), rtol=1e-3)


@pytest.mark.parametrize("side", [300, 512])
def test_summary_counts_every_parameter_once(side):
    rows = summary.summarize(models.SSD(num_classes=21), (side, side))
    params = shapes((side, side))[0]
    assert sum(row.parameters for row in rows) == count(params)
    assert len({row.name for row in rows}) == len(rows)


def test_summary_has_torchvisions_operations():
    # torchvision documents 34.86 billion multiply-adds at 91 classes.
    rows = summary.summarize(models.SSD(num_classes=91), (300, 300))
    assert sum(row.flops for row in rows) == pytest.approx(2 * 34.86e9, rel=1e-3)


def test_summary_of_the_first_layer_by_hand():
    first = summary.summarize(models.SSD(num_classes=21), (300, 300))[0]
    assert first == (
        "vgg16/conv1_1",
        (300, 300, 64),
        3 * 3 * 3 * 64 + 64,
        300 * 300 * 64 * (2 * 27 + 1),
    )
