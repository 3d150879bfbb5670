"""MobileNetV2 with SSDLite's layers: torchvision's answers, Coral's weights, training, exports."""

import dataclasses
import functools
import math

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import optax
import pytest
import starting
import weight_files
from golden import make_mobilenet

import ssd_jax
from ssd_jax import augment, boxes, config_files, detector, errors, export, load, models, priors
from ssd_jax import config as config_lib
from ssd_jax.export import network
from ssd_jax.models import mobilenet, ssd, summary
from ssd_jax.training import start as start_lib
from ssd_jax.training import step
from ssd_jax.weights import loading

MODEL = models.SSD(num_classes=21, backbone="mobilenet_v2")
TINY = models.SSD(num_classes=3, backbone="mobilenet_v2", width=0.125)
SIDE = 96


@pytest.fixture(scope="module")
def golden():
    with np.load(make_mobilenet.PLACE) as file:
        return dict(file)


def shapes_of(model, side):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flat(params):
    return flax.traverse_util.flatten_dict(params, sep="/")


# --- torchvision ---


def torchvision_state(shapes):
    """The recipe's weights by the names of torchvision's classifier."""
    state = {}
    for layer, (conv, norm) in ssd.BACKBONES["mobilenet_v2"].torchvision.items():
        *kernel, inputs, outputs = shapes[f"{layer}/kernel"].shape
        names = {f"{conv}.weight": (outputs, inputs, *kernel)}
        names |= {
            f"{norm}.{kind}": (outputs,)
            for kind in ("weight", "bias", "running_mean", "running_var")
        }
        for name, shape in names.items():
            state[name] = make_mobilenet.weight(name.removeprefix("features."), shape)
    return state


def test_the_source_maps_are_torchvisions(golden, tmp_path):
    shapes = shapes_of(mobilenet.MobileNetV2(), SIDE)
    weight_files.torch_zip(tmp_path / "w", torchvision_state(flat(shapes)))
    weights = loading.read(tmp_path / "w", backbone="mobilenet_v2")
    params, report = loading.fit({"mobilenet_v2": shapes}, weights)
    assert (report.fresh, report.ignored) == ({}, {})
    apply = jax.jit(lambda params, x: mobilenet.MobileNetV2().apply({"params": params}, x))
    images = make_mobilenet.make_image()[None] * np.float32(weights.layout.std)
    maps = apply(params["mobilenet_v2"], images)
    for got, name in zip(maps, ("expansion", "last"), strict=True):
        expected = golden[name]
        assert np.mean((expected > 0) & (expected < 6)) > 0.2
        got = got[0, :, :, :: make_mobilenet.EVERY]
        assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()


def test_parameter_counts_are_torchvisions(golden):
    params = shapes_of(models.SSD(num_classes=91, backbone="mobilenet_v2"), 320)
    parts = [
        {name: part for name, part in params.items() if name.startswith(prefixes)}
        for prefixes in ("mobilenet_v2", "extra", ("loc", "conf"))
    ]
    assert [count(part) for part in parts] == golden["parameters"].tolist()
    assert count(params["mobilenet_v2"]) == 3_504_872 - 1281 * 1000  # without the classifier
    assert sum(row.parameters for row in summary.summarize(MODEL, (320, 320))) == count(
        shapes_of(MODEL, 320)
    )


def test_priors_are_torchvisions(golden):
    found = ssd.default_boxes(MODEL, (320, 320), clip_sizes=True)
    assert len(found) == priors.SSDLITE320.num_boxes == 3234
    corners = 320 * boxes.cxcywh_to_xyxy(jnp.asarray(found[:: make_mobilenet.EVERY]))
    np.testing.assert_allclose(corners, golden["priors_xyxy_pixels"], atol=1e-3)


# --- The network ---


def test_feature_maps_are_those_of_ssdlite():
    assert ssd.feature_map_shapes(MODEL, (320, 320)) == [(n, n) for n in (20, 10, 5, 3, 2, 1)]
    assert ssd.prior_spec(MODEL, (320, 320)) == priors.SSDLITE320


