"""Files of third-party networks are data: checked, without influence on this machine."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import types
import zipfile
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import safetensors
import safetensors.numpy
import scripts
import starting
from jax._src.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo
from PIL import Image

from ssd_jax import build, checkpoints, config_checks, config_files, errors, export, load
from ssd_jax import config as config_lib
from ssd_jax import detector as detector_lib
from ssd_jax.data import synthetic_shapes
from ssd_jax.evaluation import evaluated, report
from ssd_jax.export import metadata, stablehlo_calls
from ssd_jax.media import annotate, outputs
from ssd_jax.models import ssd
from ssd_jax.training import checkpoint, guard, step
from ssd_jax.training import host as host_lib
from ssd_jax.training import workdir as workdir_lib

NAMES = synthetic_shapes.CLASS_NAMES
FAR = "http://127.0.0.1:9/"  # where nobody listens


def config_of():
    """A tiny network's."""
    config = config_lib.Config()
    config.data.dataset, config.data.canvas, config.data.eval_split = "synthetic", 64, "test"
    config.model = config_lib.ModelConfig(width=0.125)
    config.eval = config_lib.EvalConfig(batch_size=4, top_k=20, max_detections=5)
    return config


@pytest.fixture(scope="module")
def detector():
    """Whose parameters are all 0: no test here looks at what it finds."""
    model = build.model(config_of().model, len(NAMES))
    shapes = ssd.abstract_params(model, (300, 300))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return detector_lib.Detector(config_of(), NAMES, params)


@pytest.fixture(scope="module")
def workdir(detector, tmp_path_factory):
    """A run of `train.py`; nobody changes it."""
    folder = tmp_path_factory.mktemp("theirs") / "run"
    folder.mkdir()
    config_files.save(folder / "config.json", detector.config, NAMES)
    state = step.TrainState(step=jnp.array(1), params=detector.params, opt_state={}, ema=None)
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, state, run={}, mean_ap=0.5)
        manager.wait_until_finished()
    return folder


@pytest.fixture
def theirs(workdir, tmp_path):
    """A stranger's workdir, whose config is to be written by `rewrite`."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "checkpoints").symlink_to(workdir / "checkpoints")  # to be read only
    (folder / "config.json").write_bytes((workdir / "config.json").read_bytes())
    return folder


def rewrite(folder, **parts):
    """Changes fields in the `config.json` of a workdir."""
    content = json.loads((folder / "config.json").read_text())
    for part, fields in parts.items():
        content["config"][part].update(fields)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """This machine's cache; JAX's settings are as before in the end."""
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "mine"))
    monkeypatch.delenv("SSD_JAX_MIRROR", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield tmp_path / "mine"
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def detect(monkeypatch, tmp_path):
    """detect.py in this process; it detects nothing, which would be compiled first."""
    nothing = {"boxes": [], "scores": [], "labels": []}
    monkeypatch.setattr(
        annotate,
        "annotate_inputs",
        lambda _, targets, **__: (outputs.Outcome(*each, nothing) for each in targets.items()),
    )
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def run(*arguments):
        scripts.call("detect.py", *arguments, tmp_path / "a.png", "--overwrite")
        assert (tmp_path / "detections/detections.json").exists()

    monkeypatch.chdir(tmp_path)
    return run


def compiled_in():
    return Path(jax.config.jax_compilation_cache_dir)


# --- Where it writes, what it runs, whom it contacts ---


def test_a_strangers_workdir_brings_no_compiled_programs(theirs, mine, tmp_path, detect):
    """The attack: a cache beside the checkpoints, of programs that its author compiled."""
    cache = theirs / "cache"
    rewrite(theirs, data={"cache_dir": str(cache), "mirror": FAR}, train={"wandb": "spy"})
    detect("--workdir", theirs)
    assert compiled_in() == mine / "compiled"
    detect("--workdir", theirs, f"--config.data.cache_dir={tmp_path}")
    assert compiled_in() == tmp_path / "compiled"
    assert not cache.exists()


@pytest.mark.parametrize("script", ["evaluate.py", "export.py"])
def test_the_other_scripts_take_this_machines_cache(theirs, mine, script, monkeypatch):
    """They open the run's dataset too, which is prepared there."""

    def opened(config, *_):
        raise OpenedError(config.cache_dir)

    monkeypatch.setattr(build, "split", opened)
    monkeypatch.setattr(export, "write", lambda *_, **__: None)
    rewrite(theirs, data={"cache_dir": str(theirs / "cache")})
    with pytest.raises(OpenedError, match=str(mine)):
        scripts.call(script, "--workdir", theirs)
    assert compiled_in() == mine / "compiled"
    assert not (theirs / "cache").exists()


