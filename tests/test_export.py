import dataclasses
import json
import struct
import sys
import zipfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import optax
import pytest
import safetensors
import safetensors.numpy
import scripts
import voc_tree

import ssd_jax
from ssd_jax import (
    augment,
    build,
    config_files,
    detection,
    errors,
    export,
    load,
)
from ssd_jax import boxes as box_ops
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.detection import Detections
from ssd_jax.evaluation import parity
from ssd_jax.export import network, onnx_graph, onnx_nms, onnx_trace
from ssd_jax.kernels import convolutions
from ssd_jax.models import layers, ssd
from ssd_jax.training import checkpoint, step

NAMES = ("ant", "bée", "cat")
ROOT = Path(__file__).parent.parent


def detector_of(**model):
    """A tiny network with random parameters."""
    config = config_lib.Config()
    config.model = config_lib.ModelConfig(width=0.125, **model)
    config.data = config_lib.DataConfig(dataset="folder", canvas=120, path="somewhere/private")
    config.eval = config_lib.EvalConfig(batch_size=4, top_k=60, max_detections=30)
    net = build.model(config.model, len(NAMES))
    params = ssd.init(jax.random.key(0), net, build.input_size(config.model))
    return detector_lib.Detector(config, NAMES, params)


@pytest.fixture(scope="module")
def detector():
    return detector_of()


@pytest.fixture(scope="module")
def written(detector, tmp_path_factory):
    """Path of the file in a format, with an outputs; each is written once."""
    folder, done = tmp_path_factory.mktemp("export"), {}

    def path(name, outputs="detections"):
        if (name, outputs) not in done:
            done[name, outputs] = folder / f"{outputs}.{name}"
            export.write(detector, done[name, outputs], outputs=outputs)
        return done[name, outputs]

    return path


def make_images(*sizes):
    """Coarse noise, `[H, W, 3]` uint8 each."""
    random = np.random.default_rng(1)
    for height, width in sizes:
        coarse = random.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        yield coarse.repeat(10, axis=0).repeat(10, axis=1)


def batch_of(count, *, side=300):
    """Coarse noise as the network takes it, `[count, side, side, 3]`."""
    coarse = np.random.default_rng(count).uniform(
        0, 255, (count, side // 25 + 1, side // 25 + 1, 3)
    )
    fine = coarse.repeat(25, axis=1).repeat(25, axis=2)
    return fine[:, :side, :side].astype(np.float32)


def expected(detector, images):
    """JAX's raw outputs and detections of resized images."""
    config = detector.config
    raw = jax.jit(network.raw_network(config.model, len(NAMES)))(detector.params, images)
    return raw, jax.jit(lambda raw: network.detections_of(raw, config.eval))(raw)


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def close(found, wanted, *, tolerance=1e-3):
    """Whether `[B, D]` detections are the same but for rounding."""
    for index in range(len(wanted.scores)):
        apart = parity.difference(
            Detections(*(np.asarray(values)[index] for values in wanted)),
            Detections(*(np.asarray(values)[index] for values in found)),
        )
        assert apart.alone == 0, apart
        assert apart.detections > 0
        assert max(apart.boxes, apart.scores) < tolerance, apart
    return True


# --- Each format, there and back ---


@pytest.mark.parametrize(
    ("name", "outputs"),
    [(name, "detections") for name in export.FORMATS] + [("onnx", "raw"), ("stablehlo", "raw")],
)
def test_a_file_detects_what_the_detector_does(detector, written, name, outputs):
    again = ssd_jax.load_detector(written(name, outputs))
    assert again.class_names == NAMES
    images = list(make_images((90, 60), (100, 100), (150, 400)))
    for several in (images[:1], images):  # run in batches of 1 and 4
        wanted, found = (d(several, score_threshold=0.1) for d in (detector, again))
        assert [len(of.scores) for of in wanted] == [len(of.scores) for of in found]
        for w, f in zip(wanted, found, strict=True):
            assert len(w.scores) > 0
            np.testing.assert_allclose(f.scores, w.scores, atol=1e-5)
            np.testing.assert_allclose(f.boxes, w.boxes, atol=0.01)  # pixels
            np.testing.assert_array_equal(f.labels, w.labels)


def test_parameters_come_back_bitwise(detector, written):
    again = export.load(written("safetensors"))
    jax.tree.map(np.testing.assert_array_equal, again.params, detector.params)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["onnx", "stablehlo"])
