"""Whose names mean what, with cheap arrays; test_weights_parity shows what they compute."""

import hashlib
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weight_files
from golden import make_other_networks

import ssd_jax
from ssd_jax import build, errors, third_party
from ssd_jax import config as config_lib
from ssd_jax.data import classes
from ssd_jax.models import ssd
from ssd_jax.weights import hub, layouts, loading, reader, recognition

CAFFE_SOURCES = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2", "conv10_2")


def cheap(name, shape):
    """Different in every entry of a name, and for every name."""
    size = int(np.prod(shape))
    return (np.arange(size, dtype=np.float32) % 8191 + zlib.crc32(name.encode()) % 97).reshape(
        shape
    )


def fits(weights):
    """What `loading.fit` gives for a whole SSD of these weights."""
    config, names = third_party.describe(weights)
    model = build.model(config.model, len(names))
    return loading.fit(ssd.abstract_params(model, build.input_size(config.model)), weights)


def caffe_layers(whose, side):
    """Somebody's SSD as the authors' release stores the same network: BGR, their names."""
    backbone, norm, extras, loc, conf = make_other_networks.PARTS[whose]
    shapes = make_other_networks.ssd_shapes(whose, side)
    state = {name: cheap(name, shape) for name, shape in shapes.items()}
    names = {
        f"{backbone}.{n}": f"conv{block}"
        for (n, _, _), block in zip(
            make_other_networks.convolutions(),
            [f"{b}_{n}" for b, count in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, count + 1)],
            strict=True,
        )
    }
    names |= {f"{backbone}.31": "fc6", f"{backbone}.33": "fc7"}
    names |= {f"{extras}.{n}": f"conv{6 + n // 2}_{n % 2 + 1}" for n in range(10)}
    names |= {f"{loc}.{n}": f"{source}_mbox_loc" for n, source in enumerate(CAFFE_SOURCES)}
    names |= {f"{conf}.{n}": f"{source}_mbox_conf" for n, source in enumerate(CAFFE_SOURCES)}
    layers = {
        caffe: [state[f"{torch}.weight"], state[f"{torch}.bias"]]
        for torch, caffe in names.items()
        if f"{torch}.weight" in state
    }
    layers["conv1_1"][0] = layers["conv1_1"][0][:, ::-1]
    return state, {**layers, "conv4_3_norm": [state[f"{norm}.weight"]]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whose", "side", "old"), [("amdegroot", 300, True), ("lufficc", 512, False)]
)
def test_caffes_ssd_is_the_same_network(tmp_path, whose, side, old):
    state, layers = caffe_layers(whose, side)
    weight_files.torch_zip(tmp_path / "torch", state)
    weight_files.caffe(tmp_path / "caffe", layers, old=old)
    theirs, caffes = (loading.read(tmp_path / kind) for kind in ("torch", "caffe"))
    assert caffes.layout.conventions.mean == (123, 117, 104)
    assert not caffes.layout.conventions.clip_priors  # the authors clip none
    assert set(theirs.arrays) == set(caffes.arrays)
    for name, array in theirs.arrays.items():
        np.testing.assert_array_equal(caffes.arrays[name], array, err_msg=name)
    _, report = fits(caffes)
    assert (report.fresh, report.ignored) == ({}, {})