class OpenedError(Exception):
    """A script has come to its dataset."""


def hostile_file(detector, folder, name):
    """An exported file whose metadata name a cache, a mirror and a project."""
    place = folder / f"detector.{name}"
    made = metadata.describe

    def describe(*arguments):
        described = made(*arguments)
        config = json.loads(described["config"])
        config["data"] |= {"cache_dir": str(folder / "cache"), "mirror": FAR}
        return described | {"config": json.dumps(config | {"train": {"wandb": "spy"}})}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "describe", describe)
        export.write(detector, place, outputs="raw")
    return place


@pytest.mark.parametrize("name", export.FORMATS)
def test_an_exported_file_chooses_no_cache(detector, mine, tmp_path, name, detect):
    place = hostile_file(detector, tmp_path, name)
    detect("--weights", place)
    assert compiled_in() == mine / "compiled"
    config = load.load_detector(place).config
    assert (config.data.cache_dir, config.data.mirror, config.train.wandb) == (str(mine), "", "")
    assert not (tmp_path / "cache").exists()


def test_a_notebook_and_a_training_that_starts_there_take_nothing_either(theirs, mine):
    there = {"cache_dir": str(theirs / "cache"), "mirror": FAR, "max_megapixels": 1e9}
    rewrite(theirs, data=there, train={"wandb": "spy"}, model={"pretrained": FAR})
    config = load.load_detector(theirs).config
    assert config.data.max_megapixels == config_lib.DataConfig().max_megapixels
    assert (config.data.cache_dir, config.data.mirror, config.train.wandb) == (str(mine), "", "")
    source = starting.source(theirs, backbone="vgg16", cache_dir=mine)
    assert source.classes.names == NAMES
    assert not (theirs / "cache").exists()


def test_a_comparison_takes_this_machines_cache(mine, tmp_path, capsys):
    config = config_files.to_dict(config_of())
    config["data"]["cache_dir"] = str(tmp_path / "theirs")
    for name in "ab":
        (tmp_path / name).mkdir()
        evaluated.save(tmp_path / name, evaluated.Evaluated(config, NAMES, {}, {}, {}))
    page = ("--output", str(tmp_path / "page.html"))
    assert report.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *page]) == 0
    assert "boxes without images" in capsys.readouterr().err  # it has looked for the dataset
    assert not (tmp_path / "theirs").exists()


def test_where_the_data_lie_comes_from_the_run(theirs):
    rewrite(theirs, data={"path": "/their/images", "archives": "/their/archives"})
    config, _ = config_files.load(theirs / "config.json")
    assert (config.data.path, config.data.archives) == ("/their/images", "/their/archives")


# --- Where a run writes, and what it waits for ---


def test_an_export_does_not_follow_a_link_in_a_workdir(theirs, mine, tmp_path, monkeypatch):
    def opened(*_):
        raise OpenedError

    monkeypatch.setattr(build, "split", opened)
    outside = tmp_path / "outside"
    outside.mkdir()
    (theirs / "export").symlink_to(outside)
    with pytest.raises(OpenedError):
        scripts.call("export.py", "--workdir", theirs, "--formats=safetensors")
    assert (theirs / "export/detector.safetensors").exists()
    assert not (theirs / "export").is_symlink()
    assert list(outside.iterdir()) == []