def test_the_batch_is_open(detector, written, name, count):
    images = batch_of(count)
    raw, found = expected(detector, images)
    if name == "onnx":
        outputs = session_of(written(name)).run(["boxes", "scores", "labels"], {"images": images})
        got = Detections(*outputs)
        loc, conf = session_of(written(name, "raw")).run(["loc", "conf"], {"images": images})
    else:
        got, other = (
            jax.export.deserialize(bytearray(written(name, o).read_bytes())).call(images)
            for o in export.OUTPUTS
        )
        got, loc, conf = Detections(**got), other["loc"], other["conf"]
    np.testing.assert_allclose(loc, raw["loc"], atol=1e-4)
    np.testing.assert_allclose(conf, raw["conf"], atol=1e-4)
    assert got.labels.dtype == np.int32
    assert close(got, found)


def test_raw_outputs_are_the_networks(detector, written):
    images = batch_of(2)
    model = build.model(detector.config.model, len(NAMES))
    wanted = ssd.apply(model, detector.params, augment.normalize(jnp.asarray(images)))
    session = session_of(written("onnx", "raw"))
    loc, conf, priors = session.run(["loc", "conf", "priors_cxcywh"], {"images": images})
    np.testing.assert_allclose(loc, wanted.loc, atol=1e-4)
    np.testing.assert_allclose(conf, wanted.conf, atol=1e-4)
    np.testing.assert_array_equal(priors, ssd.default_boxes(model, (300, 300)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [321, 512])
def test_onnx_of_other_sizes(tmp_path, size):
    detector = detector_of(image_size=size, prior_sizes="coco", clip_priors=True)
    export.write(detector, tmp_path / "x.onnx")
    images = batch_of(2, side=size)
    names = ["boxes", "scores", "labels"]
    outputs = session_of(tmp_path / "x.onnx").run(names, {"images": images})
    assert close(Detections(*outputs), expected(detector, images)[1])


def test_onnx_computes_in_float32(detector, tmp_path):
    """ONNX Runtime has no bfloat16 on a CPU."""
    config = dataclasses.replace(detector.config)
    config.model = dataclasses.replace(config.model, dtype="bfloat16")
    export.write(detector_lib.Detector(config, NAMES, detector.params), tmp_path / "x.onnx")
    images = batch_of(1)
    names = ["boxes", "scores", "labels"]
    outputs = session_of(tmp_path / "x.onnx").run(names, {"images": images})
    assert close(Detections(*outputs), expected(detector, images)[1])


# --- NMS ---


def scene(kind, random, *, count, classes):
    """`[count, 4]` boxes and `[classes, count]` scores."""
    center, side = random.uniform(0.1, 0.9, (count, 2)), random.uniform(0.05, 0.4, (count, 2))
    boxes = np.concatenate([center - side / 2, center + side / 2], axis=1)
    scores = random.uniform(0, 1, (classes, count))
    if kind == "ties":
        scores = np.round(scores * 4) / 4
    if kind == "sparse":
        scores *= random.uniform(0, 1, scores.shape) < 0.02
    if kind == "nothing":
        scores[:] = 0
    return boxes.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("kind", ["dense", "ties", "sparse", "nothing"])
@pytest.mark.parametrize(("top_k", "max_detections"), [(40, 25), (4, 50), (1000, 300)])
def test_nms_is_jaxs(kind, top_k, max_detections):
    random = np.random.default_rng(0)
    scenes = [scene(kind, random, count=150, classes=3) for _ in range(2)]
    boxes, scores = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
    options = {"iou_threshold": 0.45, "top_k": top_k, "max_detections": max_detections}
    graph = onnx_graph.Graph()
    inputs = graph.input("b", (None, 150, 4)), graph.input("s", (None, 3, 150))
    model = graph.model(onnx_nms.suppress(graph, *inputs, **options), metadata={}, version="")
    names = ["boxes", "scores", "labels"]
    session = session_of(model.SerializeToString())
    found = Detections(*session.run(names, {"b": boxes, "s": scores}))
    background = np.zeros((2, 150, 1), np.float32)
    every = np.concatenate([background, scores.transpose(0, 2, 1)], axis=2)
    wanted = jax.vmap(lambda b, s: detection.multiclass_nms(b, s, score_threshold=0.0, **options))(
        boxes, every
    )
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    np.testing.assert_array_equal(found.boxes, box_ops.clip(wanted.boxes))
    assert (found.scores.max() > 0) == (kind != "nothing")


# --- From JAX to ONNX ---


def run_traced(function, images, params=()):
    graph = onnx_graph.Graph()
    images_in = graph.input("images", (None, *images.shape[1:]))
    traced = onnx_trace.trace(graph, function, params, images_in)
    model = graph.model({"result": traced}, metadata={}, version="")
    return session_of(model.SerializeToString()).run(None, {"images": images})[0]


def pooled(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 2, 1), (1, 2, 1, 1), "SAME")