@pytest.mark.slow
def test_fc6_and_fc7_are_decimated_as_the_formula_says(tmp_path):
    # Entry (o, i, r, c) of fc6 is 7 o + 3 i + 5 r + 11 c, modulo a prime; fc7 as well.
    o, i, r, c = (np.arange(n, dtype=np.int32) for n in (4096, 512, 7, 7))
    fc6 = (7 * o[:, None, None, None] + 3 * i[:, None, None] + 5 * r[:, None] + 11 * c) % 1009
    fc7 = (7 * o[:, None] + 3 * o) % 1009
    state = {
        **{n: cheap(n, s) for n, s in make_other_networks.torchvision_shapes().items()},
        "classifier.0.weight": fc6.astype(np.float16).reshape(4096, 512 * 49),
        "classifier.0.bias": o.astype(np.float32),
        "classifier.3.weight": fc7.astype(np.float16),
        "classifier.3.bias": o.astype(np.float32) + 1,
        "classifier.6.weight": np.zeros((1000, 4096), np.float16),
        "classifier.6.bias": np.zeros(1000, np.float32),
    }
    weight_files.torch_zip(tmp_path / "vgg16", state)
    found = loading.read(tmp_path / "vgg16")
    rows, columns, inputs, outputs = np.ogrid[0:3, 0:3, 0:512, 0:1024]
    expected = (7 * 4 * outputs + 3 * inputs + 5 * 3 * rows + 11 * 3 * columns) % 1009
    np.testing.assert_array_equal(found.arrays["vgg16/fc6/kernel"], expected)
    inputs, outputs = np.ogrid[0:1024, 0:1024]
    np.testing.assert_array_equal(
        found.arrays["vgg16/fc7/kernel"][0, 0], (7 * 4 * outputs + 3 * 4 * inputs) % 1009
    )
    np.testing.assert_array_equal(found.arrays["vgg16/fc6/bias"], np.arange(0, 4096, 4))
    np.testing.assert_array_equal(found.arrays["vgg16/fc7/bias"], np.arange(0, 4096, 4) + 1)
    assert found.ignored == {"classifier.6.weight": (1000, 4096), "classifier.6.bias": (1000,)}

    # The same classifier in Keras' order: inputs by row, column, channel; kernels (in, out).
    keras = {f"{n}": cheap(n, s) for n, s in make_other_networks.keras_shapes().items()}
    top = {
        "fc1/fc1/kernel:0": fc6.astype(np.float16).transpose(2, 3, 1, 0).reshape(-1, 4096),
        "fc1/fc1/bias:0": state["classifier.0.bias"],
        "fc2/fc2/kernel:0": fc7.astype(np.float16).T,
        "fc2/fc2/bias:0": state["classifier.3.bias"],
        "predictions/predictions/bias:0": state["classifier.6.bias"],
    }
    weight_files.hdf5(tmp_path / "vgg16.h5", {**keras, **top})
    from_keras = loading.read(tmp_path / "vgg16.h5")
    for name in ("fc6/kernel", "fc6/bias", "fc7/kernel", "fc7/bias"):
        np.testing.assert_array_equal(
            from_keras.arrays[f"vgg16/{name}"], found.arrays[f"vgg16/{name}"], err_msg=name
        )
    assert from_keras.ignored == {"predictions/predictions/bias:0": (1000,)}


@pytest.fixture
def features():
    return {n: cheap(n, s) for n, s in make_other_networks.torchvision_shapes().items()}


@pytest.mark.parametrize(
    "classifier", [{}, {"classifier.0.bias": np.full(4096, np.nan, np.float32)}]
)
def test_a_vgg_without_classifier_is_that_of_caffe(features, classifier, tmp_path):
    weight_files.torch_zip(tmp_path / "w", {**features, **classifier})
    weights = loading.read(tmp_path / "w")
    np.testing.assert_allclose(
        weights.layout.conventions.mean, [122.99925, 116.9991, 103.9992], rtol=1e-9
    )
    first = weights.arrays["vgg16/conv1_1/kernel"]  # of torchvision's 255 (x / 255 - mean): as is
    np.testing.assert_array_equal(first, features["features.0.weight"].transpose(2, 3, 1, 0))
    assert set(weights.ignored) == set(classifier)


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.module."])
def test_amdegroots_base_weights_have_bare_numbers(features, prefix, tmp_path):
    state = {n.replace("features.", prefix): array for n, array in features.items()}
    state |= {
        f"{prefix}31.weight": cheap("fc6", (1024, 512, 3, 3)),
        f"{prefix}33.bias": cheap("fc7", (1024,)),
    }
    weight_files.torch_legacy(tmp_path / "w", state)
    weights = loading.read(tmp_path / "w")
    assert "reduced" in weights.layout.title
    assert len(weights.arrays) == 28
    np.testing.assert_array_equal(
        weights.arrays["vgg16/fc6/kernel"], cheap("fc6", (1024, 512, 3, 3)).transpose(2, 3, 1, 0)
    )


