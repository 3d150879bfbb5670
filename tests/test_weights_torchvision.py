"""torchvision's classifiers as backbones: what they compute, and which file is whose."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
import pytest
import weight_files
from golden import make_backbones

from ssd_jax import augment, errors
from ssd_jax.models import ssd
from ssd_jax.weights import layouts, loading

RESNETS = {
    "resnet18": ((2, 2, 2, 2), 2),
    "resnet34": ((3, 4, 6, 3), 2),
    "resnet50": ((3, 4, 6, 3), 3),
    "resnet101": ((3, 4, 23, 3), 3),
    "resnet152": ((3, 8, 36, 3), 3),
}
VGGS = {"vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def golden():
    with np.load(make_backbones.PLACE) as file:
        return dict(file)


# --- What they compute ---


def shapes_of(backbone):
    """Shapes of the network's parameters, by path."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    init = ssd.BACKBONES[backbone].build().init
    params = jax.eval_shape(init, jax.random.key(0), image)["params"]
    return flax.traverse_util.flatten_dict({backbone: params}, sep="/")


def state_dict(backbone):
    """The recipe's weights by torchvision's names."""
    state, shapes = {}, shapes_of(backbone)
    for layer, (conv, norm) in ssd.BACKBONES[backbone].torchvision.items():
        *kernel, inputs, outputs = shapes[f"{backbone}/{layer}/kernel"].shape
        names = {f"{conv}.weight": (outputs, inputs, *kernel)}
        names |= {f"{norm}.{kind}": (outputs,) for kind in NORM[:4]} if norm else {}
        names |= {} if norm else {f"{conv}.bias": (outputs,)}
        state |= {name: make_backbones.weight(name, shape) for name, shape in names.items()}
        if norm:
            state[f"{norm}.num_batches_tracked"] = np.array([7])
    return state


def answers(weights, backbone, layers=()):
    """Maps of the small image, or what some layers give behind a ReLU; every 16th channel."""
    model = ssd.BACKBONES[backbone].build()
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes_of(backbone))
    params, report = loading.fit(flax.traverse_util.unflatten_dict(zeros, sep="/"), weights)
    assert {path for path in report.fresh if not path.split("/")[1].startswith("fc")} <= {
        f"{backbone}/conv4_4_norm/scale"
    }
    assert report.ignored == {}
    image = make_backbones.make_image(make_backbones.SIDE, make_backbones.SIDE)
    images = augment.normalize(image[None], mean=weights.layout.conventions.mean)
    kept = {}

    def record(next_call, args, kwargs, context):
        result = next_call(*args, **kwargs)
        if context.module.name in layers:
            kept[context.module.name] = jax.nn.relu(result)
        return result

    @jax.jit
    def run(params, images):
        with nn.intercept_methods(record):
            maps = model.apply({"params": params}, images)
        return [kept[name] for name in layers] or maps

    return [found[0, :, :, :: make_backbones.EVERY] for found in run(params[backbone], images)]


def relative(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        pytest.param("resnet34", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("resnet101", marks=pytest.mark.slow),
    ],
)
def test_a_resnet_answers_as_torchvisions(golden, tmp_path, backbone):
    weight_files.torch_zip(tmp_path / "w", state_dict(backbone))
    (found,) = answers(loading.read(tmp_path / "w", backbone=backbone), backbone)
    assert found.shape == golden[backbone].shape
    assert relative(found, golden[backbone]) < 1e-3


@pytest.mark.slow
def test_vgg19_answers_as_torchvisions(golden, tmp_path):
    weight_files.torch_zip(tmp_path / "w", state_dict("vgg19"))
    weights = loading.read(tmp_path / "w", backbone="vgg19")
    maps = answers(weights, "vgg19", layers=tuple(make_backbones.VGG19))
    for name, found in zip(make_backbones.VGG19, maps, strict=True):
        assert relative(found, golden[f"vgg19_{name}"]) < 1e-3


def test_batch_norm_is_folded_by_the_formula(tmp_path):
    state = names_of("resnet18")
    state |= {
        "bn1.weight": np.float32([3]), "bn1.bias": np.float32([1]),
        "bn1.running_mean": np.float32([2]), "bn1.running_var": np.float32([4]),
    }  # fmt: skip
    weight_files.torch_zip(tmp_path / "w", state)
    weights = loading.read(tmp_path / "w")
    scale = 3 / np.sqrt(4 + 1e-5)
    np.testing.assert_allclose(weights.arrays["resnet18/conv1/scale"], [scale], rtol=1e-6)
    np.testing.assert_allclose(weights.arrays["resnet18/conv1/bias"], [1 - 2 * scale], rtol=1e-6)
    # An image without its mean m is K (x - m): another mean moves into the bias by the scale.
    kernel = np.ones((3, 3, 3, 1), np.float32)
    weights = weights._replace(arrays={**weights.arrays, "resnet18/conv1/kernel": kernel})
    mean = np.add(weights.layout.conventions.mean, (1, 2, 3))
    moved = loading.with_mean(weights, tuple(mean)).arrays["resnet18/conv1/bias"]
    np.testing.assert_allclose(moved, [1 - 2 * scale + scale * 9 * 6], rtol=1e-5)


# --- Whose file it is ---


