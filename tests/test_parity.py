"""The same answers as torchvision's ssd300_vgg16, for weights that anyone can make again.

`../shared/parity/make_torchvision_golden.py` is the recipe of weights, image and targets.
"""

import ast
import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax import augment, boxes, detection, losses, matching, models
from ssd_jax.models import ssd

pytestmark = pytest.mark.slow

SEED = 0
MODEL = models.SSD(num_classes=21, prior_sizes="coco")  # scales 0.07, 0.15, ... of the side
HEIGHT, WIDTH = 375, 500
SCALE = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
# torchvision's mean (its standard deviation is 1/255); it differs from ours by up to 0.0008.
TORCHVISION_MEAN = 255 * np.array([0.48235, 0.45882, 0.40784])

# Where torchvision keeps what: the index of a layer in its sequence counts ReLUs and pools.
BODY = {
    "features.0": "conv1_1",
    "features.2": "conv1_2",
    "features.5": "conv2_1",
    "features.7": "conv2_2",
    "features.10": "conv3_1",
    "features.12": "conv3_2",
    "features.14": "conv3_3",
    "features.17": "conv4_1",
    "features.19": "conv4_2",
    "features.21": "conv4_3",
    "extra.0.1": "conv5_1",
    "extra.0.3": "conv5_2",
    "extra.0.5": "conv5_3",
    "extra.0.7.1": "fc6",
    "extra.0.7.3": "fc7",
}
LAYERS = {
    **{f"backbone.{theirs}": ("vgg16", ours) for theirs, ours in BODY.items()},
    **{f"backbone.extra.{n}.0": (f"conv{n + 5}_1",) for n in range(1, 5)},
    **{f"backbone.extra.{n}.2": (f"conv{n + 5}_2",) for n in range(1, 5)},
    **{f"head.regression_head.module_list.{n}": (f"loc{n}",) for n in range(6)},
    **{f"head.classification_head.module_list.{n}": (f"conf{n}",) for n in range(6)},
}


def weight(name, shape):
    """An entry of the state dict, as the recipe says."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if name == "backbone.scale_weight":
        return np.full(shape, 20, np.float32)
    if name.endswith(".bias"):
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    gain = 0.05 if name.startswith("head.") else 1.0
    values = gain * rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return values.astype(np.float32)


def our_place(name):
    """Path in our parameters of an entry of the state dict."""
    if name == "backbone.scale_weight":
        return "vgg16", "conv4_3_norm", "scale"
    layer, kind = name.rsplit(".", 1)
    return *LAYERS[layer], {"weight": "kernel", "bias": "bias"}[kind]


def make_image():
    rng = np.random.default_rng([SEED, 1])
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 100.0
    channels = [
        127 + 60 * np.sin(a * x + b) + 60 * np.cos(c * y + d)
        for a, b, c, d in rng.uniform(0.5, 4, (3, 4))
    ]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "parity/torchvision_ssd300.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def params(golden):
    """The recipe's weights in our layout."""
    tree: dict = {}
    for name, shape in zip(golden["names"], golden["shapes"], strict=True):
        array = weight(str(name), ast.literal_eval(str(shape)))
        *parents, leaf = our_place(str(name))
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
        # (out, in, rows, columns) -> (rows, columns, in, out)
        node[leaf] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return tree


@pytest.fixture(scope="module")
def network_input():
    image = augment.resize(make_image(), np.array([HEIGHT, WIDTH]), size=300)
    return (image - TORCHVISION_MEAN.astype(np.float32))[None]


@pytest.fixture(scope="module")
def answers(params, network_input):
    """Our predictions and the means of the source maps, which the first loc heads read."""

    def forward(params, images):
        maps = []

        def record(next_call, args, kwargs, context):
            if (context.module.name or "").startswith("loc"):
                maps.append(args[0].mean())
            return next_call(*args, **kwargs)

        with nn.intercept_methods(record):
            predictions = ssd.apply(MODEL, params, images)
        return predictions, jnp.stack(maps)

    return jax.jit(forward)(params, network_input)