def test_caffes_old_classifier_shapes_are_read(tmp_path):
    bias = np.zeros(4096, np.float32)
    layers = {
        name: [np.zeros((o, i, 3, 3), np.float32), np.zeros(o, np.float32)]
        for name, (_, i, o) in zip(layouts.BODY, make_other_networks.convolutions(), strict=True)
    }
    layers["fc7"] = [cheap("fc7", (4096, 4096)), bias]
    weight_files.caffe(tmp_path / "w", layers, old=True)  # as (1, 1, 4096, 4096)
    kernel = loading.read(tmp_path / "w").arrays["vgg16/fc7/kernel"]
    np.testing.assert_array_equal(kernel[0, 0].T, layers["fc7"][0][::4, ::4])


@pytest.mark.parametrize("old", [False, True])
def test_caffes_vgg_with_reduced_fc_layers_is_read(tmp_path, old):
    # As VGG_ILSVRC_16_layers_fc_reduced has them, at an eighth of the width.
    model = build.model(config_lib.ModelConfig(width=0.125), 20)
    params = ssd.abstract_params(model, (300, 300))
    state, layers = {}, {}
    for name in (*layouts.BODY, "fc6", "fc7"):
        *window, inputs, outputs = params["vgg16"][name]["kernel"].shape
        state[name] = cheap(name, (outputs, inputs, *window))
        layers[name] = [state[name], cheap(name, (outputs,))]
    layers["conv1_1"][0] = state["conv1_1"][:, ::-1]  # blue, green, red
    weight_files.caffe(tmp_path / "w", layers, old=old)
    weights = loading.read(tmp_path / "w", backbone="vgg16")
    assert "Caffe" in weights.layout.title
    assert not loading.has_heads(weights)
    loaded, report = loading.fit(params, weights)
    assert len(report.loaded) == 30
    assert report.ignored == {}
    for name, kernel in state.items():
        ours = loaded["vgg16"][name]["kernel"]
        np.testing.assert_array_equal(ours, kernel.transpose(2, 3, 1, 0), err_msg=name)
        np.testing.assert_array_equal(loaded["vgg16"][name]["bias"], layers[name][1])


@pytest.mark.parametrize(
    "names",
    ["block1_conv1/{0}_W_1:0 {0}_b_1:0", "model_weights/block1_conv1/{0}/kernel:0 bias:0",
     "layers/block1_conv1/vars/0 1"],
)  # fmt: skip
def test_kerass_namings_are_one(names, tmp_path):
    kernel, bias = names.format("block1_conv1").split()
    arrays = {kernel: np.zeros((3, 3, 3, 64)), f"{kernel.rpartition('/')[0]}/{bias}": np.zeros(64)}
    layout, named = recognition.recognize(Path("w.h5"), arrays)
    assert "Keras" in layout.title
    assert set(named) == {"block1_conv1/kernel", "block1_conv1/bias"}


def small_vgg(kernel, *, channels_first):
    """A VGG-16 of one channel by names as `kernel` makes them of block and number, and biases."""
    shape = (2, 3, 3, 3) if channels_first else (3, 3, 3, 2)
    arrays = {}
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, count + 1):
            name = kernel.format(block, number)
            arrays[name] = cheap(name, shape)
            arrays[name.replace("kernel", "bias")] = cheap(name, (2,))
    return arrays


@pytest.mark.parametrize(
    "optimizer",
    [
        "optimizer_weights/training/Adam/{}/kernel/v:0",  # before Keras 2.11
        "optimizer_weights/Adam/v/{}/kernel:0",
        "optimizer_weights/adam/{}/kernel_velocity",
        "optimizer/vars/{}/1",
    ],
)
def test_moments_of_kerass_optimiser_are_no_weights(optimizer, tmp_path):
    kernel = "model_weights/block{0}_conv{1}/block{0}_conv{1}/kernel:0"
    arrays = small_vgg(kernel, channels_first=False)
    moments = {
        optimizer.format(name.split("/")[1]): np.full_like(array, np.nan)
        for name, array in arrays.items()
        if "kernel" in name
    }
    weight_files.hdf5(tmp_path / "w.h5", arrays | moments)
    weights = loading.read(tmp_path / "w.h5")
    assert set(weights.ignored) == set(moments)
    assert len(weights.arrays) == 26
    np.testing.assert_array_equal(
        weights.arrays["vgg16/conv2_1/kernel"], arrays[kernel.format(2, 1)]
    )