@pytest.mark.parametrize("size", [(96, 96), (321, 400)])
def test_outputs_and_default_boxes_have_the_same_rows(size):
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(MODEL.init_with_output, jax.random.key(0), image)
    assert outputs.loc.shape == (2, len(ssd.default_boxes(MODEL, size)), 4)
    assert outputs.conf.shape == (*outputs.loc.shape[:2], 21)


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_optimized")
def test_a_new_network_keeps_the_signals_size():
    """Of pixels, smooth as images are, no map of a layer dies or is stuck at ReLU6's end."""
    model = models.SSD(num_classes=21, backbone="mobilenet_v2")
    y, x = np.mgrid[0:160, 0:160] / 160
    phases = np.random.default_rng(0).uniform(0, 20, (3, 3))
    waves = [np.sin(a * x + b) + np.cos(c * y) for a, b, c in phases]
    images = 64 * np.stack(waves, -1)[None].astype(np.float32)
    sizes = {}

    def record(next_call, args, kwargs, context):
        result = next_call(*args, **kwargs)
        if "kernel" in context.module.variables.get("params", {}):
            sizes["/".join(context.module.path)] = jnp.sqrt(jnp.mean(result**2))
        return result

    def run(params, images):
        with nn.intercept_methods(record):
            outputs = ssd.apply(model, params, images)
        return dict(sizes), outputs

    params = ssd.init(jax.random.key(0), model, images.shape[1:3])
    found, outputs = jax.jit(run)(params, images)
    assert len(found) == 52 + 4 * 3 + 2 * 6 * 2
    for name, size in found.items():
        backbone = name.startswith(
            "mobilenet_v2"
        )  # what follows reads maps that are nearly all border
        assert (0.1 if backbone else 0.001) < size < 2, (name, size)
    assert np.abs(outputs.conf).max() < 3


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_optimized")
def test_remat_computes_the_same():
    images = np.random.default_rng(0).normal(0, 60, (1, SIDE, SIDE, 3)).astype(np.float32)
    params = ssd.init(jax.random.key(0), TINY, (SIDE, SIDE))
    again = dataclasses.replace(TINY, remat=True)

    def loss(model, params):
        return jnp.sum(ssd.apply(model, params, images).loc ** 2)

    expected, got = (jax.jit(jax.grad(functools.partial(loss, m)))(params) for m in (TINY, again))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), got, expected)


def test_bfloat16_computation_keeps_parameters_and_outputs_float32():
    model = dataclasses.replace(TINY, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, variables))} == {jnp.dtype("float32")}


# --- Training ---


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_optimized")
def test_two_steps_move_every_parameter_by_its_gradient():
    size = (SIDE, SIDE)
    boxes_cxcywh = ssd.default_boxes(TINY, size, clip_sizes=True)
    optimizer = optax.adam(1e-3)  # its step is 0 only where all gradients were
    train_step = step.make_train_step(
        TINY,
        optimizer,
        prepare=functools.partial(
            step.prepare,
            priors_cxcywh=boxes_cxcywh,
            transform=functools.partial(augment.augment, size=size, policy="flip"),
        ),
        over_devices=functools.partial(step.by_shard_map, mesh=step.make_mesh()),
    )
    first = step.init_state(TINY, optimizer, size, seed=0)
    before = jax.device_get(first.params)
    rng = np.random.default_rng(0)
    # In each image the first box of a cell of each map.
    cells = np.cumsum([0, *(6 * n * n for n in (6, 3, 2, 1, 1))])
    corners = np.asarray(boxes.cxcywh_to_xyxy(jnp.asarray(boxes_cxcywh[cells])))
    batch = {
        "image": rng.integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8),
        "valid_size": np.full((8, 2), SIDE, np.int32),
        "boxes": np.broadcast_to(corners, (8, 6, 4)),
        "labels": np.ones((8, 6), np.int32),
        "position": np.arange(8, dtype=np.int32),
    }
    state = jax.device_put(first, step.replicated(step.make_mesh()))
    for _ in range(2):
        state, metrics = train_step(state, step.shard_batch(batch, step.make_mesh()))
        assert np.isfinite(metrics["loss"])
    after = flat(jax.device_get(state.params))
    for path, array in flat(before).items():
        assert np.isfinite(after[path]).all(), path
        assert (after[path] != array).any(), path