CHANNELS = (1, 1, 1, 3), (1, 1, 1, 1), "VALID"  # a window that pools over channels


def convolved(x, kernel, layout):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)


def pixels(x):
    """A kernel `[1, 1, 3, 3]` that depends on the images."""
    return jnp.sum(x, axis=(0, 1, 2)).reshape(1, 1, 1, 3) * jnp.ones((1, 1, 3, 1))


def depthwise(x):
    kernel = jnp.arange(27.0).reshape(3, 3, 1, 3)
    numbers = ("NHWC", "HWIO", "NHWC")
    pads = ((1, 0), (0, 2))
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 1), pads, feature_group_count=3, dimension_numbers=numbers
    )


@pytest.mark.parametrize(
    "function",
    [
        pooled,
        depthwise,
        lambda x: depthwise(x) + jnp.sum(depthwise(x), axis=1, keepdims=True),
        lambda x: jax.nn.softmax(jax.nn.relu(x - 100) / 50, axis=2),
        lambda x: jnp.where(x > 100, x, -1.0).transpose(0, 3, 1, 2),
        lambda x: jnp.concatenate(jnp.split(pooled(x), [1], axis=2)[::-1], axis=2),
        lambda x: jnp.exp(x**2 / -1e4).reshape(x.shape[0], -1, 1),
        lambda x: jax.nn.hard_swish(depthwise(x) / 500 - 2),
        lambda x: jax.nn.hard_sigmoid(x / 50 - 3) * layers.spatial_mean(pooled(x)),
        lambda x: nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))),
        lambda x: convolutions.convolution(x, jnp.ones((1, 1, 3, 2)), stride=2),
        lambda x: jnp.clip(x, 20.0, 90.0) * jnp.asarray([1.0, 2.0, 3.0]),
    ],
)
def test_operations_are_jaxs(function):
    images = batch_of(2, side=9)[:, :7]
    found = run_traced(lambda params, images: function(images), images)
    np.testing.assert_allclose(found, jax.jit(function)(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: jnp.sort(x, axis=1), "'sort'"),
        (lambda x: x**3, "power of 3"),
        (lambda x: x.transpose(1, 0, 2, 3).reshape(9, -1), "batch"),
        (lambda x: jnp.concatenate([x, jnp.ones_like(x)], axis=1), "broadcast"),
        (lambda x: convolved(x, jnp.ones((3, 3, 1, 1)), ("NHWC", "OIHW", "NHWC")), "a convolution"),
        (lambda x: convolved(x, pixels(x), ("NHWC", "HWIO", "NHWC")), "constant kernels only"),
        (lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *CHANNELS), "a window"),
    ],
)
def test_an_unknown_operation_is_named(function, named):
    with pytest.raises(NotImplementedError, match=named):
        run_traced(lambda params, images: function(images), batch_of(1, side=9))