def test_two_networks_by_the_same_names_are_refused(tmp_path):
    kernel = "{}/block{}_conv{}/kernel:0"
    arrays = small_vgg(kernel.format("left", "{0}", "{1}"), channels_first=False)
    arrays |= small_vgg(kernel.format("right", "{0}", "{1}"), channels_first=False)
    weight_files.hdf5(tmp_path / "w.h5", arrays)
    both = "left/block1_conv1/bias:0 and right/block1_conv1/bias:0 are both block1_conv1/bias"
    with pytest.raises(errors.UserError, match=rf"w\.h5: {both}"):
        loading.read(tmp_path / "w.h5")


def test_moments_of_torchs_optimiser_are_no_weights(tmp_path):
    shapes = make_other_networks.torchvision_shapes()
    features = {n: cheap(n, tuple(min(side, 3) for side in s)) for n, s in shapes.items()}
    moments = {name: np.full_like(array, np.nan) for name, array in features.items()}
    content = {
        "model": features,
        "optimizer": {"state": dict(enumerate({"exp_avg": m} for m in moments.values()))},
        "optimizer_state": moments,  # by name
    }
    weight_files.torch_zip(tmp_path / "w", content)
    weights = loading.read(tmp_path / "w")
    assert all(np.isfinite(array).all() for array in weights.arrays.values())
    assert len(weights.arrays) == len(features)
    assert len(weights.ignored) == 2 * len(features)


@pytest.mark.parametrize("lost", ["features.28.weight", "features.0.bias"])
def test_what_is_no_whole_vgg16_is_refused_by_entry(features, lost, tmp_path):
    del features[lost]
    weight_files.torch_zip(tmp_path / "w", features)
    with pytest.raises(errors.UserError, match=rf"w looks like torchvision.*has no {lost}"):
        loading.read(tmp_path / "w")


def test_another_shape_is_refused_by_its_own_name(features, tmp_path):
    features["features.5.weight"] = np.zeros((64, 64, 3, 3), np.float32)
    weight_files.torch_zip(tmp_path / "w", features)
    weights = loading.read(tmp_path / "w")
    params = {"vgg16": {"conv2_1": {"kernel": jnp.zeros((3, 3, 64, 128))}}}
    with pytest.raises(
        errors.UserError, match=r"features\.5\.weight has shape \(3, 3, 64, 64\).*\(3, 3, 64, 128\)"
    ):
        loading.fit(params, weights)


def test_a_backbone_is_no_detector(features, tmp_path):
    weight_files.torch_zip(tmp_path / "w", features)
    with pytest.raises(errors.UserError, match=r"no.* the heads.*--config\.model\.pretrained"):
        ssd_jax.load_detector(tmp_path / "w")


def torchvision_ssd300():
    """Names and shapes of torchvision's ssd300_vgg16 with 91 logits; its layers are amdegroot's."""
    names = {f"vgg.{n}": f"backbone.features.{n}" for n in range(22)}
    names |= {f"vgg.{22 + 2 * n}": f"backbone.extra.0.{2 * n - 1}" for n in (1, 2, 3)}
    names |= {"vgg.31": "backbone.extra.0.7.1", "vgg.33": "backbone.extra.0.7.3"}
    names |= {f"extras.{n}": f"backbone.extra.{1 + n // 2}.{n % 2 * 2}" for n in range(8)}
    names |= {f"loc.{n}": f"head.regression_head.module_list.{n}" for n in range(6)}
    names |= {f"conf.{n}": f"head.classification_head.module_list.{n}" for n in range(6)}
    shapes = {}
    for name, (outputs, *others) in make_other_networks.ssd_shapes("amdegroot", 300).items():
        layer, _, kind = name.rpartition(".")
        outputs = outputs // 21 * 91 if layer.startswith("conf") else outputs
        renamed = f"{names[layer]}.{kind}" if layer in names else "backbone.scale_weight"
        shapes[renamed] = (outputs, *others)
    return shapes


