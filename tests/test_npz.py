import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax import errors
from ssd_jax.weights import npz


@pytest.fixture
def params():
    return {
        "vgg16": {"conv1_1": {"kernel": jnp.zeros((3, 3, 3, 8)), "bias": jnp.zeros(8)}},
        "loc0": {"kernel": jnp.zeros((3, 3, 8, 16)), "bias": jnp.zeros(16)},
    }


def test_arrays_replace_the_parameters_of_their_layer(params, tmp_path):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype(np.float32)
    np.savez(tmp_path / "w.npz", **{"conv1_1/kernel": kernel, "other/bias": np.ones(3)})
    loaded, count = npz.load_into(params, tmp_path / "w.npz")
    assert count == 1
    np.testing.assert_array_equal(loaded["vgg16"]["conv1_1"]["kernel"], kernel)
    np.testing.assert_array_equal(loaded["loc0"]["kernel"], params["loc0"]["kernel"])
    assert not params["vgg16"]["conv1_1"]["kernel"].any()  # the argument is not changed


def test_full_names_are_found_too(params, tmp_path):
    np.savez(tmp_path / "w.npz", **{"vgg16/conv1_1/bias": np.arange(8, dtype=np.float32)})
    loaded, _ = npz.load_into(params, tmp_path / "w.npz")
    np.testing.assert_array_equal(loaded["vgg16"]["conv1_1"]["bias"], np.arange(8))


def test_another_shape_is_refused_by_name(params, tmp_path):
    np.savez(tmp_path / "w.npz", **{"conv1_1/bias": np.zeros(64, np.float32)})
    with pytest.raises(errors.UserError, match=r"w\.npz.*vgg16/conv1_1/bias.*\(64,\).*\(8,\)"):
        npz.load_into(params, tmp_path / "w.npz")


def test_a_file_of_another_network_is_refused(params, tmp_path):
    np.savez(tmp_path / "w.npz", **{"stem/kernel": np.zeros(3)})
    with pytest.raises(errors.UserError, match="none of its arrays"):
        npz.load_into(params, tmp_path / "w.npz")


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 broken"])
def test_what_is_no_npz_is_refused_by_name(params, tmp_path, content):
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(errors.UserError, match=r"w\.npz"):
        npz.load_into(params, tmp_path / "w.npz")


def test_a_missing_file_is_named(params, tmp_path):
    with pytest.raises(errors.UserError, match=r"nowhere\.npz"):
        npz.load_into(params, tmp_path / "nowhere.npz")
