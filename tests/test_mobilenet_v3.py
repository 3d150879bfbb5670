"""MobileNetV3-Large with SSDLite's layers: torchvision's answers, counts, weights, exports."""

import math

import flax.traverse_util
import jax
import numpy as np
import onnx
import pytest
import weight_files
from golden import make_backbones

import ssd_jax
from ssd_jax import augment, build, detector, errors, export, models, third_party
from ssd_jax import config as config_lib
from ssd_jax.data import classes
from ssd_jax.export import network
from ssd_jax.models import mobilenet_v3, ssd, summary
from ssd_jax.weights import layouts, loading

MODEL = models.SSD(num_classes=91, backbone="mobilenet_v3_large")
SIDE = 96
SSDLITE = next(layout for layout in layouts.LAYOUTS if layout.title == "torchvision's SSDLite")


@pytest.fixture(scope="module")
def golden():
    with np.load(make_backbones.PLACE) as file:
        return dict(file)


def multiply_adds(rows):
    """Of the convolutions, without their biases."""
    convolutions = [row for row in rows if not row.name.endswith("_norm")]
    return sum((row.flops - math.prod(row.output)) / 2 for row in convolutions)


def test_parameters_and_operations_are_those_that_torchvision_publishes():
    # ssdlite320_mobilenet_v3_large and ssd300_vgg16 at 91 classes.
    rows = summary.summarize(MODEL, (320, 320))
    assert sum(row.parameters for row in rows) == 3_440_060
    assert round(multiply_adds(rows) / 1e9, 3) == 0.583
    rows = summary.summarize(models.SSD(num_classes=91), (300, 300))
    assert round(multiply_adds(rows) / 1e9, 3) == 34.858


def test_maps_and_layers_are_torchvisions(shapes):
    assert ssd.feature_map_shapes(MODEL, (320, 320)) == [(n, n) for n in (20, 10, 5, 3, 2, 1)]
    assert shapes["loc0/depthwise/kernel"].shape[-1] == 672
    assert shapes["loc1/depthwise/kernel"].shape[-1] == 480
    squeezed = {n: shapes[f"mobilenet_v3_large/block{n}/squeeze/bias"].size for n in (3, 4, 10, 11)}
    assert squeezed == {3: 24, 4: 32, 10: 120, 11: 168}


@pytest.fixture(scope="module")
def shapes():
    """Of the parameters of the network with COCO's classes, by path."""
    params = ssd.abstract_params(MODEL, (320, 320))
    return flax.traverse_util.flatten_dict(params, sep="/")


# --- torchvision's weights ---