@pytest.mark.slow
def test_cocos_unused_ids_are_never_detected(tmp_path, monkeypatch):
    # torchvision's detector, by its name and from a folder. In its head of 91 logits the bias alone
    # speaks: id 12, which is no class, would win everywhere; behind it id 13, "stop sign", which
    # is class 12 of the 80.
    assert classes.COCO[11] == "stop sign"
    state = {name: np.zeros(shape, np.float32) for name, shape in torchvision_ssd300().items()}
    assert len(state) == 71  # as many as the published file has
    for level, boxes in enumerate(make_other_networks.BOXES[300]):
        bias = np.zeros((boxes, 91), np.float32)
        bias[:, 12], bias[:, 13] = 5, 4
        state[f"head.classification_head.module_list.{level}.bias"] = bias.reshape(-1)
    published = hub.NAMES["ssd300-coco"]
    path = tmp_path / published.filename
    weight_files.torch_zip(path, state)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    monkeypatch.setitem(hub.NAMES, "ssd300-coco", published._replace(sha256=digest))
    monkeypatch.setenv("SSD_JAX_MIRROR", str(tmp_path))
    detector = ssd_jax.load_detector("ssd300-coco")
    path.unlink()
    assert detector.class_names == classes.COCO
    assert detector.config.model.clip_prior_sizes
    (found,) = detector([np.zeros((300, 300, 3), np.uint8)], score_threshold=0.1)
    assert set(found.labels) == {12}
    # The probability is that among all 91.
    expected = np.exp(4) / (np.exp(5) + np.exp(4) + 89)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


def test_merged_gaps_keep_the_probabilities_of_the_classes():
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    before, after = jax.nn.softmax(logits), jax.nn.softmax(ssd.merge_unused_logits(logits, (2, 5)))
    np.testing.assert_allclose(after[:, 1:], np.asarray(before)[:, [1, 3, 4, 6]], rtol=1e-6)
    np.testing.assert_allclose(after[:, 0], np.asarray(before)[:, [0, 2, 5]].sum(1), rtol=1e-6)


def test_real_convolutions_load(shared):
    weights = loading.read(shared / "weights/vgg16_conv1_to_conv3.npz")
    model = build.model(config_lib.ModelConfig(), 20)
    params = ssd.abstract_params(model, (300, 300))
    _, report = loading.fit(params, weights)
    assert len(report.loaded) == 14
    assert report.ignored == {}
    assert weights.arrays["vgg16/conv3_3/kernel"].shape == (3, 3, 256, 256)


def test_real_mobilenet_is_read(shared):
    arrays = reader.read(shared / "weights/mobilenet_v2_imagenet.npz")
    assert sum(array.size for array in arrays.values()) == 3_489_097
    assert arrays["block0/depthwise/kernel"].shape == (3, 3, 1, 32)


PREFIXES = (
    "_orig_mod.",  # torch.compile
    "module.",  # DataParallel
    "detector.",  # Lightning, an attribute of the module
    "model_ema.module.",
    "state_dict.model.net.",
    "ckpt/epoch 7/",
    "any_string",
)


def small_of(layout, number=1.0):
    """All entries of a layout, of 4 channels for 3, by its names."""
    kernel = (4, 3, 3, 3) if layout.channels_first else (3, 3, 3, 4)
    return {
        name: np.full(kernel if ours.endswith("/kernel") else 4, number, np.float32)
        for name, ours in layout.entries.items()
    }


def under(prefix, arrays):
    return {f"{prefix}{name}": array for name, array in arrays.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.title)
def test_every_layout_is_known_under_any_prefix(layout, prefix):
    plain = recognition.recognize(Path("w"), small_of(layout))
    arrays = under(prefix, small_of(layout))
    arrays |= {
        "epoch": np.ones(1),
        "criterion.weights": np.ones(3),
        "optimizer.state.0.exp_avg": np.ones((4, 3, 3, 3)),
        **under("optimizer.exp_avg.", small_of(layout, np.nan)),
    }
    found, named = recognition.recognize(Path("w"), arrays)
    assert found == plain[0]
    assert {name: named[name] for name in layout.entries} == {
        name: f"{prefix}{name}" for name in layout.entries
    }