# --- Weights ---


@pytest.fixture(scope="module")
def imagenet(shared):
    return shared / "weights/mobilenet_v2_imagenet.npz"


def test_all_of_the_npz_but_the_classifier_is_loaded(imagenet):
    weights = loading.read(imagenet, backbone="mobilenet_v2")
    assert weights.layout.conventions.mean == (127.5, 127.5, 127.5)
    params, report = loading.fit(shapes_of(MODEL, 320), weights)
    assert len(report.loaded) == 3 * 52
    assert all(path.startswith("mobilenet_v2/") for path in report.loaded)
    assert {path.split("/")[0] for path in report.fresh} == {
        *(f"extra{n}" for n in range(4)),
        *(f"{kind}{n}" for kind in ("loc", "conf") for n in range(6)),
    }
    assert set(report.ignored) == {"classifier/kernel", "classifier/bias"}
    loaded = flat(params)
    with np.load(imagenet) as theirs:
        np.testing.assert_allclose(
            loaded["mobilenet_v2/conv_stem/kernel"], theirs["conv_stem/kernel"] / 127.5, rtol=1e-6
        )
        for name in ("block3/depthwise/kernel", "conv_head/kernel", "block16/project/bias"):
            np.testing.assert_array_equal(loaded[f"mobilenet_v2/{name}"], theirs[name])
    assert (loaded["mobilenet_v2/block7/expand/scale"] == 1).all()


def test_another_mean_moves_into_the_stems_bias(imagenet):
    weights = loading.read(imagenet)
    moved = loading.with_mean(weights, (123.0, 117.0, 104.0))
    pixel = np.full((3, 3, 3), 200.0)

    def answer(weights):
        kernel, bias = (
            weights.arrays[f"mobilenet_v2/conv_stem/{kind}"] for kind in ("kernel", "bias")
        )
        return np.einsum("hwi,hwio->o", pixel - weights.layout.conventions.mean, kernel) + bias

    np.testing.assert_allclose(answer(moved), answer(weights), atol=1e-4)


def write_vgg(path):
    names = loading.layouts.BACKBONES["vgg16"].layers
    np.savez(path, **{f"{name}/bias": np.zeros(64, np.float32) for name in names},
             **{f"{names[0]}/kernel": np.zeros((3, 3, 3, 64), np.float32)})  # fmt: skip


def test_weights_of_another_backbone_are_one_line(imagenet, tmp_path):
    write_vgg(tmp_path / "vgg.npz")
    for path, theirs, ours in (
        (tmp_path / "vgg.npz", "vgg16", "mobilenet_v2"),
        (imagenet, "mobilenet_v2", "vgg16"),
    ):
        message = f"is for config.model.backbone {theirs}, and the network's is {ours}"
        with pytest.raises(errors.UserError, match=message) as caught:
            loading.read(path, backbone=ours)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert loading.backbone_of(loading.read(path)) == theirs


def test_a_backbone_that_lacks_a_layer_is_refused(imagenet, tmp_path):
    with np.load(imagenet) as theirs:
        part = {name: theirs[name] for name in theirs if name != "block16/project/bias"}
    np.savez(tmp_path / "part.npz", **part)
    with pytest.raises(
        errors.UserError, match=r"no block16/project/bias.*give the weights of a Mob"
    ):
        loading.read(tmp_path / "part.npz")


def test_a_backbone_alone_is_no_detector(imagenet):
    with pytest.raises(errors.UserError, match=r"MobileNetV2.*detects nothing"):
        ssd_jax.load_detector(imagenet)