def state_dict(shapes, make, logits=91):
    """Weights of torchvision's SSDLite, each `make(name, shape)`."""
    state = {}
    for name, ours in SSDLITE.entries.items():
        layer, _, kind = ours.rpartition("/")
        shape = shapes[f"{layer}/{kind if kind in ('kernel', 'scale') else 'bias'}"].shape
        if layer.startswith("conf") and "/" not in layer:
            shape = (*shape[:-1], shape[-1] // 91 * logits)
        shape = tuple(shape[axis] for axis in (3, 2, 0, 1)) if kind == "kernel" else shape
        state[name] = make(name, shape)
        if kind == "variance":
            state[name.replace("running_var", "num_batches_tracked")] = np.array(7)
    return state


@pytest.fixture(scope="module")
def theirs(shapes, tmp_path_factory):
    """A detector from the recipe's weights in torchvision's form."""
    path = tmp_path_factory.mktemp("weights") / "ssdlite.pth"
    state = state_dict(shapes, make_backbones.weight, make_backbones.CLASSES)
    weight_files.torch_zip(path, state)
    return ssd_jax.load_detector(path)


def relative(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.mark.slow
def test_the_network_answers_as_torchvisions(golden, theirs):
    original = make_backbones.make_image(make_backbones.HEIGHT, make_backbones.WIDTH)
    image = augment.resize(original, np.array(original.shape[:2]), size=320)
    config = theirs.config.model
    model = build.model(config, len(theirs.class_names))
    backbone = mobilenet_v3.MobileNetV3Large()

    @jax.jit
    def run(params, images):
        maps = backbone.apply({"params": params["mobilenet_v3_large"]}, images)
        return maps, ssd.apply(model, params, images)

    images = augment.normalize(image[None], mean=config.mean)
    maps, (loc, conf) = run(theirs.params, images)
    for name, found in zip(("first", "last"), maps, strict=True):
        found = found[0, :, :, :: make_backbones.EVERY]
        assert relative(found, golden[f"ssdlite_{name}"]) < 1e-3
    rows = make_backbones.rows()
    assert relative(loc[0, rows], golden["ssdlite_loc"]) < 1e-3
    assert relative(conf[0, rows], golden["ssdlite_conf"]) < 1e-3


@pytest.mark.slow
def test_its_detections_are_torchvisions(golden, theirs):
    assert theirs.class_names == classes.VOC
    image = make_backbones.make_image(make_backbones.HEIGHT, make_backbones.WIDTH)
    (found,) = theirs([image], score_threshold=0.001)
    scores, labels, boxes = (golden[f"ssdlite_{kind}"] for kind in ("scores", "labels", "boxes"))
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    # Those that are as good as equal may change places: each of ours is one of theirs, and back.
    same = found.labels[:, None] == labels
    same &= np.abs(found.scores[:, None] - scores) < 1e-4
    same &= np.abs(found.boxes[:, None] - boxes).max(axis=-1) < 0.05  # pixels
    assert same.any(axis=0).all()
    assert same.any(axis=1).all()


def test_the_published_detector_comes_with_its_settings(shapes, tmp_path):
    state = state_dict(shapes, lambda name, shape: np.zeros(shape, np.float32))
    weight_files.torch_zip(tmp_path / "w", {"model": state})
    weights = loading.read(tmp_path / "w", backbone="mobilenet_v3_large")
    config, names = third_party.describe(weights)
    assert names == classes.COCO
    assert config.model == config_lib.ModelConfig(
        backbone="mobilenet_v3_large", image_size=320, padding="torch", prior_sizes="coco",
        clip_prior_sizes=True, unused_logits=classes.COCO_UNUSED_IDS, mean=(127.5, 127.5, 127.5),
    )  # fmt: skip
    assert config.eval == config_lib.EvalConfig(
        score_threshold=0.001, iou_threshold=0.55, top_k=300, max_detections=300,
        clip_before_nms=True,
    )  # fmt: skip
    params = flax.traverse_util.unflatten_dict(shapes, sep="/")
    _, report = loading.fit(params, weights)
    assert (report.fresh, report.ignored) == ({}, {})


def test_a_mobilenet_of_seven_maps_is_one_line(tmp_path):
    heads = {}
    for level in range(7):
        heads[f"loc{level}/bias"] = np.zeros(24, np.float32)
        heads[f"conf{level}/bias"] = np.zeros(6 * 21, np.float32)
    for name in ("mobilenet_v2", "mobilenet_v3_large"):
        stem = {f"{name}/conv_stem/kernel": np.zeros((3, 3, 3, 8), np.float32)}
        np.savez(tmp_path / "w.npz", **stem, **heads)
        with pytest.raises(
            errors.UserError, match=rf"w\.npz has 7 source maps on {name}"
        ) as caught:
            ssd_jax.load_detector(tmp_path / "w.npz")
        assert "\n" not in str(caught.value)


# --- Export ---


@pytest.mark.slow
def test_onnx_has_one_node_for_each_of_its_functions(tmp_path):
    config = config_lib.Config()
    config.model = config_lib.ModelConfig(
        backbone="mobilenet_v3_large", image_size=SIDE, width=0.125
    )
    config.data.canvas, config.eval.top_k = SIDE, 60
    model = build.model(config.model, 2)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        middle = 1 if path[-1].key == "scale" else 0
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.2
        if path[-2].key == "conv_stem" and leaf.ndim > 1:
            spread /= 64  # of pixels: large maps would turn rounding into differences
        return rng.normal(middle, spread, leaf.shape).astype(np.float32)

    like = ssd.abstract_params(model, build.input_size(config.model))
    params = jax.tree_util.tree_map_with_path(fill, like)
    export.write(
        detector.Detector(config, ("ant", "bee"), params), tmp_path / "x.onnx", outputs="raw"
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node]
    # The stem, the last convolution, and two in each of blocks 6 to 14.
    assert kinds.count("HardSwish") == 1 + 1 + 2 * 9
    assert kinds.count("HardSigmoid") == kinds.count("GlobalAveragePool") == 8
    assert not {"Div", "Pad", "Slice", "If"} & set(kinds)
    images = rng.uniform(0, 255, (3, SIDE, SIDE, 3)).astype(np.float32)
    session = pytest.importorskip("onnxruntime").InferenceSession(
        tmp_path / "x.onnx", providers=["CPUExecutionProvider"]
    )
    found = session.run(["loc", "conf"], {"images": images})
    wanted = jax.jit(network.raw_network(config.model, 2))(params, images)
    for values, name in zip(found, ("loc", "conf"), strict=True):
        assert relative(values, np.asarray(wanted[name])) < 1e-4