# --- What a consumer reads ---


def metadata_of(path):
    if path.suffix == ".onnx":
        return {item.key: item.value for item in onnx.load(path).metadata_props}
    if path.suffix == ".stablehlo":
        return json.loads(zipfile.ZipFile(path).read("metadata.json"))
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()


@pytest.mark.parametrize("name", export.FORMATS)
def test_metadata_say_what_a_consumer_needs(written, name):
    described = metadata_of(written(name))
    assert json.loads(described["class_names"]) == list(NAMES)
    assert json.loads(described["mean"]) == [123, 117, 104]
    assert json.loads(described["image_size"]) == [300, 300]
    assert json.loads(described["variances"]) == [0.1, 0.2]
    assert described["content"] == ("parameters" if name == "safetensors" else "detections")
    assert "RGB" in described["input"]
    assert json.loads(described["config"])["eval"]["top_k"] == 60


@pytest.mark.parametrize("name", export.FORMATS)
def test_files_hold_no_paths_of_the_machine_that_wrote_them(written, name):
    content = written(name).read_bytes()
    assert b"somewhere" not in content
    assert str(ROOT).encode() not in content


def test_the_onnx_graph_is_valid_and_open(written):
    model = onnx.load(written("onnx"))
    onnx.checker.check_model(model, full_check=True)
    (taken,) = model.graph.input
    sides = [side.dim_param or side.dim_value for side in taken.type.tensor_type.shape.dim]
    assert sides == ["batch", 300, 300, 3]
    weights = {tensor.name for tensor in model.graph.initializer}
    assert {"vgg16/conv1_1/kernel", "vgg16/conv1_1/bias", "conf5/kernel"} <= weights


def test_pooling_stays_a_pooling(written):
    """Maxima of strided slices, as JAX has them, are one node that every runtime has tuned."""
    kinds = [node.op_type for node in onnx.load(written("onnx", "raw")).graph.node]
    assert kinds.count("MaxPool") == 5
    assert kinds.count("Transpose") < 20


