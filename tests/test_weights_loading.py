import fuzz_readers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax import errors
from ssd_jax.weights import layouts, loading


@pytest.fixture
def params():
    return {
        "vgg16": {"conv1_1": {"kernel": jnp.zeros((3, 3, 3, 8)), "bias": jnp.zeros(8)}},
        "loc0": {"kernel": jnp.zeros((3, 3, 8, 16)), "bias": jnp.zeros(16)},
        "conf0": {"kernel": jnp.zeros((3, 3, 8, 12)), "bias": jnp.zeros(12)},
    }


@pytest.fixture
def npz(tmp_path):
    """Writes arrays as an .npz and reads them."""

    def read(**arrays):
        np.savez(tmp_path / "w.npz", **{k.replace("__", "/"): v for k, v in arrays.items()})
        return loading.read(tmp_path / "w.npz")

    return read


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_arrays_replace_the_parameters_of_their_layer(params, npz):
    kernel = random(3, 3, 3, 8)
    loaded, report = loading.fit(params, npz(conv1_1__kernel=kernel, other__bias=np.ones(3)))
    np.testing.assert_array_equal(loaded["vgg16"]["conv1_1"]["kernel"], kernel)
    np.testing.assert_array_equal(loaded["loc0"]["kernel"], params["loc0"]["kernel"])
    assert not params["vgg16"]["conv1_1"]["kernel"].any()  # the argument is not changed
    assert report.loaded == {"vgg16/conv1_1/kernel": (3, 3, 3, 8)}
    assert report.ignored == {"other/bias": (3,)}
    assert list(report.fresh) == [
        "vgg16/conv1_1/bias", "loc0/kernel", "loc0/bias", "conf0/kernel", "conf0/bias",
    ]  # fmt: skip
    lines = report.lines()
    assert lines == [
        "1 loaded: vgg16",
        "5 freshly initialized: vgg16, loc0, conf0",
        "1 ignored: other",
    ]
    whole = report.whole().splitlines()
    assert whole[whole.index("1 loaded") + 1] == "  vgg16/conv1_1/kernel (3, 3, 3, 8)"
    assert whole[whole.index("1 ignored") + 1 :] == ["  other/bias (3,)"]


def test_full_names_are_found_too(params, npz):
    bias = np.arange(8, dtype=np.float32)
    loaded, _ = loading.fit(params, npz(vgg16__conv1_1__bias=bias))
    np.testing.assert_array_equal(loaded["vgg16"]["conv1_1"]["bias"], bias)


def test_a_head_of_other_classes_is_initialized_and_named(params, npz):
    weights = npz(
        loc0__bias=np.ones(16), conf0__bias=np.ones(84), conf0__kernel=np.ones((3, 3, 8, 84))
    )
    loaded, report = loading.fit(params, weights)
    assert loaded["loc0"]["bias"].all()
    assert not loaded["conf0"]["bias"].any()
    assert report.ignored == {"conf0/bias": (84,), "conf0/kernel": (3, 3, 8, 84)}


@pytest.mark.parametrize("name", ["conv1_1__bias", "loc0__bias"])
def test_another_shape_is_refused_by_name(params, npz, name):
    with pytest.raises(errors.UserError, match=rf"w\.npz.*{name[:4]}.*\(64,\).*\((8|16),\)"):
        loading.fit(params, npz(**{name: np.zeros(64, np.float32)}))


def test_a_file_of_another_network_is_refused(params, npz):
    with pytest.raises(errors.UserError, match=r"none of its arrays \(stem/kernel"):
        loading.fit(params, npz(stem__kernel=np.zeros(3)))


