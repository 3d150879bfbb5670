"""What a CPU computes instead of XLA's convolutions is the same, and so are its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.kernels import convolutions
from ssd_jax.models import layers


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
    pads = tuple(layers.explicit_padding(side, 3, stride, style) for side in size)
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


@pytest.mark.parametrize("pixels", [convolutions._PIXELS, 14])  # in the latter a row or two
@pytest.mark.parametrize(
    ("size", "kernel", "ends", "dilation"),
    [
        ((6, 9), (3, 3), ((1, 1), (1, 1)), 1),
        ((6, 9), (3, 3), ((0, 0), (0, 0)), 1),
        ((7, 5), (3, 3), ((6, 6), (6, 6)), 6),
        ((5, 8), (2, 4), ((0, 1), (2, 1)), 1),
        ((9, 12), (4, 2), ((3, 0), (1, 2)), 2),
        ((4, 3), (1, 1), ((0, 0), (0, 0)), 1),
        ((4, 3), (1, 1), ((1, 2), (0, 1)), 1),
        ((1, 1), (3, 3), ((1, 1), (1, 1)), 1),
    ],
)
def test_many_outputs_are_convolved_as_xla_does(size, kernel, ends, dilation, pixels, monkeypatch):
    monkeypatch.setattr(convolutions, "_PIXELS", pixels)
    options = {"padding": ends, "dilation": dilation}
    x, weights = random(3, *size, 5), random(*kernel, 5, 64, seed=1)
    ours = functools.partial(convolutions.convolution, **options)
    assert "custom_vjp" in str(jax.make_jaxpr(ours)(x, weights))
    assert same(ours, functools.partial(convolutions.plain, **options), x, weights)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 63, 1), (641, 64, 1), (3, 64, 2)])
def test_few_outputs_and_strides_are_left_to_xla(inputs, outputs, stride):
    x, kernel = random(1, 5, 5, inputs), random(3, 3, inputs, outputs)
    made = jax.make_jaxpr(functools.partial(convolutions.convolution, stride=stride))(x, kernel)
    assert "custom_vjp" not in str(made)


def test_the_gradient_of_many_outputs_is_exact_to_float32():
    """Beside sums in float64, over each of 1444 pixels and 2 images."""
    side, inputs, outputs = 38, 8, 64
    x, gradient = random(2, side, side, inputs), random(2, side, side, outputs, seed=1)
    padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((3, 3, inputs, outputs))
    for i, j in np.ndindex(3, 3):
        shifted = padded[:, i : i + side, j : j + side]
        expected[i, j] = np.einsum("bhwi,bhwo->io", shifted, np.float64(gradient))

    def convolve(kernel):
        return convolutions.convolution(x, kernel, padding=((1, 1), (1, 1)))

    got = jax.vjp(convolve, jnp.zeros((3, 3, inputs, outputs)))[1](gradient)[0]
    assert np.linalg.norm(got - expected) < 5e-7 * np.linalg.norm(expected)


def test_many_outputs_have_the_same_gradients_under_vmap():
    x, kernel = random(2, 3, 6, 7, 5), random(2, 3, 3, 5, 64, seed=1)

    def total(convolve, x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, padding=((1, 1), (1, 1)))))

    ours, expected = (
        jax.vmap(jax.grad(functools.partial(total, convolve), (0, 1)))(x, kernel)
        for convolve in (convolutions.convolution, convolutions.plain)
    )
    for got, want in zip(ours, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_kernels_gradient_is_a_convolution_but_on_a_cpu(platform):
    def total(kernel, x):
        return jnp.sum(convolutions.convolution(x, kernel) ** 2)

    traced = jax.jit(jax.grad(total)).trace(random(3, 3, 5, 64), random(1, 6, 6, 5))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == (1 if platform == "cpu" else 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 6, 7, 160, 161])
def test_tensorflows_padding_is_xlas_same(side, stride):
    expected = jax.lax.padtype_to_pads((side,), (3,), (stride,), "SAME")
    assert [layers.explicit_padding(side, 3, stride, "tensorflow")] == expected
    assert layers.explicit_padding(side, 3, stride, "torch") == (1, 1)


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


@pytest.mark.parametrize(
    ("convolve", "shape"),
    [(convolutions.depthwise, (3, 3, 1, 2)), (convolutions.convolution, (3, 3, 2, 64))],
)
def test_gradients_in_bfloat16_are_summed_in_float32(convolve, shape):
    """Of 4096 ones, bfloat16 would stop to count at 256."""
    x = jnp.ones((4, 32, 32, 2), jnp.bfloat16)
    kernel = jnp.ones(shape, jnp.bfloat16)

    def total(kernel):
        return jnp.sum(convolve(x, kernel, padding=((1, 1), (1, 1))))

    gradient = jax.grad(total)(kernel)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient[1, 1, 0].astype(jnp.float32), 4096)


def test_a_wide_layer_has_a_gradient_in_bfloat16():
    """In a loop, XLA's CPU refuses products of bfloat16 that are summed in float32."""
    x, kernel = random(2, 5, 5, 128), random(3, 3, 128, 256)

    @jax.jit
    def gradient(x, kernel):
        return jax.grad(
            lambda k: jnp.sum(convolutions.convolution(x, k, padding=((1, 1), (1, 1))) ** 2)
        )(kernel)

    got = gradient(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    wanted = gradient(x, kernel)
    np.testing.assert_allclose(
        got.astype(jnp.float32), wanted, atol=2e-2 * float(jnp.abs(wanted).max())
    )


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