def test_stablehlo_is_for_three_platforms(written):
    exported = jax.export.deserialize(bytearray(written("stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape) == "(batch, 300, 300, 3)"


def test_the_same_detector_gives_the_same_bytes(detector, written, tmp_path):
    for name in ("onnx", "stablehlo"):  # safetensors shuffles the metadata
        export.write(detector, tmp_path / f"again.{name}")
        assert (tmp_path / f"again.{name}").read_bytes() == written(name).read_bytes()


# --- Mistakes ---


def refused(call, *named):
    with pytest.raises(errors.UserError) as caught:
        call()
    assert all(str(name) in str(caught.value) for name in named), caught.value
    return True


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    path = tmp_path / f"x.{name}"
    assert refused(lambda: export.load(path), path, "file not found")
    path.write_text("no model")
    assert refused(lambda: export.load(path), path)


def test_an_unknown_ending_is_refused(detector, tmp_path):
    (tmp_path / "x.tflite").write_text("")
    assert refused(lambda: export.load(tmp_path / "x.tflite"), ".onnx, .stablehlo, .safetensors")
    assert refused(lambda: export.write(detector, tmp_path / "x.pb"), "x.pb")


def test_a_place_that_cannot_be_written_is_named(detector, tmp_path):
    path = tmp_path / "none" / "x.safetensors"
    assert refused(lambda: export.write(detector, path), path)


def test_a_truncated_stablehlo_file_is_refused(written, tmp_path):
    path = tmp_path / "x.stablehlo"
    path.write_bytes(written("stablehlo").read_bytes()[:-100])
    assert refused(lambda: export.load(path), path)


def test_a_foreign_onnx_model_is_refused(written, tmp_path):
    model = onnx.load(written("onnx"))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "x.onnx")
    assert refused(lambda: export.load(tmp_path / "x.onnx"), tmp_path / "x.onnx", "metadata")


def test_an_exported_network_cannot_be_exported_again(written, tmp_path):
    loaded = export.load(written("onnx"))
    path = tmp_path / "x.safetensors"
    assert refused(lambda: export.write(loaded, path), path, "the run's workdir")


def with_header(path, header):
    """A safetensors file of no arrays with such a header."""
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__": 5}',
        b'{"__metadata__": null}',
        b'{"__metadata__": ["ssd_jax"]}',
        b'{"__metadata__": {"ssd_jax": 5}}',
        b'{"__metadata__": {"ssd_jax": "1", "config": "[]", "class_names": "[]"}}',
        b'{"__metadata__": {"ssd_jax": "1", "config": "{\\"model\\": []}"}}',
        b'{"__metadata__": {"ssd_jax": "1", "config": "{\\"eval\\": {\\"top_k\\": \\"a\\"}}"}}',
        b"[" * 100_000,
        b"5",
    ],
)
def test_broken_metadata_are_refused(tmp_path, header):
    path = with_header(tmp_path / "x.safetensors", header)
    assert export.is_exported(path) in (True, False)
    for read in (export.load, load.load_detector):
        assert refused(lambda read=read: read(path), path)


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_file_that_cannot_be_read_is_named(written, monkeypatch, name):
    path = written(name)

    def denied(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    monkeypatch.setattr("io.open", denied)  # of pathlib and zipfile
    monkeypatch.setattr(onnxruntime, "InferenceSession", denied)
    if name == "safetensors":
        assert not export.is_exported(path)
    assert refused(lambda: export.load(path), path, "Permission denied")


@pytest.mark.slow
def test_a_changed_byte_of_a_stablehlo_file_never_ends_in_a_traceback(written, tmp_path):
    whole, path = written("stablehlo").read_bytes(), tmp_path / "x.stablehlo"
    random = np.random.default_rng(0)
    places = [*range(0, 200, 7), *random.integers(0, len(whole), 20).tolist()]
    said = []
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            export.load(path)
        except errors.UserError as error:
            said.append(str(error))
    assert said
    assert all(str(path) in text and "\n" not in text for text in said)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda arrays: arrays.pop("conf0/kernel"), "nothing as conf0/kernel"),
        (lambda arrays: arrays.update({"conf0/bias": np.zeros(3, np.float32)}), "(3,) as conf0"),
        (lambda arrays: arrays.update(extra=np.zeros(1, np.float32)), "metadata nothing"),
    ],
)
def test_parameters_of_another_network_are_refused(written, tmp_path, change, named):
    path = tmp_path / "x.safetensors"
    with safetensors.safe_open(written("safetensors"), framework="numpy") as file:
        described = file.metadata()
    arrays = safetensors.numpy.load_file(written("safetensors"))
    change(arrays)
    safetensors.numpy.save_file(arrays, path, metadata=described)
    assert refused(lambda: export.load(path), path, named)