def test_what_torch_puts_in_the_middle_of_names_is_passed_over():
    (layout,) = (one for one in layouts.LAYOUTS if one.title == "torchvision's SSD")
    names = {name: name.replace("backbone.", "backbone._orig_mod.") for name in layout.entries}
    arrays = {names[name]: array for name, array in small_of(layout).items()}
    found, named = recognition.recognize(Path("w"), under("model.", arrays))
    assert found == layout
    assert all(named[name] == f"model.{own}" for name, own in names.items())


@pytest.fixture
def resnet():
    return small_of(layouts.TORCHVISION["resnet18"])


@pytest.mark.parametrize(
    ("model", "average"),
    [
        ("model.", "model_ema.module."),
        ("state_dict.", "state_dict_ema."),
        ("model.", "ema."),
        ("", "ema_model."),
        ("online_model.", "averaged_model.module."),
    ],
)
def test_of_a_model_and_its_average_the_average_is_taken_and_said(resnet, model, average):
    for order in ((model, average), (average, model)):
        arrays = {}
        for prefix in order:
            arrays |= under(prefix, resnet)
        layout, named = recognition.recognize(Path("w"), arrays)
        assert named["conv1.weight"] == f"{average}conv1.weight"
        assert layout.title == (
            f"torchvision's ResNet-18 under {average!r} ({model!r} is whole too)"
        )


def test_an_average_without_statistics_of_batchnorm_is_not_whole(resnet):
    average = {name: array for name, array in resnet.items() if "running" not in name}
    arrays = {**under("ema.", average), **under("model.", resnet)}
    layout, named = recognition.recognize(Path("w"), arrays)
    assert named["conv1.weight"] == "model.conv1.weight"
    assert layout.title == "torchvision's ResNet-18"


def test_one_network_under_two_names_is_taken_and_two_networks_are_not(resnet):
    arrays = {**under("left.", resnet), **under("right.", resnet)}
    _, named = recognition.recognize(Path("w"), arrays)
    assert named["conv1.weight"] in arrays
    arrays["right.conv1.weight"] = arrays["right.conv1.weight"] + 1
    with pytest.raises(errors.UserError, match=r"w: left.* and right.* are both .*; give a file"):
        recognition.recognize(Path("w"), arrays)


def test_what_lacks_an_entry_under_a_prefix_is_told_its_whole_name(resnet, tmp_path):
    del resnet["layer3.0.conv2.weight"]
    weight_files.torch_zip(tmp_path / "w", {"model": resnet})
    message = r"w looks like torchvision's ResNet-18 and has no model\.layer3\.0\.conv2\.weight"
    with pytest.raises(errors.UserError, match=message):
        loading.read(tmp_path / "w")


def test_an_unknown_file_is_told_the_nearest_layout_and_what_it_lacks_first(resnet, tmp_path):
    del resnet["conv1.weight"]
    weight_files.torch_zip(tmp_path / "w", {"net": resnet, "head.weight": np.ones(2, np.float32)})
    weights = loading.read(tmp_path / "w")
    message = (
        r"w.* it comes nearest to torchvision's ResNet-18, of which it has no net\.conv1\.weight"
    )
    with pytest.raises(errors.UserError, match=message):
        loading.heads(weights)
    with pytest.raises(errors.UserError, match=message):
        loading.fit({"resnet18": {"conv1": {"kernel": np.ones(1)}}}, weights)


def test_what_is_like_nothing_is_told_so(tmp_path):
    weight_files.torch_zip(tmp_path / "w", {"x.y": np.ones(2, np.float32)})
    with pytest.raises(errors.UserError, match="no layout that is known has any of its names"):
        loading.fit({"resnet18": {"conv1": {"kernel": np.ones(1)}}}, loading.read(tmp_path / "w"))


def test_our_own_names_are_not_taken_for_third_party_ones():
    (folded,) = (one for one in layouts.LAYOUTS if "folded" in one.title)
    arrays = {ours: np.ones(3, np.float32) for ours in folded.entries.values()}
    assert recognition.recognize(Path("w"), arrays)[0] is layouts.OURS


def test_many_names_alike_take_little_time():
    arrays = {f"{'a.' * (n % 100)}{n}.conv1.weight": np.ones(1) for n in range(16_000)}
    began = time.process_time()
    recognition.recognize(Path("w"), arrays)
    recognition.nearest(arrays)
    assert time.process_time() - began < 5
