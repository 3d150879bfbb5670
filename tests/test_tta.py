"""Several views of an image: mirrored, and at other sizes than the training's."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssd_jax import augment, build, config_checks, detection, errors, export, load, models, priors
from ssd_jax import boxes as box_ops
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.models import ssd

NAMES = ("ant", "bee")
LIMITS = {"score_threshold": 0.3, "top_k": 10, "max_detections": 16}


def random_outputs(seed, *, priors=30, classes=4):
    """(loc, conf, priors) of one view."""
    rng = np.random.default_rng(seed)
    center, size = rng.uniform(0.2, 0.8, (priors, 2)), rng.uniform(0.2, 0.6, (priors, 2))
    return (
        rng.normal(0, 1, (priors, 4)).astype(np.float32),
        rng.normal([seed % 5, *[0] * (classes - 1)], 1.5, (priors, classes)).astype(np.float32),
        np.concatenate([center, size], -1).astype(np.float32),
    )


def detect_both(plain, mirrored):
    """Detections in an image from the outputs for it and for its mirror image."""
    (loc, conf, cells), (other_loc, other_conf, other_cells) = plain, mirrored
    other_loc, other_cells = detection.unmirror(other_loc, other_cells)
    return detection.detect(
        jnp.concatenate([loc, other_loc]),
        jnp.concatenate([conf, other_conf]),
        jnp.concatenate([cells, other_cells]),
        **LIMITS,
    )


def check_detections(found, expected):
    used = len(expected)
    np.testing.assert_array_equal(found.labels[:used], [label for _, _, label in expected])
    np.testing.assert_allclose(found.scores[:used], [score for _, score, _ in expected], rtol=1e-4)
    boxes = np.stack([box for box, _, _ in expected])
    np.testing.assert_allclose(found.boxes[:used], boxes, atol=1e-4)
    np.testing.assert_array_equal(found.scores[used:], 0)


def test_unmirrored_outputs_decode_to_the_mirror_images():
    loc, _, cells = random_outputs(0)
    expected = [reference.mirror(reference.decode(*pair)) for pair in zip(loc, cells, strict=True)]

    def decoded(loc, cells):
        return box_ops.decode(*detection.unmirror(loc, cells))

    batched = jax.jit(jax.vmap(decoded))(loc[None], cells[None])[0]
    for boxes in (decoded(loc, cells), jax.jit(decoded)(loc, cells), batched):
        np.testing.assert_allclose(boxes, expected, atol=1e-6)


def test_views_are_joined_before_nms_as_in_the_reference():
    cases = [(random_outputs(seed), random_outputs(seed + 50)) for seed in range(10)]
    expected = [
        reference.detect_views([(*plain, False), (*mirrored, True)], **LIMITS)
        for plain, mirrored in cases
    ]
    lengths = {len(rows) for rows in expected}
    assert min(lengths) < max(lengths) == 16
    batched = jax.jit(jax.vmap(detect_both))(*jax.tree.map(lambda *rows: np.stack(rows), *cases))
    for row, (case, rows) in enumerate(zip(cases, expected, strict=True)):
        check_detections(jax.tree.map(lambda part, row=row: part[row], batched), rows)
        if row == 0:
            check_detections(detect_both(*case), rows)
            check_detections(jax.jit(detect_both)(*case), rows)


@functools.cache
def parameters():
    """Random ones of a tiny SSD300, whose detections are many and of all sizes."""
    model = models.SSD(num_classes=len(NAMES) + 1, width=1 / 8)
    image = jax.ShapeDtypeStruct((1, 300, 300, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)

    def fill(leaf):
        scale = math.sqrt(2 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return (rng.standard_normal(leaf.shape) * scale).astype(np.float32)

    filled = jax.tree.map(fill, shapes)
    filled["vgg16"]["conv1_1"]["kernel"] /= 64  # pixels to about 1
    return filled


def detector_of(**options):
    config = config_lib.Config()
    config.model.width, config.data.canvas = 1 / 8, 96
    config.eval = dataclasses.replace(config.eval, batch_size=1, top_k=30, max_detections=20)
    config.eval = dataclasses.replace(config.eval, **options)
    return detector_lib.Detector(config, NAMES, parameters())


def noise(seed, *, size=(60, 90)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def as_rows(found, *, width=None):
    """Sorted rows (box, score, label), mirrored in an image of that width if it is given."""
    boxes = np.asarray(found.boxes)
    if width is not None:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], -1)
    rows = np.column_stack([boxes, found.scores, found.labels])
    return rows[np.lexsort(rows[:, ::-1].round(3).T)]


def test_a_mirrored_image_gives_mirrored_detections_with_the_mirrored_view():
    image = noise(1)
    both = [image, np.ascontiguousarray(image[:, ::-1])]
    here, there = detector_of(tta_flip=True)(both, score_threshold=0.01)
    assert len(here.scores) > 10
    np.testing.assert_allclose(as_rows(here), as_rows(there, width=90), atol=0.05)
    here, there = detector_of()(both, score_threshold=0.01)  # which alone tells left from right
    assert np.abs(here.scores - there.scores).max() > 1e-3


def test_a_detector_joins_its_views_as_the_reference_does():
    original = noise(2)
    detector = detector_of(tta_flip=True, tta_sizes=(300, 260))
    model = build.model(detector.config.model, len(NAMES))
    apply = jax.jit(functools.partial(ssd.apply, model))
    seen = []
    for side in (300, 260):
        resized = augment.resize(original, original.shape[:2], size=side)
        maps = ssd.feature_map_shapes(model, (side, side))
        strides = (8, 16, 32, 64, 64, 64)
        spec = priors.at_size(priors.SSD300_VOC, (side, side), maps, strides)
        for mirrored in (False, True):
            image = augment.normalize(resized[None, :, ::-1] if mirrored else resized[None])
            loc, conf = apply(parameters(), image)
            seen.append((loc[0], conf[0], priors.default_boxes(spec), mirrored))
    (found,) = detector([original], score_threshold=0)
    seen = [(*map(np.asarray, view[:3]), view[3]) for view in seen]
    expected = reference.detect_views(seen, top_k=30, max_detections=20)
    scale = np.array([90, 60, 90, 60])
    check_detections(found._replace(boxes=found.boxes / scale), expected)


def test_the_trainings_size_alone_is_what_no_sizes_mean():
    image = noise(3)
    (plain,), (named,) = (detector_of(**o)([image]) for o in ({}, {"tta_sizes": (300,)}))
    jax.tree.map(np.testing.assert_array_equal, plain, named)


def test_a_corner_of_a_larger_input_gives_the_same_boxes_in_pixels():
    # A network of convolutions sees the same there; so boxes have to keep their pixels.
    model = models.SSD(num_classes=len(NAMES) + 1, width=1 / 8, variant="300")
    image = np.random.default_rng(4).normal(0, 60, (1, 400, 400, 3)).astype(np.float32)
    found = []
    for side, columns in ((300, 38), (400, 50)):
        loc, _ = jax.jit(functools.partial(ssd.apply, model))(parameters(), image[:, :side, :side])
        cells = ssd.default_boxes(model, (300, 300), at=(side, side))
        first = np.asarray(box_ops.decode(loc[0], cells))[: columns**2 * 4] * side
        found.append(first.reshape(columns, columns, 4, 4)[:20, :20])
    np.testing.assert_allclose(*found, atol=0.01)


def test_boxes_at_another_size_by_hand():
    model = models.SSD(num_classes=3, variant="300")
    assert ssd.strides(model, (300, 300)) == (8, 16, 32, 64, 64, 64)
    boxes = ssd.default_boxes(model, (300, 300), at=(400, 400)) * 400
    counts = [50**2 * 4, 25**2 * 6, 13**2 * 6, 7**2 * 6, 5**2 * 4, 3**2 * 4]
    assert len(boxes) == sum(counts)
    starts = np.cumsum([0, *counts])
    np.testing.assert_allclose(boxes[4], (12, 4, 30, 30), rtol=1e-5)  # as at 300 pixels
    np.testing.assert_allclose(boxes[starts[3] + 6], (96, 32, 162, 162), rtol=1e-5)
    # Steps of 100 and 300 pixels are no strides of the network: 5 and 3 cells over 400 pixels.
    np.testing.assert_allclose(boxes[starts[4] + 4], (120, 40, 213, 213), rtol=1e-5)
    np.testing.assert_allclose(boxes[starts[5]], (400 / 6, 400 / 6, 264, 264), rtol=1e-5)


def test_the_own_size_gives_the_own_spec():
    spec = priors.SSD512_COCO
    assert priors.at_size(spec, (512, 512), spec.feature_maps, [8] * 7) is spec


def test_ssd300_keeps_its_layers_at_512_pixels():
    model = build.model(config_lib.ModelConfig(width=1 / 8), len(NAMES))
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    grown = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert jax.tree.map(lambda x: x.shape, grown) == jax.tree.map(lambda x: x.shape, parameters())
    config = config_lib.Config()
    config.eval = dataclasses.replace(config.eval, tta_sizes=(300, 512), tta_flip=True)
    views = build.views(config, model)
    assert [(view.image_size, view.mirrored) for view in views] == [
        ((300, 300), False), ((512, 512), False), ((300, 300), True), ((512, 512), True),
    ]  # fmt: skip
    rows = jax.eval_shape(model.apply, {"params": grown}, image).loc.shape[1]
    assert len(views[1].priors_cxcywh) == rows


@pytest.mark.parametrize(
    "sizes", [(300.0,), ("a",), (30,), (300, 300), (256,), [300], 300, (True,)]
)
def test_bad_sizes_are_one_line(sizes):
    config = config_lib.Config()
    config.eval.tta_sizes = sizes
    with pytest.raises(
        errors.UserError, match=r"config\.eval\.tta_sizes is .*; (give different|.* of) whole num"
    ):
        config_checks.validate(config)


def test_a_size_too_small_for_the_maps_is_one_line():
    config = config_lib.Config()
    model = build.model(config.model, len(NAMES))
    config.eval.tta_sizes = (8,)
    with pytest.raises(
        errors.UserError, match=r"config\.eval\.tta_sizes has 8: an input of \(8, 8\)"
    ):
        build.views(config, model)


@pytest.mark.parametrize("options", [{"tta_flip": True}, {"tta_sizes": (300,)}])
@pytest.mark.parametrize("name", ["onnx", "stablehlo"])
def test_formats_of_one_look_refuse_several(name, options, tmp_path):
    with pytest.raises(
        errors.UserError, match=r"has no test-time augmentation; give --config\.eval"
    ):
        export.write(detector_of(**options), tmp_path / f"a.{name}")
    assert not list(tmp_path.iterdir())


def test_load_detector_takes_views(tmp_path):
    path = tmp_path / "a.safetensors"
    export.write(detector_of(), path)
    loaded = load.load_detector(path, tta_flip=True, tta_sizes=[330])
    assert (loaded.config.eval.tta_flip, loaded.config.eval.tta_sizes) == (True, (330,))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, parameters())
    with pytest.raises(errors.UserError, match=r"config\.eval\.tta_sizes is \(3,\)"):
        load.load_detector(path, tta_sizes=[3])


def test_configs_that_are_alike_share_what_is_compiled():
    config = config_lib.Config()
    config.eval.tta_sizes = [300, 400]  # a list, as a notebook may give it
    first = detector_lib._predict_of(config, 2)
    alike = config_lib.Config()
    alike.eval.tta_sizes, alike.train.steps = (300, 400), 7
    assert detector_lib._predict_of(alike, 2) is first
    assert detector_lib._predict_of(alike, 3) is not first
    alike.eval.top_k = 7
    assert detector_lib._predict_of(alike, 2) is not first


@pytest.mark.usefixtures("hardly_optimized")
def test_initial_parameters_are_those_of_the_network_and_have_the_shapes_foretold():
    model = ssd.SSD(num_classes=3, width=0.125)
    images = jnp.zeros((1, 300, 300, 3))
    fresh = ssd.init(jax.random.key(3), model, (300, 300))
    expected = jax.jit(model.init)(jax.random.key(3), images)["params"]
    foretold = ssd.abstract_params(model, (300, 300))
    for got, wanted, shape in zip(*map(jax.tree.leaves, (fresh, expected, foretold)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
        assert (got.shape, got.dtype) == (shape.shape, shape.dtype)