def test_foreign_safetensors_are_refused(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors")
    assert refused(lambda: export.load(tmp_path / "x.safetensors"), "metadata")


@pytest.mark.parametrize(
    ("package", "name", "act"),
    [
        ("onnx", "onnx", "write"),
        ("onnxruntime", "onnx", "read"),
        ("flatbuffers", "stablehlo", "write"),
        ("safetensors.numpy", "safetensors", "write"),
    ],
)
def test_a_missing_package_names_the_extra(
    detector, written, tmp_path, monkeypatch, package, name, act
):
    path = written(name)
    monkeypatch.setitem(sys.modules, package, None)
    call = {
        "write": lambda: export.write(detector, tmp_path / f"x.{name}"),
        "read": lambda: export.load(path),
    }[act]
    assert refused(call, package, "pip install -e '.[export]'")


# --- The comparison ---


def detections_of(*rows, unused=2):
    """Detections of (label, score, xmin); each box is 0.2 wide."""
    labels = [label for label, _, _ in rows] + [0] * unused
    scores = [score for _, score, _ in rows] + [0.0] * unused
    corners = [(x, 0.1, x + 0.2, 0.4) for _, _, x in rows] + [(0, 0, 0, 0)] * unused
    return Detections(np.array(corners, np.float32), np.float32(scores), np.int32(labels))


def test_a_difference_is_the_largest_of_partners():
    ours = detections_of((1, 0.9, 0.1), (2, 0.8, 0.5))
    theirs = detections_of((1, 0.9, 0.103), (2, 0.802, 0.5))
    found = parity.difference(ours, theirs)
    assert found.boxes == pytest.approx(0.003, abs=1e-6)
    assert found.scores == pytest.approx(0.002, abs=1e-6)
    assert (found.alone, found.detections) == (0, 2)


def test_equal_scores_may_change_places():
    ours, theirs = (detections_of(*rows) for rows in zip(*EQUAL, strict=True))
    assert parity.difference(ours, theirs) == (0, 0, 0, 2)


EQUAL = (((1, 0.9, 0.1), (1, 0.9, 0.5)), ((1, 0.9, 0.5), (1, 0.9, 0.1)))


def test_detections_of_only_one_side_are_counted():
    ours = detections_of((1, 0.9, 0.1), (2, 0.8, 0.5))
    theirs = detections_of((1, 0.9, 0.1), (3, 0.8, 0.5))
    assert parity.difference(ours, theirs).alone == 2
    assert parity.difference(ours, detections_of(unused=4)).alone == 2


def test_the_last_of_full_rows_may_be_cut_off():
    ours = detections_of((1, 0.9, 0.1), (2, 0.8, 0.5), unused=0)
    theirs = detections_of((1, 0.9, 0.1), (3, 0.8, 0.5), unused=0)
    assert parity.difference(ours, theirs) == (0, 0, 0, 1)


# --- The scripts ---


@pytest.fixture(scope="module")
def workdir(detector, tmp_path_factory):
    """What `train.py` leaves, on a folder of images."""
    folder = tmp_path_factory.mktemp("runs")
    data = voc_tree.write(
        folder / "data",
        images={f"{k}.jpg": voc_tree.jpeg(90, 120, seed=k) for k in range(3)},
        annotations={
            f"{k}": voc_tree.xml(*map(voc_tree.box, NAMES), size=(90, 120)) for k in range(3)
        },
        splits={"train": ["0"], "val": ["1", "2"]},
    )
    config = dataclasses.replace(detector.config)
    config.data = config_lib.DataConfig(
        dataset="folder",
        path=str(data),
        eval_split="val",
        canvas=120,
        cache_dir=str(folder / "cache"),
    )
    workdir = folder / "workdir"
    workdir.mkdir()
    config_files.save(workdir / "config.json", config, NAMES)
    training = optax.sgd(0.1)
    state = step.TrainState(jnp.int32(0), detector.params, training.init(detector.params))
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, state, run={}, mean_ap=0.5)
        manager.wait_until_finished()
    return workdir


def script(name, *arguments):
    return scripts.run(name, *arguments)


@pytest.mark.slow
def test_the_scripts_export_and_detect_the_same(workdir, tmp_path):
    done = script("export.py", "--workdir", workdir)
    assert (done.returncode, done.stderr) == (0, "")
    for name in export.FORMATS:
        assert (workdir / "export" / f"detector.{name}").is_file()
        (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"│ {name}")]
        boxes, scores, count, alone = (cell.strip() for cell in row.split("│")[2:6])
        assert max(float(boxes), float(scores)) < 1e-4
        assert int(count) > 0
        assert alone == "0"
    image = tmp_path / "a.jpg"
    image.write_bytes(voc_tree.jpeg(200, 300))
    found = []
    for source in (("--weights", workdir / "export" / "detector.onnx"), ("--workdir", workdir)):
        output = tmp_path / source[0].strip("-")
        done = script("detect.py", *source, image, "--output", output, "--score_threshold", 0.1)
        assert (done.returncode, done.stderr) == (0, "")
        found.append(json.loads((output / "detections.json").read_text())[str(image)])
    assert found[0]["labels"] == found[1]["labels"] != []
    for field, tolerance in (("boxes", 0.01), ("scores", 1e-4)):
        np.testing.assert_allclose(found[0][field], found[1][field], atol=tolerance)