def test_exported_files_replace_links_and_are_whole_or_not_there(detector, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("keep me")
    place = tmp_path / "x.safetensors"
    place.symlink_to(tmp_path / "mine")
    export.write(detector, place)
    assert (tmp_path / "mine").read_text() == "keep me"
    before = place.read_bytes()

    def interrupted(detector, file, outputs):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setitem(export._WRITERS, "safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.write(detector, place)
    assert place.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / "mine", place]


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/1", "checkpoints/1/params"])
def test_a_training_writes_and_deletes_through_no_link(workdir, tmp_path, name):
    """Orbax would; detection, which reads alone, may go through it."""
    outside = shutil.copytree(workdir, tmp_path / "outside")
    copied = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(copied / name)
    (copied / name).symlink_to(outside / name)
    with pytest.raises(errors.UserError, match="is a link, through which a training does not") as e:
        checkpoint.open_manager(copied, clean=True)
    assert str(e.value).startswith(str(copied / name))
    assert str(outside) in str(e.value)
    assert len(load.load_detector(copied).class_names) == len(NAMES)


def test_a_trace_is_written_through_no_link(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    (outside / "profile").mkdir(parents=True)
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/plugins").symlink_to(outside)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    host_lib.Profile(range(3, 4), tmp_path / "profile").at(3, None)
    assert (tmp_path / "profile/plugins/profile").is_dir()
    assert not (tmp_path / "profile/plugins").is_symlink()


def test_a_post_mortem_is_written_through_no_link(tmp_path):
    outside = tmp_path / "outside"
    (outside / "step_3").mkdir(parents=True)
    (outside / "step_3/mine").write_text("keep me")
    keeper = guard.Guard(tmp_path, step=0, most=1, names_of=lambda step: ())
    state = step.TrainState(step=jnp.array(3), params={"a": np.ones(2)}, opt_state={}, ema=None)
    for link, leads in (("post_mortem", outside), ("post_mortem/step_3", outside / "step_3")):
        shutil.rmtree(tmp_path / link, ignore_errors=True)
        (tmp_path / link).symlink_to(leads)
        guard.keep_for_post_mortem(tmp_path, state, keeper)
        assert (tmp_path / "post_mortem/step_3/_METADATA").exists()
    assert [path.name for path in outside.rglob("*")] == ["step_3", "mine"]


@pytest.mark.parametrize("name", ["run/metadata", "params/_METADATA", "params/manifest.ocdbt"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_checkpoint_with_a_pipe_for_a_file_is_not_waited_for(workdir, tmp_path, name, make):
    copied = shutil.copytree(workdir, tmp_path / "run")
    place = copied / "checkpoints/1" / name
    place.unlink()
    make(place)
    with pytest.raises(errors.UserError, match=f"{name}: not a regular file"):
        load.load_detector(copied)
    if not place.is_symlink():
        with pytest.raises(errors.UserError, match=f"{name}: not a regular file"):
            checkpoint.open_manager(copied, clean=True)


def test_a_checkpoints_text_without_end_is_not_read(workdir, tmp_path):
    place = shutil.copytree(workdir, tmp_path / "run") / "checkpoints/1/run/metadata"
    os.truncate(place, checkpoints._LARGEST_TEXT + 1)  # a hole, which takes no room
    with pytest.raises(errors.UserError, match="run/metadata: larger than"):
        load.load_detector(tmp_path / "run")


@pytest.mark.parametrize("position", [-1, 1.5, "1", None, True, 2**62, [1]])
def test_a_position_in_the_data_that_is_none_is_one_line(tmp_path, position):
    assert workdir_lib.position(tmp_path, {"position": 7}) == 7
    with pytest.raises(errors.UserError, match="position in the data is"):
        workdir_lib.position(tmp_path, {"position": position})
    with pytest.raises(errors.UserError, match="position in the data is None"):
        workdir_lib.position(tmp_path, {})


# --- Every field of a config ---

FIELDS = [
    (part.name, field.name, field.type)
    for part in dataclasses.fields(config_lib.Config)
    if dataclasses.is_dataclass(part.type)
    for field in dataclasses.fields(part.type)
]
HUGE = [10**18, -(10**18), 10**4000, 1e308, [10**9], ["x" * 100_000], [[1.5] * 20_000]]
WRONG = [
    None, True, "1", "", 1.5, -1, [], [1], ["a"], [[2.0]], [None], {}, {"a": 1}, [[[]]], math.nan,
    math.inf, -math.inf, [math.nan], "\0", "\ud800", "x" * 100_000, 2**64, *HUGE,
]  # fmt: skip


def fits(value, kind):
    """Whether JSON's value is of a field's type, by hand."""
    if isinstance(kind, types.GenericAlias):
        return isinstance(value, list) and all(fits(each, kind.__args__[0]) for each in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 1e308
    if kind is str:
        return type(value) is str and not {"\0", "\ud800"} & set(value)
    return type(value) is kind


@pytest.mark.parametrize(("part", "name", "kind"), FIELDS)
def test_a_field_of_a_wrong_type_or_value_is_named(part, name, kind):
    """Each of many values, in every field: read as it is, or refused in one short line."""
    outcomes = set()
    for value in WRONG:
        try:
            config = config_files.from_mapping({part: {name: value}}, where="them/config.json")
        except errors.UserError as error:
            line = str(error)
            assert re.match(r"them/config\.json: config\.(\w+)\.\w+(, \w+)? (is|has) ", line), line
            assert len(line) < 600
            outcomes.add("refused")
            continue
        assert name in config_lib.LOCAL.get(part, ()) or fits(value, kind), value
        config_checks.validate(config)
        outcomes.add("read")
    assert "refused" in outcomes or name in config_lib.LOCAL[part]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", r"not the config of a run"),
        (b"7", "not the config of a run"),
        (b"null", "not the config of a run"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"config": {}}', "class_names"),
        (b'{"config": 3, "class_names": ["a"]}', "config is 3"),
        (b'{"config": [["a", 1]], "class_names": ["a"]}', "config is"),
        (b'{"config": {"model": []}, "class_names": ["a"]}', r"config\.model is \[\]"),
        (b'{"config": {"model": null}, "class_names": ["a"]}', r"config\.model is None"),
        (b'{"config": {"seed": "a"}, "class_names": ["a"]}', r"config\.seed is 'a'"),
        (b'{"config": {"hat": {}}, "class_names": ["a"]}', "unknown field 'hat'"),
        (b'{"config": {"eval": {"hat": 1}}, "class_names": ["a"]}', r"config\.eval .*'hat'"),
        (b'{"config": {}, "class_names": []}', r"class_names is \[\]"),
        (b'{"config": {}, "class_names": "ab"}', "class_names is 'ab'"),
        (b'{"config": {}, "class_names": {"a": 1}}', "class_names is"),
        (b'{"config": {}, "class_names": ["a", 1]}', "class_names has 1"),
        (b'{"config": {}, "class_names": ["a", ["b"]]}', "class_names has"),
        (b'{"config": {}, "class_names": ["a", ""]}', "class_names has ''"),
        (b'{"config": {}, "class_names": ["a", " "]}', "class_names has ' '"),
        (b'{"config": {}, "class_names": ["a", "\\ud83d"]}', "class_names has"),
        (b'{"config": {}, "class_names": ["a", "b", "a"]}', "class_names has 'a' twice"),
        (b'{"config": {}, "class_names": [' + b"0," * 40_000 + b"0]}", "a list of 1 to 32,767"),
        (b'{"version": "2", "config": {}, "class_names": ["a"]}', "its version is '2'"),
        (b'{"version": [2], "config": {}, "class_names": ["a"]}', "its version is"),
        (b'{"version": true, "config": {}, "class_names": ["a"]}', "its version is True"),
        (b'{"version": NaN, "config": {}, "class_names": ["a"]}', "its version is nan"),
        (b'{"version": 1' + b"0" * 4000 + b"}", "newer ssd_jax"),
        (b'{"version": 1' + b"0" * 5000 + b"}", "no JSON"),
        (b" " * (config_files.MOST_BYTES + 1), "larger than"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_config_is_one_line(tmp_path, content, named):
    place = tmp_path / "config.json"
    place.write_bytes(content)
    with pytest.raises(errors.UserError, match=named) as caught:
        config_files.load(place)
    assert str(caught.value).startswith(str(place))
    assert len(str(caught.value)) < 600


def test_a_config_that_is_no_file_is_not_opened(tmp_path):
    place = tmp_path / "config.json"
    os.mkfifo(place)
    with pytest.raises(errors.UserError, match="not a regular file"):
        config_files.load(place)
    place.unlink()
    place.symlink_to("/dev/zero")
    with pytest.raises(errors.UserError, match="not a regular file"):
        config_files.load(place)
    place.unlink()
    place.mkdir()
    with pytest.raises(errors.UserError, match="Is a directory"):
        config_files.load(place)


def test_a_config_that_may_not_be_read_is_the_machines_matter(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(config_files.files, "read", denied)
    with pytest.raises(errors.MachineError, match=r"config\.json: Permission denied"):
        config_files.load(tmp_path / "config.json")


def test_whole_numbers_may_be_written_as_others(tmp_path):
    config_files.save(tmp_path / "config.json", config_lib.Config(), ("a",))
    rewrite(tmp_path, train={"eval_every": 1e3, "learning_rate": 1, "milestones": [1e4]})
    config, _ = config_files.load(tmp_path / "config.json")
    assert (config.train.eval_every, config.train.learning_rate) == (1000, 1)
    assert config.train.milestones == (10_000,)
    assert type(config.train.eval_every) is int


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": {"image_size": 100_000}}, "config.model.image_size is 100000; it may be 4,096"),
        ({"eval": {"batch_size": 10**9}}, "config.eval.batch_size is 1000000000: the inputs"),
        ({"data": {"canvas": 8000}}, "config.eval.batch_size is 32: the canvases"),
        (
            {"eval": {"tta_sizes": [4000]}, "model": {"image_size": 257, "image_width": 4000}},
            "sizes",
        ),
        ({"eval": {"tta_sizes": list(range(300, 400))}}, "config.eval.tta_sizes has 100 entries"),
        ({"eval": {"top_k": 10**7}}, "config.eval.top_k is 10000000; it may be 100,000"),
        ({"model": {"aspect_ratios": [[2.0] * 17]}}, "at most 16 ratios"),
        ({"model": {"unused_logits": [3, 2]}}, "config.model.unused_logits is"),
    ],
)
def test_what_would_fill_the_memory_is_refused_before(fields, named):
    with pytest.raises(errors.UserError, match=re.escape(named)):
        config_files.from_mapping(fields, where="config.json")


def test_default_boxes_without_number_are_refused_before_they_are_made():
    model = config_lib.ModelConfig(
        image_size=4096,
        source_maps=(0,) * 32,
        aspect_ratios=((2.0, 3.0),),
        prior_scales=tuple(np.linspace(0.1, 1, 32).tolist()),
    )
    config_checks.validate(config_lib.Config(model=model, eval=config_lib.EvalConfig(batch_size=1)))
    with pytest.raises(errors.UserError, match=r"50,331,648 default boxes; there may be 4,000,000"):
        build.model(model, 3)


def test_unused_logits_have_to_be_there():
    with pytest.raises(
        errors.UserError, match="unused_logits has 9: 3 classes and the unused logits are only 5"
    ):
        build.model(config_lib.ModelConfig(unused_logits=(2, 9)), 3)


# --- Exported files ---


@pytest.fixture(scope="module")
def written(detector, tmp_path_factory):
    """The detector in each format, with the outputs called raw."""
    folder = tmp_path_factory.mktemp("export")
    places = {name: folder / f"detector.{name}" for name in export.FORMATS}
    for place in places.values():
        export.write(detector, place, outputs="raw")
    return places


def with_metadata(source, folder, **changed):
    """A copy of an exported file with other metadata."""
    place = folder / source.name
    if place.suffix == ".onnx":
        model = onnx.load(source)
        for item in model.metadata_props:
            item.value = changed.get(item.key, item.value)
        onnx.save(model, place)
    elif place.suffix == ".stablehlo":
        with zipfile.ZipFile(source) as archive:
            described = json.loads(archive.read("metadata.json")) | changed
        with place.open("wb") as file:
            file.write(source.read_bytes())  # which has metadata too, that nobody sees
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("metadata.json", json.dumps(described))
    else:
        with safetensors.safe_open(source, framework="numpy") as file:
            described = file.metadata() | changed
        arrays = safetensors.numpy.load_file(source)
        safetensors.numpy.save_file(arrays, place, metadata=described)
    return place


@pytest.mark.parametrize("name", export.FORMATS)
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"config": "[" * 100_000}, "nested too deeply"),
        ({"config": "{"}, "config: no JSON"),
        ({"config": "[]"}, r"config is \[\]"),
        ({"config": '{"model": {"image_size": "300"}}'}, "config.model.image_size is '300'"),
        ({"config": '{"model": {"image_size": 1e9}}'}, "config.model.image_size is 1000000000"),
        ({"class_names": '{"a": 1}'}, "class_names is"),
        ({"class_names": '["a", "a"]'}, "class_names has 'a' twice"),
        ({"image_size": "[600, 300]"}, r"\[600, 300\] as image_size"),
        ({"mean": "[0, 0, 0]"}, r"\[0, 0, 0\] as mean"),
        ({"variances": "[1, 1]"}, r"\[1, 1\] as variances"),
        ({"variances": "NaN"}, "nan as variances"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hostile_metadata_are_one_line(written, tmp_path, name, changed, named):
    place = with_metadata(written[name], tmp_path, **changed)
    with pytest.raises(errors.UserError, match=named) as caught:
        load.load_detector(place)
    assert str(caught.value).startswith(str(place))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["onnx", "stablehlo"])
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"class_names": '["a", "b"]'}, "not what its metadata say"),
        ({"size": 320}, "its network takes"),
    ],
)
def test_metadata_of_another_network_are_refused(written, tmp_path, name, changed, named):
    if "size" in changed:
        described = config_files.to_dict(config_of())
        described["model"]["image_size"] = 320
        changed = {"config": json.dumps(described), "image_size": "[320, 320]"}
    place = with_metadata(written[name], tmp_path, **changed)
    with pytest.raises(errors.UserError, match=named):
        load.load_detector(place)([np.zeros((30, 40, 3), np.uint8)])