@pytest.fixture(scope="module")
def priors_cxcywh():
    """torchvision clamps the sizes only; 114 centers of the 10 x 10 map lie beyond the input."""
    priors = ssd.default_boxes(MODEL, (300, 300))
    return np.concatenate([priors[:, :2], np.clip(priors[:, 2:], 0, 1)], axis=1)


def relative(got, expected):
    """The largest difference over the largest magnitude."""
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


def test_every_weight_of_torchvision_has_its_place(params):
    ours = jax.eval_shape(
        MODEL.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 300, 300, 3), jnp.float32)
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, ours["params"])


def test_preprocessing_is_torchvisions(golden, network_input):
    expected = golden["input_300_rows"].transpose(1, 2, 0)
    # float32 pixels over 255, minus the mean, times 255: some 1e-5 are lost on the way.
    np.testing.assert_allclose(network_input[0, ::50, ::50], expected, atol=1e-4)
    resized = augment.resize(make_image(), np.array([HEIGHT, WIDTH]), size=300)
    ours = augment.normalize(resized)[::50, ::50]
    np.testing.assert_allclose(ours, expected, atol=2e-3)  # the means differ by up to 8e-4


def test_priors_are_torchvisions(golden, priors_cxcywh):
    corners = boxes.cxcywh_to_xyxy(jnp.asarray(priors_cxcywh))
    np.testing.assert_allclose(corners, golden["priors_xyxy_pixels_300"] / 300, atol=1e-5)


def test_clipped_priors_differ_from_torchvisions_in_centers_beyond_the_input(golden):
    clipped = ssd.default_boxes(MODEL, (300, 300), clip=True)
    theirs = boxes.xyxy_to_cxcywh(jnp.asarray(golden["priors_xyxy_pixels_300"] / 300))
    np.testing.assert_allclose(clipped, np.clip(theirs, 0, 1), atol=1e-5)
    # Column 9 and row 9 of the 10 x 10 map: (10 + 10 - 1) cells of 6 priors, at 9.5 * 32 = 304.
    assert (np.asarray(theirs)[:, :2] > 1 + 1e-5).any(axis=1).sum() == 19 * 6


def test_source_maps_have_torchvisions_means(golden, answers):
    np.testing.assert_allclose(answers[1], golden["feature_means"], rtol=1e-4)


def test_source_maps_have_torchvisions_shapes(golden):
    expected = [tuple(shape[1:]) for shape in golden["feature_shapes"].tolist()]
    assert ssd.feature_map_shapes(MODEL, (300, 300)) == expected


@pytest.mark.parametrize("part", ["loc", "conf"])
def test_predictions_are_torchvisions(golden, answers, part):
    got = getattr(answers[0], part)[0, golden["rows"]]
    assert relative(got, golden[part]) < 1e-4


def test_losses_are_torchvisions(golden, answers, priors_cxcywh):
    # No prior is the best of both boxes, so its matching and ours agree.
    pixels = np.float32([[40, 30, 260, 300], [300, 120, 420, 220]])
    matches = jax.jit(matching.match)(pixels / SCALE, np.array([7, 12]), priors_cxcywh)
    targets = boxes.encode(matches.boxes, priors_cxcywh)
    loc, conf = answers[0]
    _, metrics = jax.jit(losses.multibox_loss)(loc, conf, targets[None], matches.labels[None])
    assert float(metrics["loc_loss"]) == pytest.approx(golden["bbox_regression_loss"], rel=1e-4)
    assert float(metrics["conf_loss"]) == pytest.approx(golden["classification_loss"], rel=1e-4)


def test_detections_are_torchvisions(golden, answers, priors_cxcywh):
    loc, conf = (part[0] for part in answers[0])
    # torchvision clips before NMS, the authors and `detection.detect` after it.
    clipped = boxes.clip(boxes.decode(loc, priors_cxcywh))
    found = jax.jit(detection.multiclass_nms)(clipped, jax.nn.softmax(conf))
    np.testing.assert_allclose(found.scores, golden["scores"], atol=1e-4)
    np.testing.assert_array_equal(found.labels, golden["labels"])
    # Two networks in float32 that differ by 1e-6 relative, in an image of 500 pixels: 5e-4.
    np.testing.assert_allclose(found.boxes * SCALE, golden["boxes"], atol=5e-3)
