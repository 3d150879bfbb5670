"""What a CPU computes instead of XLA's convolutions is the same, and so are its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.models import convolutions, layers


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def same(function, expected, *arrays):
    """Whether two functions agree, in their values and in the gradients of all arguments."""
    value, backward = jax.vjp(jax.jit(function), *arrays)
    wanted, expected_backward = jax.vjp(expected, *arrays)
    np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
    weights = random(*value.shape, seed=3)
    for got, want in zip(backward(weights), expected_backward(weights), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    return True


@pytest.mark.parametrize("style", ["torch", "tensorflow"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 2), (6, 9), (7, 8), (10, 10)])
def test_depthwise_is_a_convolution_in_groups(size, stride, style):
    pads = tuple(convolutions.padding(side, 3, stride, style) for side in size)
    options = {"stride": stride, "padding": pads}
    grouped = functools.partial(convolutions.convolution, groups=5, **options)
    depthwise = functools.partial(convolutions.depthwise, **options)
    x, kernel = random(3, *size, 5), random(3, 3, 1, 5, seed=1)
    assert depthwise(x, kernel).shape == (3, *(-(-side // stride) for side in size), 5)
    assert same(depthwise, grouped, x, kernel)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 7), (7, 3), (4, 4)])
def test_pointwise_is_a_convolution(inputs, outputs):
    x, kernel = random(2, 5, 4, inputs), random(1, 1, inputs, outputs, seed=1)
    assert same(convolutions.pointwise, convolutions.convolution, x, kernel)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 6, 7, 160, 161])
def test_tensorflows_padding_is_xlas_same(side, stride):
    expected = jax.lax.padtype_to_pads((side,), (3,), (stride,), "SAME")
    assert [convolutions.padding(side, 3, stride, "tensorflow")] == expected
    assert convolutions.padding(side, 3, stride, "torch") == (1, 1)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_each_platform_has_its_own_program(platform):
    """XLA's convolution in groups everywhere but on a CPU."""
    both = jax.jit(
        lambda x, kernel: convolutions.pointwise(
            convolutions.depthwise(x, kernel, padding=((1, 1), (1, 1))), random(1, 1, 5, 2)
        )
    )
    lowered = both.trace(random(1, 6, 6, 5), random(3, 3, 1, 5)).lower(
        lowering_platforms=(platform,)
    )
    assert ("stablehlo.convolution" in lowered.as_text()) == (platform != "cpu")


def test_gradients_in_bfloat16_are_summed_in_float32():
    """Of 4096 ones, bfloat16 would stop to count at 256."""
    x = jnp.ones((4, 32, 32, 2), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 1, 2), jnp.bfloat16)

    def total(kernel):
        return jnp.sum(convolutions.depthwise(x, kernel, padding=((1, 1), (1, 1))))

    gradient = jax.grad(total)(kernel)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient[1, 1, 0].astype(jnp.float32), 4096)


@pytest.mark.parametrize("features", [0, 4])
def test_an_affine_layer_scales_and_shifts_what_the_convolution_gives(features):
    layer = layers.ConvAffine(features, 3, stride=2)
    x = 4 * random(2, 7, 6, 3)
    params = layer.init(jax.random.key(0), x)["params"]
    channels = features or 3
    np.testing.assert_array_equal(params["scale"], np.ones(channels))
    np.testing.assert_array_equal(params["bias"], np.zeros(channels))
    params["scale"], params["bias"] = random(channels, seed=1), random(channels, seed=2)
    convolved = convolutions.convolution(
        x, params["kernel"], stride=2, padding=((1, 1), (1, 1)), groups=1 if features else 3
    )
    expected = np.clip(convolved * params["scale"] + params["bias"], 0, 6)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)
    assert (expected == 6).any()