def test_numbers_instead_of_parameters_are_refused(written, tmp_path):
    arrays = safetensors.numpy.load_file(written["safetensors"])
    with safetensors.safe_open(written["safetensors"], framework="numpy") as file:
        described = file.metadata()
    arrays = {name: array.astype(np.int32) for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", metadata=described)
    with pytest.raises(errors.UserError, match="int32 as conf0/bias"):
        export.load(tmp_path / "x.safetensors")


def test_metadata_that_unpack_without_end_are_refused(written, tmp_path):
    """Some 17 KB that would be 16 MiB and a byte, and could as well be 4 GB."""
    place = tmp_path / "x.stablehlo"
    with place.open("wb") as file:
        file.write(written["stablehlo"].read_bytes())
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("metadata.json", b" " * (config_files.MOST_BYTES + 1))
    with pytest.raises(errors.UserError, match="larger than"):
        export.load(place)


PROGRAM = """
func.func public @main(%images: tensor<1x4x4x3xf32>) -> tensor<1x4x4x3xf32> {
  %out = OPERATION : (tensor<1x4x4x3xf32>) -> tensor<1x4x4x3xf32>
  return %out : tensor<1x4x4x3xf32>
}
"""


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        # Python's function of that number, of whoever runs the file: it ends the process.
        (
            "stablehlo.custom_call @xla_ffi_python_cpu_callback(%images) {api_version = 4 : i32, "
            "backend_config = {index = 0 : ui64}}",
            "'xla_ffi_python_cpu_callback'",
        ),
        ("stablehlo.custom_call @lapack_sgesdd_ffi(%images)", "'lapack_sgesdd_ffi'"),
        ("stablehlo.custom_call @tf.call_tf_function(%images)", "'tf.call_tf_function'"),
    ],
)
def test_a_program_that_calls_code_of_the_machine_is_refused(tmp_path, operation, named):
    shape = jax.ShapeDtypeStruct((1, 4, 4, 3), np.float32)
    exported = jax.export.export(jax.jit(lambda x: x + 1), platforms=("cpu",))(shape)
    with mlir.make_ir_context():
        module = ir.Module.parse(PROGRAM.replace("OPERATION", operation))
        program = stablehlo.serialize_portable_artifact(module, stablehlo.get_current_version())
    hostile = dataclasses.replace(exported, mlir_module_serialized=bytes(program))
    place = tmp_path / "x.stablehlo"
    with place.open("wb") as file:
        file.write(hostile.serialize())
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("metadata.json", "{}")
    with pytest.raises(errors.UserError, match=f"x.stablehlo is damaged.* calls {named}"):
        export.load(place)


