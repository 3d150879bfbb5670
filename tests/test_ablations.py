"""The paper's ablations: their configs, the networks and boxes that they make, and the command."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny_run

from configs import ablations as ablation_configs
from ssd_jax import augment, build, config_checks, config_files, errors, models, priors
from ssd_jax import config as config_lib
from ssd_jax.models import ssd
from ssd_jax.weights import layouts, loading

ROOT = Path(__file__).parent.parent
SQUARE, TWO, THREE = (), (2.0,), (2.0, 3.0)
# Of the authors' release: cells and steps of the maps, sizes of the scales.
CELLS, STEPS = (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300)
SIZES = (30, 60, 111, 162, 213, 264, 315)
# Maps of the scales, their sizes and ratios, and all boxes: but for maps_2 the paper's table 3.
BOXES = {
    "full": ((0, 1, 2, 3, 4, 5), SIZES, (TWO, THREE, THREE, THREE, TWO, TWO), 8732),
    "no_ratio_3": ((0, 1, 2, 3, 4, 5), SIZES, (TWO,) * 6, 4 * 1940),
    "no_ratio_2_and_3": ((0, 1, 2, 3, 4, 5), SIZES, (SQUARE,) * 6, 2 * 1940),
    "maps_5": ((0, 1, 2, 3, 4, 4), SIZES, (TWO, THREE, THREE, THREE, TWO, TWO), 8764),
    "maps_4": ((0, 1, 2, 3, 3, 3), SIZES, (TWO, THREE, THREE, THREE, THREE, TWO), 8942),
    "maps_3": (
        (0, 1, 1, 2, 2), (30, 60, 128, 196, 264, 315), (TWO, TWO, TWO, THREE, THREE), 9864,
    ),
    "maps_2": ((0, 1, 1, 1), (30, 60, 162, 264, 315), (TWO, TWO, SQUARE, SQUARE), 8664),
    "maps_1": ((1, 1, 1, 1), (30, 60, 162, 264, 315), (THREE,) * 4, 8664),
    "no_atrous": ((0, 1, 2, 3, 4, 5), SIZES, (TWO, THREE, THREE, THREE, TWO, TWO), 8732),
}  # fmt: skip


def config_of(name):
    return ablation_configs.get_config(name)


def shapes_of(config, size=(300, 300)):
    """(parameters, outputs) of the network of a config; nothing is computed."""
    model = build.model(config, 20)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    return variables["params"], outputs


@pytest.mark.parametrize("name", BOXES)
def test_boxes_are_those_of_the_reference_and_of_the_papers_number(name):
    config = config_of(name).model
    maps, sizes, ratios, count = BOXES[name]
    cells, steps = ([of[number] for number in maps] for of in (CELLS, STEPS))
    expected = reference.default_boxes(300, cells, steps, sizes, ratios)
    boxes = build.priors(config, build.model(config, 20))
    np.testing.assert_allclose(boxes, expected, atol=1e-6)
    assert len(boxes) == count
    assert shapes_of(config)[1].conf.shape == (1, count, 21)


def test_nothing_left_out_changes_nothing():
    assert priors.tiled(priors.SSD512_COCO) == priors.SSD512_COCO
    assert config_of("full").model == config_lib.ModelConfig()


def test_each_config_changes_its_fields_and_no_others():
    full = config_of("full")
    assert full == ablation_configs.get_config()
    expected = {
        "no_augmentation": {"data.augment"},
        "no_ratio_3": {"model.aspect_ratios"},
        "no_ratio_2_and_3": {"model.aspect_ratios"},
        "no_atrous": {"model.atrous"},
        "maps_5": {"model.source_maps"},
        "maps_4": {"model.source_maps", "model.aspect_ratios"},
        "maps_6_inside": {"train.boundary_boxes"},
        "maps_1_inside": {"model.source_maps", "model.aspect_ratios", "train.boundary_boxes"},
    }
    for name, fields in expected.items():
        assert set(config_lib.differences(full, config_of(name))) == fields, name


def test_a_network_ends_with_its_last_source_map():
    layers = set(shapes_of(config_of("maps_2").model)[0])
    assert layers == {
        "vgg16",
        *(f"{kind}{level}" for kind in ("loc", "conf") for level in range(4)),
    }
    assert "conv8_2" in shapes_of(config_of("maps_5").model)[0]
    assert "conv9_1" not in shapes_of(config_of("maps_5").model)[0]


@pytest.mark.parametrize(("side", "maps"), [(300, CELLS), (512, (64, 32, 16, 8, 4, 2, 1))])
def test_without_atrous_the_whole_vgg_gives_maps_of_the_same_shapes(side, maps):
    model = models.SSD(num_classes=21, atrous=False)
    assert ssd.feature_map_shapes(model, (side, side)) == [(n, n) for n in maps]
    backbone = shapes_of(config_of("no_atrous").model)[0]["vgg16"]
    # Simonyan and Zisserman 2014, table 1: FC-4096 on 7 x 7 x 512, FC-4096.
    assert backbone["fc6"]["kernel"].shape == (7, 7, 512, 4096)
    assert backbone["fc7"]["kernel"].shape == (1, 1, 4096, 4096)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no_atrous", "maps_2"])
def test_every_parameter_of_an_ablation_is_trained(name):
    config = config_of(name).model
    config.width = 1 / 8
    model = build.model(config, 2)
    images = np.random.default_rng(0).normal(0, 60, (1, 300, 300, 3)).astype(np.float32)
    params = ssd.init(jax.random.key(0), model, images.shape[1:3])

    def loss(params):
        out = model.apply({"params": params}, images)
        return jnp.sum(jnp.sin(out.loc)) + jnp.sum(jnp.sin(out.conf))

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


def test_boxes_inside_the_image():
    boxes = priors.default_boxes(priors.SSD300_VOC)
    expected = [min(c) >= -1e-6 and max(c) <= 1 + 1e-6 for c in map(reference.corners, boxes)]
    np.testing.assert_array_equal(priors.inside(boxes), expected)
    # Of the last map, by hand: squares of 264 and 288 of 300 pixels, not one of 373 x 187.
    assert priors.inside(boxes)[-4:].tolist() == [True, True, False, False]


def test_crop_is_ssd_where_that_expands_nothing():
    image = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(0), 16)

    def made(policy):
        def one(key):
            boxes, labels = jnp.array([[0.2, 0.2, 0.8, 0.9]]), jnp.array([1])
            return augment.augment(
                key, image, jnp.array([20, 20]), boxes, labels, size=8, policy=policy
            )

        return jax.jit(jax.vmap(one))(keys)

    same = np.all(np.isclose(made("crop").image, made("ssd").image, atol=1e-3), axis=(1, 2, 3))
    canvases = [
        augment._expansion(jax.random.split(key, 5)[1], jnp.array([20, 20])) for key in keys
    ]
    kept = [bool((canvas == jnp.array([0, 0, 20, 20])).all()) for canvas in canvases]
    assert 0 < sum(kept) < 16
    np.testing.assert_array_equal(same, kept)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source_maps": (1, 0)}, r"source_maps is \(1, 0\); give the number"),
        ({"source_maps": (-1,)}, r"source_maps is \(-1,\)"),
        ({"source_maps": ("a",)}, "source_maps is"),
        ({"source_maps": (0, 6)}, r"source_maps is \(0, 6\); the maps have the numbers 0 to 5"),
        ({"source_maps": (0, 1)}, "aspect_ratios has 6 entries for 2 scales; give one for each"),
        ({"aspect_ratios": (2.0,)}, r"aspect_ratios is \(2.0,\); it must be a tuple of tuples"),
        ({"aspect_ratios": ((0.5,),)}, "aspect_ratios is"),
        ({"aspect_ratios": ((2,),) * 3}, "aspect_ratios has 3 entries for 6 scales"),
        ({"prior_scales": (0.2, 0.1)}, r"prior_scales is \(0.2, 0.1\); give a share"),
        ({"prior_scales": (1.5,)}, r"prior_scales is \(1.5,\)"),
        ({"prior_scales": 0.1}, "prior_scales is 0.1"),
        ({"prior_scales": (0.1,)}, "prior_scales has 1 entries for 6 scales; give one for each"),
        ({"atrous": False, "backbone": "mobilenet_v2"}, "atrous is False, and mobilenet_v2 has no"),
    ],
)
def test_bad_fields_are_one_line(fields, message):
    config = config_lib.Config(model=config_lib.ModelConfig(**fields))

    def built():
        config_checks.validate(config)
        build.model(config.model, 20)

    with pytest.raises(errors.UserError, match=rf"^config\.model\.{message}"):
        built()


def test_a_config_comes_back_from_json(tmp_path):
    config = config_of("maps_4")
    config_files.save(tmp_path / "config.json", config, ("a",))
    assert config_files.load(tmp_path / "config.json")[0] == config


@pytest.mark.parametrize("first", [True, False])
def test_fc6_and_fc7_are_kept_whole_without_atrous(monkeypatch, first):
    monkeypatch.setattr(loading, "_UNREDUCED", 8)
    layout = layouts.OURS._replace(channels_first=first)
    rng = np.random.default_rng(0)
    six, seven = rng.normal(size=(8, 512 * 49)), rng.normal(size=(8, 8))
    place = ("vgg16/fc6/kernel", "vgg16/fc7/kernel", "vgg16/fc6/bias")
    given = (six, seven) if first else (six.T, seven.T)
    kernels = [
        loading._convert(Path("a"), path, array, layout, False)
        for path, array in zip(place, given, strict=False)
    ]
    assert kernels[0].shape == (7, 7, 512, 8)
    # Output 3 of fc6 from channel 5 at row 2, column 6.
    index = (5 * 7 + 2) * 7 + 6 if first else (2 * 7 + 6) * 512 + 5
    assert kernels[0][2, 6, 5, 3] == np.float32(six[3, index])
    np.testing.assert_array_equal(kernels[1], np.float32(seven.T)[None, None])
    bias = loading._convert(Path("a"), place[2], np.arange(8.0), layout, False)
    np.testing.assert_array_equal(bias, np.arange(8))


def ablations(*arguments):
    process = tiny_run.start(ROOT / "benchmarks" / "ablations.py", *arguments)
    (done,) = tiny_run.ends([process], timeout=1200)
    return done


@pytest.mark.slow
def test_one_command_trains_a_set_and_writes_the_table(tmp_path):
    base = tiny_run.write_config(tmp_path, steps=2, devices=1, network=tiny_run.NARROW)
    runs = tmp_path / "runs"
    given = ("--workdir", runs, "--base", base, "--configs", "no_ratio_2_and_3,maps_5")
    assert ablations(*given) == (0, "")
    lines = (runs / "table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:3] + row[4:] for row in cells] == [
        ["no_ratio_2_and_3", "3880", "", "71.6"],
        ["maps_5", "8764", "8764", "74.6"],
    ]
    assert all(0 <= float(row[3]) <= 100 for row in cells)
    config, _ = config_files.load(runs / "maps_5" / "config.json")
    assert (config.data.augment, config.train.steps) == ("crop", 2)
    assert config.model.source_maps == (0, 1, 2, 3, 4, 4)
    # The same command resumes: nothing is trained twice.
    assert ablations(*given, "--config.train.steps=3") == (0, "")
    assert max(tiny_run.steps_saved(runs / "maps_5")) == 3


def test_an_ablation_that_there_is_not_is_one_line():
    arguments = ("--config", ROOT / "configs/ablations.py:map", "--summary")
    ((status, err),) = tiny_run.ends([tiny_run.start("train.py", *arguments)], timeout=600)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: configs/ablations.py:map: give one of no_augmentation, full, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--configs", "full"), "--workdir is missing"),
        (
            ("--workdir", "x", "--configs", "ful"),
            "--configs has 'ful'; give some of no_augmentation, full, ",
        ),
        (("--workdir", "x", "--base", "gone.py"), "gone.py: file not found"),
        (("--workdir", "x", "--config.train.batch_size=0"), "config.train.batch_size is 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    status, err = ablations(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_paper_has_a_figure_for_each_config():
    paper = runpy.run_path(str(ROOT / "benchmarks" / "ablations.py"), run_name="ablations")["PAPER"]
    assert set(paper) == set(ablation_configs.CHANGES)