def test_mean_and_padding_come_with_the_weights_and_stay_with_the_run(imagenet, tmp_path):
    config = config_lib.Config()
    config.model.backbone, config.model.pretrained = "mobilenet_v2", str(imagenet)
    weights = functools.partial(load.read_pretrained, config)
    settled = start_lib.settled(config, tmp_path, weights)
    assert (settled.model.mean, settled.model.padding) == ((127.5,) * 3, "tensorflow")
    config_files.save(tmp_path / "config.json", settled, ("a",))
    assert start_lib.settled(config, tmp_path, lambda: pytest.fail("read again")) == settled
    config.model.mean = (1.0, 2.0, 3.0)
    settled = start_lib.settled(config, tmp_path / "new", weights)
    assert (settled.model.mean, settled.model.padding) == ((1, 2, 3), "tensorflow")
    config.model.padding = "torch"
    assert start_lib.settled(config, tmp_path / "new", weights) == config


# --- Exports ---


@pytest.fixture(scope="module")
def trained():
    """A tiny detector with random parameters; its scales are not 1."""
    config = config_lib.Config()
    config.model = config_lib.ModelConfig(
        backbone="mobilenet_v2", image_size=SIDE, width=0.125, padding="tensorflow"
    )
    config.data.canvas, config.eval.top_k = SIDE, 60
    params = ssd.init(jax.random.key(0), TINY, (SIDE, SIDE))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf * rng.uniform(0.8, 1.2, leaf.shape), params)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    return detector.Detector(config, ("ant", "bee"), params)


def test_a_training_can_start_from_exported_parameters(trained, tmp_path):
    config = dataclasses.replace(trained.config.model, mean=(1.0, 2.0, 3.0))
    written = detector.Detector(
        dataclasses.replace(trained.config, model=config), trained.class_names, trained.params
    )
    export.write(written, tmp_path / "x.safetensors")
    source = starting.source(
        tmp_path / "x.safetensors", backbone="mobilenet_v2", cache_dir=tmp_path
    )
    assert (source.conventions.mean, source.conventions.padding) == ((1, 2, 3), "tensorflow")
    assert source.classes.names == ("ant", "bee")
    params, report = loading.fit(shapes_of(TINY, SIDE), source.weights)
    assert (report.fresh, report.ignored) == ({}, {})
    jax.tree.map(np.testing.assert_array_equal, params, trained.params)


@pytest.mark.parametrize("name", export.FORMATS)
def test_an_exported_file_answers_as_the_detector(trained, tmp_path, name):
    export.write(trained, tmp_path / f"x.{name}")
    again = ssd_jax.load_detector(tmp_path / f"x.{name}")
    assert again.config.model == trained.config.model
    images = [np.random.default_rng(n).integers(0, 256, (80, 90, 3), np.uint8) for n in (0, 1)]
    wanted, found = (each(images, score_threshold=0.1) for each in (trained, again))
    for w, f in zip(wanted, found, strict=True):
        assert len(w.scores) > 0
        np.testing.assert_allclose(f.scores, w.scores, atol=1e-5)
        np.testing.assert_allclose(f.boxes, w.boxes, atol=0.01)


def test_onnx_has_convolutions_in_groups_with_the_scales_inside(trained, tmp_path):
    path = tmp_path / "x.onnx"
    export.write(trained, path, outputs="raw")
    nodes = onnx.load(path).graph.node
    convs = [node for node in nodes if node.op_type == "Conv"]
    assert len(convs) == 52 + 4 * 3 + 2 * 6 * 2
    groups = [a.i for node in convs for a in node.attribute if a.name == "group"]
    assert sum(group > 1 for group in groups) == 17 + 4 + 12
    kinds = {node.op_type for node in nodes}
    assert not kinds & {"Slice", "Pad", "Min", "Max", "MatMul", "If"}
    assert "Mul" not in {nodes[n + 1].op_type for n, node in enumerate(nodes) if node in convs}
    images = np.random.default_rng(2).uniform(0, 255, (3, SIDE, SIDE, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    loc, conf = session.run(["loc", "conf"], {"images": images})
    wanted = jax.jit(network.raw_network(trained.config.model, 2))(trained.params, images)
    np.testing.assert_allclose(loc, wanted["loc"], atol=1e-4)
    np.testing.assert_allclose(conf, wanted["conf"], atol=1e-4)
