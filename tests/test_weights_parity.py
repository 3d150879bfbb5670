"""Detectors of other frameworks answer here as they do there."""

import ast
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import test_parity as torchvision_recipe
import weight_files
from golden import make_other_networks

import ssd_jax
from ssd_jax import augment, build
from ssd_jax.data import classes
from ssd_jax.models import ssd, vgg
from ssd_jax.weights import layouts, loading, reader


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "parity/torchvision_ssd300.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def state_dict(golden):
    """The recipe's weights by torchvision's names."""
    pairs = zip(golden["names"], golden["shapes"], strict=True)
    return {
        str(name): torchvision_recipe.weight(str(name), ast.literal_eval(str(shape)))
        for name, shape in pairs
    }


@pytest.fixture(scope="module", params=["zip", "legacy"])
def torchvision_file(request, state_dict, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "ssd300.pth"
    write = {"zip": weight_files.torch_zip, "legacy": weight_files.torch_legacy}[request.param]
    write(path, state_dict)
    yield path
    path.unlink()


@pytest.mark.slow
def test_both_forms_of_pth_hold_torchvisions_entries(torchvision_file, state_dict):
    arrays = reader.read(torchvision_file)
    assert list(arrays) == list(state_dict)
    assert all(np.array_equal(arrays[name], state_dict[name]) for name in arrays)


@pytest.mark.slow
def test_a_pth_of_torchvision_detects_what_torchvision_detects(torchvision_file, golden):
    detector = ssd_jax.load_detector(torchvision_file)
    assert detector.class_names == classes.VOC
    (found,) = detector([torchvision_recipe.make_image()], score_threshold=0.01)
    np.testing.assert_allclose(found.scores, golden["scores"], atol=1e-4)
    np.testing.assert_array_equal(found.labels, golden["labels"])
    # Two networks in float32 that differ by 1e-6 relative, in an image of 500 pixels: 5e-4.
    np.testing.assert_allclose(found.boxes, golden["boxes"], atol=5e-3)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == np.float32, detector.params))


@pytest.fixture(scope="module")
def others():
    with np.load(make_other_networks.PLACE) as file:
        return dict(file)


def predictions(detector, image):
    """`[P, 4]` loc and `[P, C]` conf of an image of the network's size."""
    config = detector.config.model
    model = build.model(config, len(detector.class_names))
    images = augment.normalize(image[None], mean=build.mean(config))
    loc, conf = jax.jit(functools.partial(ssd.apply, model))(detector.params, images)
    return loc[0], conf[0]


def relative(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize(("whose", "side"), [("amdegroot", 300), ("lufficc", 512)])
def test_an_ssd_of_others_answers_as_theirs(others, tmp_path, whose, side):
    state = make_other_networks.make(make_other_networks.ssd_shapes(whose, side))
    if whose == "lufficc":  # as its CheckPointer writes it
        content = {"model": state, "optimizer": {"state": {}, "lr": 1e-3}, "iteration": 120000}
        weight_files.torch_legacy(tmp_path / "theirs", content)
    else:
        weight_files.torch_zip(tmp_path / "theirs", state)
    detector = ssd_jax.load_detector(tmp_path / "theirs")
    config = detector.config.model
    assert (config.image_size, config.prior_sizes, config.clip_priors) == (side, "voc", True)
    loc, conf = predictions(detector, make_other_networks.make_image(side))
    rows = make_other_networks.rows(side)
    assert relative(loc[rows], others[f"{whose}_loc"]) < 1e-4
    assert relative(conf[rows], others[f"{whose}_conf"]) < 1e-4


def backbone_of(weights):
    """`[4, 4, 512]` conv5_3 of the small image, with the backbone's weights of a file."""
    model = vgg.VGG()
    image = make_other_networks.make_image(make_other_networks.SMALL)
    images = augment.normalize(image[None], mean=weights.layout.conventions.mean)
    like = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    params, report = loading.fit({"vgg16": zeros}, weights)
    assert len(report.loaded) >= 26
    kept = []

    def record(next_call, args, kwargs, context):
        result = next_call(*args, **kwargs)
        if context.module.name == "conv5_3":
            kept.append(result)
        return result

    with nn.intercept_methods(record):
        model.apply({"params": params["vgg16"]}, images)
    return jax.nn.relu(kept[0][0])


def test_kerass_vgg_answers_as_theirs(others, tmp_path):
    arrays = make_other_networks.make(make_other_networks.keras_shapes())
    weight_files.hdf5(tmp_path / "vgg16_notop.h5", arrays)
    weights = loading.read(tmp_path / "vgg16_notop.h5")
    assert weights.layout.conventions.mean == (123.68, 116.779, 103.939)
    assert relative(backbone_of(weights), others["keras_conv5_3"]) < 1e-4


@pytest.mark.parametrize("write", [weight_files.torch_zip, weight_files.safetensors])
def test_torchvisions_classifier_answers_as_theirs(others, tmp_path, write):
    # At the borders too: its zeros, which pad scaled images, stand for the mean that we subtract.
    arrays = make_other_networks.make(make_other_networks.torchvision_shapes())
    write(tmp_path / "vgg16", {**arrays, "classifier.0.bias": np.zeros(4096, np.float32)})
    weights = loading.read(tmp_path / "vgg16")
    np.testing.assert_allclose(
        weights.layout.conventions.mean, [123.675, 116.28, 103.53], rtol=1e-6
    )
    assert relative(backbone_of(weights), others["torchvision_conv5_3"]) < 1e-4


def test_our_mean_differs_from_torchvisions_at_the_border_only(tmp_path):
    arrays = make_other_networks.make(make_other_networks.torchvision_shapes())
    first = {**arrays, "classifier.0.bias": np.zeros(4096, np.float32)}
    weight_files.torch_zip(tmp_path / "vgg16", first)
    theirs = loading.read(tmp_path / "vgg16")
    ours = loading.with_mean(theirs, layouts.CAFFE_MEAN)
    image = make_other_networks.make_image(make_other_networks.SMALL)[None]

    def conv1_1(weights):
        kernel, bias = (weights.arrays[f"vgg16/conv1_1/{kind}"] for kind in ("kernel", "bias"))
        images = augment.normalize(image, mean=weights.layout.conventions.mean)
        numbers = ("NHWC", "HWIO", "NHWC")
        return bias + jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    expected, got = conv1_1(theirs), conv1_1(ours)
    difference = np.abs(expected - got)[0].max(axis=-1)
    assert difference[1:-1, 1:-1].max() < 1e-4
    assert 1e-3 < difference[0].max() < 0.1  # 0.7 of 255 gray levels at three of nine positions