def test_another_mean_moves_into_the_bias(npz):
    # At a pixel whose neighbors are all in the image, both subtract what they say.
    weights = npz(conv1_1__kernel=random(3, 3, 3, 8), conv1_1__bias=random(8, seed=1))
    mean = (120.0, 110.0, 100.0)
    moved = loading.with_mean(weights, mean)
    patch = np.random.default_rng(2).uniform(0, 255, (3, 3, 3))

    def answer(weights, mean):
        kernel, bias = (weights.arrays[f"vgg16/conv1_1/{kind}"] for kind in ("kernel", "bias"))
        return np.einsum("hwi,hwio->o", patch - mean, kernel) + bias

    expected = answer(weights, layouts.CAFFE_MEAN)
    np.testing.assert_allclose(answer(moved, mean), expected, rtol=1e-5, atol=1e-3)
    assert loading.with_mean(weights, layouts.CAFFE_MEAN) is weights


@pytest.mark.parametrize(
    ("kernel", "bias", "said"),
    [
        ((3, 3, 3), (8,), r"conv1_1/kernel has shape \(3, 3, 3\)"),
        ((3, 3, 3, 8, 8), (8,), r"conv1_1/kernel has shape \(3, 3, 3, 8, 8\)"),
        ((3, 3, 4, 8), (8,), r"conv1_1/kernel has shape \(3, 3, 4, 8\)"),
        ((3, 3, 3, 8), (7,), r"conv1_1/bias has shape \(7,\).* \(8,\)"),
        ((3, 3, 3, 8), (1, 8), r"conv1_1/bias has shape \(1, 8\)"),
    ],
)
def test_another_mean_needs_a_convolution_of_colors(npz, kernel, bias, said):
    weights = npz(conv1_1__kernel=random(*kernel), conv1_1__bias=random(*bias))
    with pytest.raises(errors.UserError, match=rf"w\.npz: {said}"):
        loading.with_mean(weights, (1.0, 2.0, 3.0))


@pytest.mark.parametrize("kind", ["U5", "S3", "M8[s]", "m8[s]", "c8", "f4,i4", "V2"])
def test_what_is_no_number_is_refused_by_name(npz, kind):
    with pytest.raises(errors.UserError, match=r"w\.npz: conv1_1/bias is of type"):
        npz(conv1_1__bias=np.zeros(8, kind))


@pytest.mark.parametrize("kind", ["?", "i1", "u2", "f2", "f8"])
def test_all_numbers_become_float32(npz, kind):
    (array,) = npz(conv1_1__bias=np.ones(8, kind)).arrays.values()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, 1)


@pytest.mark.parametrize("lost", ["mean", "variance", "scale", "bias"])
def test_a_batch_norm_without_a_part_is_refused(npz, lost):
    parts = {f"extra0__{kind}": np.ones(4) for kind in ("mean", "variance", "scale", "bias")}
    del parts[f"extra0__{lost}"]
    with pytest.raises(errors.UserError, match=rf"w\.npz has no extra0/{lost}, which"):
        npz(**parts)


def test_a_batch_norm_of_several_lengths_is_refused(npz):
    parts = {f"extra0__{kind}": np.ones(4) for kind in ("variance", "scale", "bias")}
    with pytest.raises(errors.UserError, match=r"extra0/mean \(3,\), extra0/variance \(4,\)"):
        npz(**parts, extra0__mean=np.ones(3))


def test_two_names_of_one_parameter_are_refused(npz):
    arrays = {"conv1_1__bias": np.ones(8), "vgg16__conv1_1__bias": np.zeros(8)}
    with pytest.raises(errors.UserError, match=r"w\.npz: conv1_1/bias and vgg16/conv1_1/bias are"):
        npz(**arrays)


def test_altered_networks_are_loaded_or_refused():
    outcomes = fuzz_readers.load_altered(np.random.default_rng(1), 100)
    assert outcomes.total() == 100
    assert min(outcomes["loaded"], outcomes["refused"]) > 10


def test_parameters_stay_on_their_devices(params, npz):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    loaded, _ = loading.fit(jax.device_put(params, everywhere), npz(conv1_1__bias=np.ones(8)))
    assert loaded["vgg16"]["conv1_1"]["bias"].sharding == everywhere