@pytest.mark.slow
def test_export_compares_on_images_that_are_named(written, tmp_path):
    command = ("export.py", "--weights", written("safetensors"), "--formats", "safetensors")
    (tmp_path / "a.jpg").write_bytes(voc_tree.jpeg(200, 300))
    done = script(*command, tmp_path / "a.jpg", "--output", tmp_path / "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert "from JAX on 1 images" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("│ safetensors")]
    boxes, scores, count, alone = (float(cell) for cell in row.split("│")[2:6])
    assert (boxes, scores, alone) == (0, 0, 0)
    assert count > 0
    done = script(*command, tmp_path / "a.jpg", "--output", tmp_path / "a", "--overwrite")
    assert (done.returncode, done.stderr) == (0, "")
    done = script(*command, tmp_path / "none.jpg", "--output", tmp_path / "b")
    assert done.returncode == 2
    assert "none.jpg" in done.stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_weights_alone_are_exported_without_a_dataset(written, tmp_path):
    done = script(
        "export.py", "--weights", written("safetensors"), "--formats", "safetensors",
        "--output", tmp_path / "out", f"--config.data.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "not compared with JAX: give an image" in done.stdout
    assert (tmp_path / "out" / "detector.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("export.py", "--workdir", "{workdir}", "--formats=onnx,coreml"), "stablehlo"),
        (("export.py", "--workdir", "nowhere"), "nowhere"),
        (("export.py",), "--workdir"),
        (("detect.py", "--weights", "nowhere.onnx", "{image}"), "nowhere.onnx"),
        (("detect.py", "--weights", "a.onnx", "--workdir", "{workdir}", "{image}"), "--weights"),
        (("detect.py", "--weights=a.onnx", "{image}"), "a.onnx: file not found"),
    ],
)
def test_mistakes_are_one_line(workdir, tmp_path, arguments, named):
    image = tmp_path / "a.jpg"
    image.write_bytes(voc_tree.jpeg())
    done = script(*(text.format(workdir=workdir, image=image) for text in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert named in done.stderr


def test_an_exported_file_refuses_another_config(written):
    found = load.find(written("onnx"))
    assert found.build(found.config).class_names
    found.config.eval.top_k = 9
    with pytest.raises(errors.UserError, match="cannot change an exported file; give them"):
        found.build(found.config)


def test_weights_take_what_an_exported_file_says_of_itself(tmp_path):
    """Its own classes, mean and default boxes, and not those that its logits might be of."""
    detector = detector_of(prior_sizes="coco", mean=(1.0, 2.0, 3.0), clip_priors=True)
    path = tmp_path / "x.safetensors"
    export.write(detector, path)
    loaded = load.load_detector(path)
    found = load.find(path)
    assert found.config.model == loaded.config.model == detector.config.model
    assert found.build(found.config).class_names == loaded.class_names == NAMES


def test_safetensors_of_others_are_not_taken_for_ours(written, tmp_path):
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, other)
    assert export.is_exported(written("safetensors"))
    assert not export.is_exported(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", export.FORMATS)
def test_what_comes_with_foreign_weights_travels_too(tmp_path, name):
    """Unused logits, another mean, boxes clipped before NMS: as torchvision's SSD."""
    config = config_lib.Config()
    config.model.width, config.model.unused_logits, config.model.mean = (
        0.125,
        (2, 5),
        (10.0, 20.0, 30.0),
    )
    config.eval.clip_before_nms = True
    model = build.model(config.model, 3)
    params = ssd.init(jax.random.key(0), model, (300, 300))
    detector = detector_lib.Detector(config, ("a", "b", "c"), params)
    export.write(detector, tmp_path / f"a.{name}")
    loaded = load.load_detector(tmp_path / f"a.{name}")
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    (expected,), (found,) = (each([image], score_threshold=0.0) for each in (detector, loaded))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_array_equal(found.labels, expected.labels)