def onnx_network(place, outputs, *, metadata, external=None):
    """An ONNX file that gives these arrays, whatever it is shown."""
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in outputs.items()]
    if external:
        for tensor in tensors:
            onnx.external_data_helper.set_external_data(tensor, location=external)
            tensor.ClearField("raw_data")
    kinds = {
        np.dtype(np.float32): onnx.TensorProto.FLOAT,
        np.dtype(np.int32): onnx.TensorProto.INT32,
    }
    graph = onnx.helper.make_graph(
        [],
        "g",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [None, 300, 300, 3])],
        [
            onnx.helper.make_tensor_value_info(name, kinds[array.dtype], array.shape)
            for name, array in outputs.items()
        ],
        tensors,
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.helper.set_model_props(model, metadata)
    place.write_bytes(model.SerializeToString())
    return place


def detections(**changed):
    """Outputs of a network that finds one object, as the config has them."""
    made = {
        "boxes": np.zeros((1, 5, 4), np.float32),
        "scores": np.array([[0.9, 0, 0, 0, 0]], np.float32),
        "labels": np.array([[1, 0, 0, 0, 0]], np.int32),
    }
    return made | changed


FIVE = np.zeros((1, 5), np.float32)


@pytest.mark.parametrize(
    ("outputs", "named"),
    [
        (detections(labels=np.full((1, 5), 6, np.int32)), "labels that no class has"),
        (detections(labels=np.full((1, 5), -1, np.int32)), "labels that no class has"),
        (detections(labels=np.full((1, 5), 0, np.int32)), "labels that no class has"),
        (detections(boxes=np.full((1, 5, 4), np.nan, np.float32)), "not finite"),
        (detections(scores=np.full((1, 5), np.inf, np.float32)), "not finite"),
        (detections(boxes=np.zeros((1, 6, 4), np.float32)), "not what its metadata say"),
        (detections(boxes=np.zeros((2, 5, 4), np.float32)), "not what its metadata say"),
        (detections(labels=FIVE), "not what its metadata say"),
        (detections(more=FIVE), "not what its metadata say"),
        ({"loc": FIVE, "conf": FIVE, "priors_cxcywh": FIVE}, "not what its metadata say"),
        ({"priors_cxcywh": np.array(1, np.float32)}, "not what its metadata say"),
    ],
)
def test_outputs_that_no_export_gives_are_one_line(detector, tmp_path, outputs, named):
    described = metadata.describe(detector, "detections")
    place = onnx_network(tmp_path / "x.onnx", outputs, metadata=described)
    with pytest.raises(errors.UserError, match=f"x.onnx: .*{named}"):
        export.load(place)([np.zeros((30, 40, 3), np.uint8)])


