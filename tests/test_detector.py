"""Detectors in files of others and of our own: what is found, what it is told, what it sees."""

import json
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest
import scripts
import starting
from PIL import ExifTags, Image

from ssd_jax import augment, build, errors, load, third_party
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.data import classes
from ssd_jax.detection import Detections
from ssd_jax.models import ssd
from ssd_jax.weights import hub, layouts, loading

NARROW = 0.125
FILE = "narrow.npz"


def heads(logits):
    """Biases of the heads of an SSD300, by our names."""
    biases = {}
    for level, boxes in enumerate((4, 6, 6, 6, 4, 4)):
        biases[f"loc{level}/bias"] = np.zeros(boxes * 4, np.float32)
        biases[f"conf{level}/bias"] = np.zeros(boxes * logits, np.float32)
    return biases


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Somebody's SSD300 of three classes at an eighth of its width, and an array that is none."""
    model = build.model(config_lib.ModelConfig(width=NARROW), num_classes=3)
    shapes = flax.traverse_util.flatten_dict(ssd.abstract_params(model, (300, 300)), sep="/")
    arrays = {name: np.full(leaf.shape, 0.01, np.float32) for name, leaf in shapes.items()}
    path = tmp_path_factory.mktemp("weights") / FILE
    np.savez(path, **arrays, **{"momentum/kernel": np.zeros(2, np.float32)})
    return path


def built(path, **model):
    """The narrow detector, and what was said of it."""
    said = []
    found = load.find(path, say=said.append)
    found.config.model.width = NARROW
    for field, value in model.items():
        setattr(found.config.model, field, value)
    return found.build(found.config), said


def names_of(params):
    return flax.traverse_util.flatten_dict(params, sep="/")


# --- Whose default boxes ---


@pytest.mark.parametrize(
    ("title", "logits", "sizes"),
    [
        ("amdegroot's SSD", 4, "voc"),
        ("amdegroot's SSD", 81, "coco"),
        ("lufficc's SSD", 4, "voc"),
        ("lufficc's SSD", 21, "voc"),
        ("lufficc's SSD", 81, "coco"),
        ("torchvision's SSD", 4, "coco"),  # its builder has these sizes for any classes
        ("torchvision's SSD", 91, "coco"),
    ],
)
def test_default_boxes_are_those_that_their_code_gives_so_many_classes(
    tmp_path, title, logits, sizes
):
    np.savez(tmp_path / "w.npz", **heads(logits))
    (layout,) = (of for of in layouts.LAYOUTS if of.title == title)
    weights = loading.read(tmp_path / "w.npz")._replace(layout=layout)
    config, _ = third_party.describe(weights)
    assert config.model.prior_sizes == sizes


def test_what_came_of_the_weights_and_what_is_assumed_is_said(narrow):
    detector, (account, assumed) = built(narrow)
    count = len(jax.tree.leaves(detector.params))
    assert account == (
        f"{layouts.OURS.title} of {narrow}: {count} arrays loaded, 0 missing, 1 ignored "
        "(momentum/kernel)"
    )
    assert "VOC's" in assumed
    assert "4 logits" in assumed
    assert "--config.model.prior_sizes=coco" in assumed
    assert set(detector.loaded.loaded) == set(names_of(detector.params))
    assert detector.loaded.ignored == {"momentum/kernel": (2,)}
    _, said = built(narrow, prior_sizes="coco")
    assert said == [account]  # who says so need not be told
    source = starting.source(narrow, backbone="vgg16", cache_dir=narrow.parent)
    assert source.assumed == (assumed,)  # a training that starts from it says so too


def test_classes_that_are_known_need_no_assumption(tmp_path):
    weights = loading.Weights(Path("w"), layouts.OURS, heads(21), {}, {})
    report = loading.Report("w", {}, {}, {})
    (line,) = third_party._account(report, weights, config_lib.ModelConfig())
    assert line == "w: 0 arrays loaded, 0 missing, 0 ignored"


