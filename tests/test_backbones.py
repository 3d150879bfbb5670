"""Every backbone in a network: maps, priors, training, resuming, export and detection."""

import dataclasses
import re

import flax.traverse_util
import jax
import numpy as np
import pytest
import tiny_run
import voc_tree

import ssd_jax
from ssd_jax import boxes, build, config_checks, detector, errors, export, models
from ssd_jax import config as config_lib
from ssd_jax.evaluation import parity
from ssd_jax.models import ssd, summary
from ssd_jax.training import loop, step

WIDTH = 0.125
CONTRIBUTING = tiny_run.ROOT / "CONTRIBUTING.md"
# The backbone that CONTRIBUTING.md shows is one more of all that are tested here.
SHOWN: dict = {"__name__": "squeezenet"}
exec(re.search(r"```python\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL)[1], SHOWN)
BACKBONES = {name: backbone for name, backbone in ssd.BACKBONES.items() if name != "tiny"}
BACKBONES |= SHOWN["BACKBONES"]


@pytest.fixture(autouse=True)
def shown_one_is_there(monkeypatch):
    monkeypatch.setitem(ssd.BACKBONES, "squeezenet", BACKBONES["squeezenet"])


def flat(params):
    return flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")


@pytest.mark.parametrize("backbone", sorted(BACKBONES.keys() - SHOWN["BACKBONES"].keys()))
def test_the_maps_are_those_of_the_published_default_boxes(backbone):
    lite = BACKBONES[backbone].style == "ssdlite"
    counts = {320: 3234} if lite else {300: 8732, 512: 24564}
    model = models.SSD(num_classes=3, backbone=backbone)
    for side, count in counts.items():
        spec = ssd.prior_spec(model, (side, side))
        assert spec in ssd._PUBLISHED.values()
        assert spec.num_boxes == count


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_least_side_has_all_maps(backbone):
    config = config_lib.Config()
    config.model.backbone = backbone
    config.model.image_size = least = ssd.BACKBONES[backbone].least_side
    config_checks.validate(config)
    shapes = ssd.feature_map_shapes(models.SSD(num_classes=3, backbone=backbone), (least, least))
    assert shapes[-1] == (1, 1)
    config.model.image_size = least - 1
    with pytest.raises(errors.UserError, match=f"{backbone} need at least {least} pixels"):
        config_checks.validate(config)


def test_an_unknown_backbone_is_one_line_with_all_names():
    config = config_lib.Config()
    config.model.backbone = "resnet99"
    with pytest.raises(errors.UserError, match=r"resnet99.*vgg16.*resnet101") as caught:
        config_checks.validate(config)
    assert "\n" not in str(caught.value)


def test_the_backbone_shown_in_contributing_is_short_and_torchvisions():
    assert (
        len(re.search(r"```python\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL)[1].splitlines())
        < 100
    )
    model = models.SSD(num_classes=3, backbone="squeezenet")
    layers = [
        row for row in summary.summarize(model, (300, 300)) if row.name.startswith("squeezenet")
    ]
    assert sum(row.parameters for row in layers) == 1_235_496 - 513 * 1000  # less the classifier
    assert {row.name.removeprefix("squeezenet/") for row in layers} == set(
        BACKBONES["squeezenet"].layers
    )


def test_an_input_need_not_be_square():
    config = config_lib.ModelConfig(image_size=260, image_width=390)
    model = build.model(config, 2)
    assert build.input_size(config) == (260, 390)
    assert ssd.feature_map_shapes(model, (260, 390)) == [
        (33, 49), (17, 25), (9, 13), (5, 7), (3, 5), (1, 3),
    ]  # fmt: skip
    image = jax.ShapeDtypeStruct((2, 260, 390, 3), np.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert outputs.loc.shape == (2, *build.priors(config, model).shape)
    config.image_width = 100
    with pytest.raises(errors.UserError, match="image_width is 100; the maps of vgg16 need"):
        config_checks.validate(config_lib.Config(model=config))


def network_of(backbone, **fields):
    """A config, its network and random parameters, drawn by NumPy: compiling `ssd.init` is slow."""
    side = ssd.BACKBONES[backbone].least_side
    config = config_lib.ModelConfig(
        **{"backbone": backbone, "image_size": side, "width": WIDTH, **fields}
    )
    model, rng = build.model(config, 2), np.random.default_rng(0)

    def draw(path, like):
        if path[-1].key == "kernel":
            fan_in = max(1, np.prod(like.shape[:-1]))
            size = 1 / 64 if like.shape[-2] == 3 else 1  # the first layer reads pixels
            return rng.normal(0, size * (2 / fan_in) ** 0.5, like.shape).astype(np.float32)
        return rng.normal(0.5 * (path[-1].key == "scale"), 0.1, like.shape).astype(np.float32)

    params = build.abstract_params(config, 2)
    return config, model, jax.tree_util.tree_map_with_path(draw, params)


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_optimized")
def test_a_wide_input_detects_and_exports(tmp_path):
    model_config, _, params = network_of("mobilenet_v2", image_size=96, image_width=160)
    config = config_lib.Config(model=model_config)
    config.data.canvas, config.eval.top_k = 160, 20
    trained = detector.Detector(config, ("ant", "bee"), params)
    images = [np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)]
    export.write(trained, tmp_path / "x.onnx")
    again = ssd_jax.load_detector(tmp_path / "x.onnx")
    assert build.input_size(again.config.model) == (96, 160)
    ((wanted,), (found,)) = (each(images, score_threshold=0.1) for each in (trained, again))
    assert len(wanted.scores) > 0
    assert wanted.boxes.min() >= 0
    assert (wanted.boxes <= [140, 90, 140, 90]).all()
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=0.01)


@pytest.fixture
def config(tmp_path, request):
    """Two steps on eight images of noise, each with an object like a prior of every map."""
    backbone = request.param
    side = ssd.BACKBONES[backbone].least_side
    config = config_lib.Config()
    config.model = config_lib.ModelConfig(
        backbone=backbone, image_size=side, width=WIDTH, clip_prior_sizes=True
    )
    model = build.model(config.model, 2)
    spec = ssd.prior_spec(model, (side, side))
    cells = [rows * columns for rows, columns in spec.feature_maps]
    starts = np.cumsum([0] + [n * k for n, k in zip(cells, spec.boxes_per_cell, strict=True)])
    # Of the middle cell of each map the first box, which is a square.
    middles = [
        start + (rows // 2 * columns + columns // 2) * per_cell
        for start, (rows, columns), per_cell in zip(
            starts[:-1], spec.feature_maps, spec.boxes_per_cell, strict=True
        )
    ]
    priors = build.priors(config.model, model)[middles]
    corners = np.clip(np.asarray(boxes.cxcywh_to_xyxy(priors)), 0, 1) * (side - 1) + 1
    objects = [voc_tree.box(("ant", "bee")[k % 2], c) for k, c in enumerate(corners.round())]
    names = [f"{k}" for k in range(8)]
    pixels = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), np.uint8)
    voc_tree.write(
        tmp_path / "data",
        images={
            f"{name}.png": voc_tree.encoded(image, "PNG")
            for name, image in zip(names, pixels, strict=True)
        },
        annotations={name: voc_tree.xml(*objects, size=(side, side)) for name in names},
        splits={"train": names, "val": names[:2]},
    )
    config.data = config_lib.DataConfig(
        dataset="folder",
        path=str(tmp_path / "data"),
        train_split="train",
        eval_split="val",
        augment="flip",
        canvas=side,
        cache_dir=str(tmp_path / "cache"),
    )
    # A step of Adam is 0 only where all gradients were.
    config.train = dataclasses.replace(
        config.train,
        steps=1,
        batch_size=8,
        optimizer="adam",
        weight_decay=0.0,
        scratch_warmup_steps=0,
        checkpoint_every=1,
    )
    config.eval = dataclasses.replace(config.eval, batch_size=2, top_k=20)
    return config


@pytest.fixture
def two_devices(monkeypatch):
    """Each device has its own copy of the parameters and their moments."""
    some = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: some)


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_optimized")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_of_a_backbone_has_a_gradient(backbone):
    config, model, params = network_of(backbone)
    images = np.random.default_rng(0).normal(0, 60, (2, *build.input_size(config), 3))

    def loss(params):
        outputs = ssd.apply(model, params, images.astype(np.float32))
        return (outputs.loc**2).sum() + (outputs.conf**2).sum()

    for path, array in flat(jax.jit(jax.grad(loss))(params)).items():
        assert np.isfinite(array).all(), path
        assert array.any(), path


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_optimized")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_detects_and_its_export_agrees(backbone, tmp_path):
    model_config, _, params = network_of(backbone)
    config = config_lib.Config(model=model_config)
    config.data.canvas, config.eval.top_k = model_config.image_size, 20
    trained = detector.Detector(config, ("ant", "bee"), params)
    export.write(trained, tmp_path / "x.onnx")
    again = ssd_jax.load_detector(tmp_path / "x.onnx")
    images = [np.random.default_rng(n).integers(0, 256, (80, 90, 3), np.uint8) for n in (0, 1)]
    wanted, found = (each(images, score_threshold=0.1) for each in (trained, again))
    scale = np.array([90, 80, 90, 80], np.float32)
    for w, f in zip(wanted, found, strict=True):
        apart = parity.difference(*(each._replace(boxes=each.boxes / scale) for each in (w, f)))
        assert apart.detections > 0
        assert apart.alone == 0
        assert apart.boxes < 1e-3
        assert apart.scores < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_optimized", "two_devices")
@pytest.mark.parametrize("config", ["squeezenet"], indirect=True)
def test_a_backbone_trains_and_resumes(config, tmp_path):
    loop.train(config, tmp_path / "run")
    config.train.steps = 2
    loop.train(config, tmp_path / "run")
    assert tiny_run.steps_saved(tmp_path / "run") == [1, 2]

    trained = ssd_jax.load_detector(tmp_path / "run")
    model = build.model(config.model, 2)
    size = build.input_size(config.model)
    optimizer = build.optimizer(config.train, 1e-3)
    before = flat(step.init_state(model, optimizer, size, seed=config.seed).params)
    after = flat(trained.params)
    for path, array in before.items():
        assert np.isfinite(after[path]).all(), path
        assert (after[path] != array).any(), path