def test_a_network_that_does_not_run_is_one_line(detector, tmp_path):
    described = metadata.describe(detector, "detections")
    place = onnx_network(tmp_path / "x.onnx", detections(), metadata=described)
    assert len(export.load(place)([np.zeros((30, 40, 3), np.uint8)])[0].scores) == 1
    two = export.load(place)
    with pytest.raises(errors.UserError, match=r"x\.onnx"):
        two([np.zeros((30, 40, 3), np.uint8)] * 2)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "beside.bin"])
def test_values_in_other_files_are_not_read(detector, tmp_path, location):
    for place in (tmp_path / "secret.bin", tmp_path / "in" / "beside.bin"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(bytes(1000))
    described = metadata.describe(detector, "detections")
    place = tmp_path / "in" / "x.onnx"
    onnx_network(place, detections(), metadata=described, external=location)
    with pytest.raises(errors.UserError, match="values are to be in other files"):
        export.load(place)


def test_onnx_runtime_prints_nothing_of_a_file_by_itself(detector, tmp_path, capfd):
    """It warns of values that no node takes, and tries again where its own message is no text."""
    described = metadata.describe(detector, "detections")
    place = onnx_network(tmp_path / "x.onnx", detections() | {"\x1b[2J": FIVE}, metadata=described)
    model = onnx.load(place)
    del model.graph.output[3]
    onnx.save(model, place)
    assert len(export.load(place)([np.zeros((30, 40, 3), np.uint8)])[0].scores) == 1
    model.graph.node.append(onnx.helper.make_node("Unknown", ["images"], ["x"]))
    place.write_bytes(model.SerializeToString().replace(b"Unknown", b"Unkn\xe2wn"))
    with pytest.raises(errors.UserError, match=r"x\.onnx is no ONNX model"):
        export.load(place)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_program_ends_no_process_and_prints_nothing(tmp_path, monkeypatch, capfd):
    """MLIR's reader of jaxlib 0.10.2 aborts at byte 81, and has a segmentation fault at 219."""
    shape = jax.ShapeDtypeStruct((1, 4, 4, 3), np.float32)
    exported = jax.export.export(jax.jit(lambda x: x + 1), platforms=("cpu",))(shape)
    program = exported.mlir_module_serialized
    assert stablehlo_calls.find(program) == set()
    for place in (10, 81, 219):
        with contextlib.suppress(ValueError):  # of a version that reads it
            stablehlo_calls.find(program[:place] + b"\xff" + program[place + 1 :])
    (tmp_path / "aborts.py").write_text("import os\nprint('said')\nos.abort()\n")
    monkeypatch.setattr(stablehlo_calls, "__file__", str(tmp_path / "aborts.py"))
    with pytest.raises(ValueError, match="its program is damaged"):
        stablehlo_calls.find(program)
    assert capfd.readouterr() == ("", "")