@pytest.mark.slow
def test_the_scripts_say_it_too(narrow, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    done = scripts.run(
        "detect.py", "--weights", narrow, f"--config.model.width={NARROW}",
        tmp_path / "a.png", "--output", tmp_path / "out",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    account, assumed, *_ = done.stdout.splitlines()
    assert f"{narrow}: " in account
    assert "1 ignored (momentum/kernel)" in account
    assert "prior_sizes" in assumed
    assert json.loads((tmp_path / "out/detections.json").read_text())
    told = (tmp_path / "out/weights.txt").read_text().splitlines()
    assert "  momentum/kernel (2,)" in told[told.index("1 ignored") :]
    assert "  vgg16/conv1_1/bias (8,)" in told[: told.index("0 freshly initialized")]
    assert str(Path("out", "weights.txt")) in done.stdout


# --- What a detector sees ---


def bilinear(image, side):
    """`[side, side, 3]` by two pixels along each axis, whose centers are at halves."""
    for axis in (0, 1):
        length = image.shape[axis]
        place = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
        low = np.minimum(place.astype(int), length - 2)
        share = (place - low).reshape(-1, *[1] * (2 - axis))
        first, second = (image.take(low + k, axis=axis) for k in (0, 1))
        image = first * (1 - share) + second * share
    return image


def test_a_image_of_cocos_size_is_resampled_once(tmp_path):
    np.savez(tmp_path / "w.npz", **heads(91))
    config = load.find(tmp_path / "w.npz").config
    seen = []

    def predict(params, images, valid_sizes):
        seen.append(jax.vmap(lambda *of: augment.resize(*of, size=300))(images, valid_sizes)[0])
        return Detections(*(np.zeros((1, 1, *of)) for of in ((4,), (), ())))

    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    detector_lib.Detector(config, classes.COCO, None, predict=predict)([image])
    np.testing.assert_allclose(seen[0], bilinear(image.astype(float), 300), atol=0.05)


def images_of_every_kind():
    random = np.random.default_rng(0)
    gray = random.integers(0, 65536, (20, 30), dtype=np.uint16)
    rgb = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    rgba = random.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    return {
        "16 bits": (Image.fromarray(gray), {}),
        "transparent": (Image.fromarray(rgba), {}),
        "palette": (Image.fromarray(rgb).quantize(8), {"transparency": 0}),
        "turned": (Image.fromarray(rgb), {"exif": turned}),
        "plain": (Image.fromarray(rgb), {}),
    }


@pytest.mark.parametrize("kind", list(images_of_every_kind()))
def test_a_pil_image_is_what_its_file_is(tmp_path, kind):
    image, options = images_of_every_kind()[kind]
    path = tmp_path / "a.png"
    image.save(path, **options)
    wanted = detector_lib.read_image(path)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(detector_lib.read_image(opened), wanted)
    if not options:  # what PIL keeps in memory alone
        np.testing.assert_array_equal(detector_lib.read_image(image), wanted)


# --- From where ---


def test_names_come_from_the_mirror_of_the_config(tmp_path, monkeypatch):
    np.savez(tmp_path / "w.npz", **heads(81))
    published = hub.Published("http://127.0.0.1:9/", "w.npz", "", 1)
    monkeypatch.setitem(hub.NAMES, "ssd-test", published)
    data = config_lib.DataConfig(mirror=str(tmp_path))
    assert load.find("ssd-test", data=data).place == tmp_path / "w.npz"
    source = starting.source(
        "ssd-test", backbone="vgg16", cache_dir=tmp_path / "cache", mirror=str(tmp_path)
    )
    assert list(source.classes.names) == list(classes.COCO)
    assert source.assumed == ()
    monkeypatch.setenv("SSD_JAX_MIRROR", str(tmp_path))
    assert load.find("ssd-test").place == tmp_path / "w.npz"
    with pytest.raises(errors.UserError, match=r"config\.data\.mirror .*none: it has no w\.npz"):
        load.find("ssd-test", data=config_lib.DataConfig(mirror=str(tmp_path / "none")))


@pytest.mark.slow
def test_the_command_line_says_from_where_and_where_to(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "weights").write_text("a file where the folder should be")
    command = ("detect.py", "--weights", "ssd300-coco", tmp_path / "a.png")
    filename = hub.NAMES["ssd300-coco"].filename
    done = scripts.run(*command, f"--config.data.mirror={tmp_path / 'empty'}")
    assert scripts.refused(done, f"{tmp_path / 'empty'}: it has no {filename}")
    done = scripts.run(*command, "--config.data.cache_dir", tmp_path)
    assert scripts.refused(done, tmp_path / "weights" / filename)