def names_of(network):
    """A state dict of torchvision with a number for each array."""
    ends = []
    if network in RESNETS:
        blocks, convs = RESNETS[network]
        ends += ["conv1.weight", *(f"bn1.{kind}" for kind in NORM)]
        for stage, count in enumerate(blocks, start=1):
            for block in range(count):
                path = f"layer{stage}.{block}"
                for conv in range(1, convs + 1):
                    ends.append(f"{path}.conv{conv}.weight")
                    ends += [f"{path}.bn{conv}.{kind}" for kind in NORM]
                if block == 0 and (stage > 1 or convs == 3):
                    ends.append(f"{path}.downsample.0.weight")
                    ends += [f"{path}.downsample.1.{kind}" for kind in NORM]
        ends += ["fc.weight", "fc.bias"]
    else:
        index = 0
        for count in VGGS[network]:
            for _ in range(count):
                ends += [f"features.{index}.weight", f"features.{index}.bias"]
                index += 2
            index += 1
        ends += ["classifier.6.weight", "classifier.6.bias"]
    return {name: np.ones((1, 1, 1, 1) if is_kernel(name) else (1,), np.float32) for name in ends}


def is_kernel(name):
    layer, _, kind = name.rpartition(".")
    return kind == "weight" and "bn" not in layer and not layer.endswith("downsample.1")


@pytest.mark.parametrize("network", [*list(RESNETS)[:4], "vgg16", "vgg19"])
def test_each_network_is_known_from_its_relatives(network, tmp_path):
    weight_files.torch_zip(tmp_path / "w", names_of(network))
    weights = loading.read(tmp_path / "w", backbone=network)
    assert loading.backbone_of(weights) == network
    ignored = ("layer4.", "fc.", "classifier.6")
    assert all(name.startswith(ignored) for name in weights.ignored)
    assert not any("num_batches" in name for name in weights.ignored)
    assert not any(path.endswith(("/mean", "/variance")) for path in weights.arrays)
    affine = {f"{network}/{layer}/scale" for layer in ssd.BACKBONES[network].affine}
    assert affine == {path for path in weights.arrays if path.endswith("/scale")}


@pytest.mark.parametrize(
    ("network", "backbone", "reason"),
    [
        ("resnet152", "resnet101", r"a ResNet-101 has no layer2\.4\.conv1\.weight"),
        ("resnet152", "vgg16", r"a ResNet-101 has no layer2\.4\.conv1\.weight"),
        ("resnet50", "resnet101", "is for config.model.backbone resnet50, and the network's"),
        ("resnet101", "resnet50", "is for config.model.backbone resnet101, and the network's"),
        ("resnet34", "resnet50", "is for config.model.backbone resnet34, and the network's"),
        ("vgg19", "vgg16", "is for config.model.backbone vgg19, and the network's is vgg16"),
        ("vgg16", "vgg19", "is for config.model.backbone vgg16, and the network's is vgg19"),
        ("vgg13", "vgg16", r"has no features\.\d+\.weight, which is its conv"),
    ],
)
def test_a_relative_is_refused_in_one_line(network, backbone, reason, tmp_path):
    weight_files.torch_zip(tmp_path / "w", names_of(network))
    with pytest.raises(errors.UserError, match=reason) as caught:
        loading.read(tmp_path / "w", backbone=backbone)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "w") in str(caught.value)


def keras_or_caffe(path, form, network):
    """A VGG in the form of Keras or of Caffe, with a number for each array."""
    kernel, bias = np.ones((1, 1, 1, 1), np.float32), np.ones(1, np.float32)
    convs = [
        (block, conv)
        for block, count in enumerate(VGGS[network], start=1)
        for conv in range(1, count + 1)
    ]
    if form == "caffe":
        weight_files.caffe(path, {f"conv{b}_{c}": [kernel, bias] for b, c in convs})
    else:
        names = [f"block{b}_conv{c}" for b, c in convs]
        arrays = {f"{name}/{name}/kernel:0": kernel for name in names}
        weight_files.hdf5(path, arrays | {f"{name}/{name}/bias:0": bias for name in names})


@pytest.mark.parametrize("form", ["keras", "caffe"])
def test_kerass_and_caffes_vggs_are_told_apart(form, tmp_path):
    for network in ("vgg16", "vgg19"):
        keras_or_caffe(tmp_path / network, form, network)
        weights = loading.read(tmp_path / network)
        assert loading.backbone_of(weights) == network
        assert len(weights.arrays) == 2 * sum(VGGS[network])
        assert weights.ignored == {}
        assert weights.layout.bgr
    with pytest.raises(errors.UserError, match=r"is for config\.model\.backbone vgg19"):
        loading.read(tmp_path / "vgg19", backbone="vgg16")


def mobilenet_v3(last):
    """torchvision's MobileNetV3-Large with so many channels at the end."""
    layout = next(each for each in layouts.LAYOUTS if each.title.endswith("MobileNetV3-Large"))
    state = {
        name: np.ones((1, 1, 1, 1) if ours.endswith("kernel") else (1,), np.float32)
        for name, ours in layout.entries.items()
    }
    for kind in ("weight", "bias", "running_mean", "running_var"):
        state[f"features.16.1.{kind}"] = np.ones(last, np.float32)
    return {**state, "classifier.0.weight": np.ones((2, 2), np.float32)}


def test_the_wider_end_of_mobilenet_v3_is_initialized(tmp_path):
    read = functools.partial(loading.read, tmp_path / "w", backbone="mobilenet_v3_large")
    weight_files.torch_zip(tmp_path / "w", mobilenet_v3(480))
    whole = read()
    assert set(whole.ignored) == {"classifier.0.weight"}
    weight_files.torch_zip(tmp_path / "w", mobilenet_v3(960))
    part = read()
    left = {path.split("/", 1)[1].rpartition("/")[0] for path in whole.arrays.keys() - part.arrays}
    ends = ("expand", "depthwise", "squeeze", "excite", "project")
    assert left == {
        "block12/project", "conv_head", *(f"block{n}/{end}" for n in (13, 14) for end in ends),
    }  # fmt: skip
    assert {name.split(".")[1] for name in part.ignored} == {"0", "13", "14", "15", "16"}
