"""Fresh layers on trained ones: the size of their kernels."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.models import calibration, ssd

MODEL = ssd.SSD(num_classes=3, width=0.125)
LAYERS = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).uniform(-120, 130, (2, 300, 300, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params(images):
    """Whose conv1_1 answers a hundred times as strongly as a fresh one, as a trained one may."""
    flat = flax.traverse_util.flatten_dict(
        ssd.init(jax.random.key(0), MODEL, images.shape[1:3]), sep="/"
    )
    flat["vgg16/conv1_1/kernel"] *= 100
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def kernels(names):
    return {f"vgg16/{name}/{kind}" for name in names for kind in ("kernel", "bias")}


def test_the_first_new_layer_is_scaled_and_the_heads_start_small(params, images):
    fresh = kernels([*LAYERS[7:], "fc6", "fc7"])
    scaled, factors = calibration.calibrate(MODEL, params, images, fresh=fresh)
    assert list(factors) == ["vgg16/conv4_1/kernel"]
    # By hand: conv1_1 to conv3_3 and the pools before conv4_1, in NumPy's own size of the result.
    x = images
    for block, count in enumerate((2, 2, 3), start=1):
        for index in range(1, count + 1):
            layer = params["vgg16"][f"conv{block}_{index}"]
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + layer["bias"])
        x = -jax.lax.reduce_window(-x, jnp.inf, jax.lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    size = np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))
    assert size > 20
    np.testing.assert_allclose(factors["vgg16/conv4_1/kernel"], 1 / size, rtol=1e-4)
    changed = [
        path
        for path, values in flax.traverse_util.flatten_dict(scaled, sep="/").items()
        if not np.array_equal(values, flax.traverse_util.flatten_dict(params, sep="/")[path])
    ]
    assert changed == ["vgg16/conv4_1/kernel"]
    loud, calm = (np.abs(ssd.apply(MODEL, tree, images).conf).max() for tree in (params, scaled))
    assert calm < 10 < loud


@pytest.mark.parametrize("fresh", [kernels([*LAYERS, "fc6", "fc7"]), {"loc0/kernel"}])
def test_a_backbone_that_is_whole_stays_as_it_is(params, images, fresh):
    found, factors = calibration.calibrate(MODEL, params, images, fresh=fresh)
    assert not factors
    assert found is params
