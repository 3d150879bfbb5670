"""Transfer: shared classes, frozen parameters and learning rate multipliers."""

import dataclasses
import functools
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import starting
import tiny_run
import voc_tree
import weight_files
from jax.extend import core
from jax.interpreters import partial_eval

from ssd_jax import augment, build, config_checks, console, errors, export, load, optimizer
from ssd_jax import config as config_lib
from ssd_jax.conventions import Conventions
from ssd_jax.data import classes
from ssd_jax.models import ssd
from ssd_jax.training import data as data_lib
from ssd_jax.training import loop
from ssd_jax.training import start as start_lib
from ssd_jax.training import step as step_lib
from ssd_jax.weights import layouts, loading, transfer

BOXES = 4


def head(logits, seed):
    """A conf head of so many logits, as arrays by path, on 2 channels."""
    rng = np.random.default_rng(seed)
    return {
        "conf0/kernel": rng.normal(size=(3, 3, 2, BOXES * logits)).astype(np.float32),
        "conf0/bias": rng.normal(size=BOXES * logits).astype(np.float32),
        "conf0/depthwise/scale": np.full(BOXES * logits, seed, np.float32),
    }


def weights_of(arrays):
    return loading.Weights(
        Path("w"), layouts.OURS, dict(arrays), {name: f"their {name}" for name in arrays}, {}
    )


def logits_of(arrays, box, logit, logits):
    """Kernel and bias of one box and logit: the channel is box * logits + logit."""
    channel = box * logits + logit
    return arrays["conf0/kernel"][..., channel], arrays["conf0/bias"][channel]


def nested(arrays):
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def assert_same_logit(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_shared_classes_and_the_background_are_kept_and_others_are_initialized():
    theirs, ours = transfer.Classes(("cat", "dog", "cow")), transfer.Classes(("fox", "dog"))
    old, fresh = head(4, 1), head(3, 2)
    weights, kept = transfer.with_classes(
        weights_of(old), nested(fresh), theirs=theirs, ours=ours, share=True
    )
    assert kept == ("dog",)
    for box in range(BOXES):
        for here, there in ((0, 0), (2, 2)):  # background, dog
            found = logits_of(weights.arrays, box, here, 3)
            assert_same_logit(found, logits_of(old, box, there, 4))
        assert_same_logit(logits_of(weights.arrays, box, 1, 3), logits_of(fresh, box, 1, 3))
    # The layer before the predictor knows no classes.
    np.testing.assert_array_equal(weights.arrays["conf0/depthwise/scale"], 1)


def test_as_many_classes_are_not_the_same_classes():
    theirs, ours = transfer.Classes(("cat", "dog")), transfer.Classes(("dog", "hen"))
    old, fresh = head(3, 1), head(3, 2)
    weights, kept = transfer.with_classes(
        weights_of(old), nested(fresh), theirs=theirs, ours=ours, share=True
    )
    assert kept == ("dog",)
    assert_same_logit(logits_of(weights.arrays, 1, 1, 3), logits_of(old, 1, 2, 3))
    assert_same_logit(logits_of(weights.arrays, 1, 2, 3), logits_of(fresh, 1, 2, 3))


def test_the_same_classes_keep_all():
    names = transfer.Classes(("cat", "dog"))
    weights = weights_of(head(3, 1))
    found, kept = transfer.with_classes(weights, {}, theirs=names, ours=names, share=False)
    assert found is weights
    assert kept == ("cat", "dog")


def test_nothing_is_shared_on_request_and_the_heads_are_named_as_ignored():
    theirs, ours = transfer.Classes(("cat", "dog")), transfer.Classes(("dog",))
    weights, kept = transfer.with_classes(
        weights_of(head(3, 1)), nested(head(2, 2)), theirs=theirs, ours=ours, share=False
    )
    assert kept == ()
    assert list(weights.arrays) == ["conf0/depthwise/scale"]
    assert set(weights.ignored) == {"their conf0/kernel", "their conf0/bias"}


def test_cocos_ids_and_vocs_names_find_each_other():
    theirs = transfer.Classes(classes.COCO, classes.COCO_UNUSED_IDS)
    ours = transfer.Classes(classes.VOC)
    old = head(91, 1)
    weights, kept = transfer.with_classes(
        weights_of(old), nested(head(21, 2)), theirs=theirs, ours=ours, share=True
    )
    assert kept == classes.VOC  # all 20 are among COCO's 80
    # Ids of COCO's own list: person 1, airplane 5, potted plant 64, tv 72.
    for name, their_id in {"person": 1, "aeroplane": 5, "pottedplant": 64, "tvmonitor": 72}.items():
        here = classes.VOC.index(name) + 1
        found = logits_of(weights.arrays, 2, here, 21)
        assert_same_logit(found, logits_of(old, 2, their_id, 91))


def test_two_names_of_one_thing_are_two_logits():
    theirs, ours = transfer.Classes(("tv", "tvmonitor", "cat")), transfer.Classes(("cat",))
    old = head(4, 1)
    weights, kept = transfer.with_classes(
        weights_of(old), nested(head(2, 2)), theirs=theirs, ours=ours, share=True
    )
    assert kept == ("cat",)
    assert_same_logit(logits_of(weights.arrays, 3, 1, 2), logits_of(old, 3, 3, 4))


def detector_file(path, logits):
    """The heads of an SSD300 of so many logits, all ones, by our names."""
    heads = {}
    for level, boxes in enumerate((4, 6, 6, 6, 4, 4)):
        heads[f"loc{level}/bias"] = np.ones(boxes * 4, np.float32)
        heads[f"conf{level}/bias"] = np.ones(boxes * logits, np.float32)
    np.savez(path, **heads)
    return path


def test_logits_of_no_known_meaning_are_taken_as_they_are(tmp_path):
    path = detector_file(tmp_path / "w.npz", logits=3)
    source = starting.source(path, backbone="vgg16", cache_dir=tmp_path)
    assert source.classes is None  # so that a network of two classes loads its heads whole
    params = {"conf0": {"bias": np.zeros(12, np.float32)}}
    assert loading.fit(params, source.weights)[0]["conf0"]["bias"].all()
    path = detector_file(tmp_path / "voc.npz", logits=21)
    source = starting.source(path, backbone="vgg16", cache_dir=tmp_path)
    assert source.classes == transfer.Classes(classes.VOC)


def test_heads_that_differ_in_more_than_classes_are_left_for_fit_to_refuse():
    theirs, ours = transfer.Classes(("cat", "dog", "cow")), transfer.Classes(("fox", "dog"))
    old, fresh = head(4, 1), head(3, 2)
    more = {name: np.concatenate([array, array], axis=-1) for name, array in old.items()}
    wide = {**old, "conf0/kernel": np.concatenate([old["conf0/kernel"]] * 2, axis=-2)}
    for arrays, left in ((more, set(more)), (wide, {"conf0/kernel", "conf0/depthwise/scale"})):
        found, _ = transfer.with_classes(
            weights_of(arrays), nested(fresh), theirs=theirs, ours=ours, share=True
        )
        assert {name for name in arrays if found.arrays[name] is arrays[name]} == left


@pytest.mark.parametrize("share", [True, False])
def test_an_ssd512_into_an_ssd300_is_one_line(cfg, tmp_path, share):
    arrays = {}
    for level, boxes in enumerate((4, 6, 6, 6, 6, 4, 4)):
        arrays[f"loc{level}/bias"] = np.ones(boxes * 4, np.float32)
        arrays[f"conf{level}/bias"] = np.ones(boxes * 21, np.float32)
    np.savez(tmp_path / "ssd512.npz", **arrays)
    pretrained = str(tmp_path / "ssd512.npz")
    model = dataclasses.replace(cfg.model, pretrained=pretrained, shared_classes=share)
    message = r"ssd512\.npz: loc4/bias has shape \(24,\).* network's is \(16,\); config\.model"
    with pytest.raises(errors.UserError, match=message):
        loop.train(dataclasses.replace(cfg, model=model), tmp_path / "run")


def test_patterns_name_parameters_and_modules():
    paths = ["vgg16/conv1_1/kernel", "vgg16/conv1_1/bias", "vgg16/conv10_1/bias", "conf0/bias"]
    assert optimizer.matching(paths, "vgg16/conv1_1") == paths[:2]
    assert optimizer.matching(paths, "*/bias") == paths[1:]
    assert optimizer.matching(paths, "conf*") == paths[3:]
    assert optimizer.matching(paths, "conv1_1") == []


def test_lr_multipliers_scale_the_step_and_the_last_pattern_counts():
    params = {"backbone": {"kernel": jnp.ones(3)}, "conf0": {"kernel": jnp.ones(3)}}
    grads = jax.tree.map(jnp.ones_like, params)

    def steps(lr_multipliers):
        opt = optimizer.make_optimizer(optax.constant_schedule(0.1), lr_multipliers=lr_multipliers)
        return opt.update(grads, opt.init(params), params)[0]

    plain, scaled = steps({}), steps({"*": 0.5, "conf*": 20.0})
    np.testing.assert_allclose(
        scaled["backbone"]["kernel"], 0.5 * plain["backbone"]["kernel"], rtol=1e-6
    )
    np.testing.assert_allclose(scaled["conf0"]["kernel"], 20 * plain["conf0"]["kernel"], rtol=1e-6)


@pytest.fixture(scope="module")
def cfg(config, tmp_path_factory):
    """Two steps of a VGG, whose layers the tests name."""
    config = tiny_run.config(tmp_path_factory.mktemp("vgg"), network=tiny_run.NARROW)
    train = dataclasses.replace(config.train, steps=2, eval_every=2, checkpoint_every=2)
    return dataclasses.replace(config, train=train)


@pytest.fixture(scope="module")
def step_of(cfg):
    """A state, a batch, and the step with some parameters frozen."""
    data = data_lib.open_splits(cfg.data)
    mesh = step_lib.make_mesh(jax.devices()[:1])
    model = build.model(cfg.model, len(data.train.class_names))
    opt = optimizer.make_optimizer(optax.constant_schedule(1e-3))
    batch = step_lib.shard_batch(next(data_lib.batches(cfg, data.train, 0)), mesh)

    def make(freeze):
        state = step_lib.init_state(model, opt, (300, 300), 0, ema=True, freeze=freeze)
        step = step_lib.make_train_step(
            model,
            opt,
            prepare=functools.partial(
                step_lib.prepare,
                priors_cxcywh=build.priors(cfg.model, model),
                transform=functools.partial(augment.augment, size=(300, 300), policy="flip"),
            ),
            over_devices=functools.partial(step_lib.by_shard_map, mesh=mesh),
            ema_decay=0.9,
            freeze=freeze,
        )
        return jax.device_put(state, step_lib.replicated(mesh)), step, batch

    return make


@pytest.mark.slow
def test_what_is_frozen_stays_and_all_else_learns_as_before(step_of):
    freeze = ("vgg16/conv[12]_*", "loc0/bias")
    moved = {}
    for patterns in ((), freeze):
        state, step, batch = step_of(patterns)
        before = flax.traverse_util.flatten_dict(jax.device_get(state.params), sep="/")
        after, _ = step(state, batch)
        trees = (jax.device_get(tree) for tree in (after.params, after.ema))
        moved[patterns] = [flax.traverse_util.flatten_dict(tree, sep="/") for tree in trees]
    frozen = {path for pattern in freeze for path in optimizer.matching(before, pattern)}
    assert len(frozen) == 9
    for path, values in before.items():
        params, average = (tree[path] for tree in moved[freeze])
        if path in frozen:
            np.testing.assert_array_equal(params, values, err_msg=path)
            np.testing.assert_array_equal(average, values, err_msg=path)
        else:
            assert not path.startswith("vgg16/") or (params != values).any(), path
            np.testing.assert_allclose(params, moved[()][0][path], rtol=1e-5, atol=1e-7)


def convolutions(jaxpr):
    """Convolutions in a jaxpr and all that it calls."""
    inner = (sub for eqn in jaxpr.eqns for sub in core.jaxprs_in_params(eqn.params))
    own = sum(eqn.primitive.name == "conv_general_dilated" for eqn in jaxpr.eqns)
    return own + sum(convolutions(sub) for sub in inner)


def test_no_backward_pass_goes_into_what_is_frozen(step_of):
    counts = []
    for freeze in ((), ("vgg16/conv[123]_*",)):
        state, step, batch = step_of(freeze)
        traced = jax.make_jaxpr(step)(state, batch).jaxpr
        used, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))  # as XLA does
        counts.append(convolutions(used))
    # conv1_1 to conv3_3 are seven layers: each lacks the gradient of its kernel, and all but the
    # first had one of their input; of conv4_1's input none is needed any more.
    assert counts[0] - counts[1] == 7 + 6 + 1


@pytest.mark.slow
def test_a_run_starts_from_another_run(cfg, tmp_path, capsys, monkeypatch):
    loop.train(cfg, tmp_path / "a")
    detector = load.load_detector(tmp_path / "a")
    export.write(detector, tmp_path / "a.safetensors")
    before = flax.traverse_util.flatten_dict(jax.device_get(detector.params), sep="/")
    monkeypatch.setattr(console.stdout, "width", 10_000)
    names = detector.class_names
    for number, source in enumerate((tmp_path / "a", tmp_path / "a.safetensors")):
        second = dataclasses.replace(
            cfg,
            model=dataclasses.replace(cfg.model, pretrained=str(source)),
            train=dataclasses.replace(cfg.train, freeze=("vgg16",), lr_multipliers=("conf*=2",)),
        )
        loop.train(second, tmp_path / f"b{number}")
        shown = capsys.readouterr().out
        assert f"{len(names)} of {len(names)} classes kept" in shown
        assert f"{len(before)} loaded: conf0, " in shown
        listed = (tmp_path / f"b{number}" / "weights.txt").read_text()
        assert all(f"  {path} {values.shape}\n" in listed for path, values in before.items())
        after = load.load_detector(tmp_path / f"b{number}")
        for path, values in flax.traverse_util.flatten_dict(after.params, sep="/").items():
            same = np.array_equal(values, before[path])
            assert same == path.startswith("vgg16/"), path


@pytest.fixture(scope="module")
def amdegroots(tmp_path_factory):
    """amdegroot's SSD300 of VOC's classes, an eighth as wide, and its arrays by our names."""
    model = build.model(config_lib.ModelConfig(width=0.125), len(classes.VOC))
    shapes = flax.traverse_util.flatten_dict(ssd.abstract_params(model, (300, 300)), sep="/")
    random = np.random.default_rng(0)
    ours = {
        name: (0.02 * random.standard_normal(leaf.shape)).astype(np.float32)
        for name, leaf in shapes.items()
    }
    (layout,) = (of for of in layouts.LAYOUTS if of.title == "amdegroot's SSD")
    theirs = {
        name: ours[path].transpose(3, 2, 0, 1) if ours[path].ndim == 4 else ours[path]
        for name, path in layout.entries.items()
        if path in ours
    }
    assert len(theirs) == len(ours)
    path = tmp_path_factory.mktemp("weights") / "amdegroot.pth"
    weight_files.torch_zip(path, theirs)
    return path, ours


@pytest.mark.slow
def test_a_run_starts_from_a_third_party_detector_of_other_classes(cfg, amdegroots, tmp_path):
    path, ours = amdegroots
    names = ("bee", "dog", "person")  # two of them are VOC's
    data = voc_tree.write(
        tmp_path / "data",
        images={f"{k}.jpg": voc_tree.jpeg(90, 120, seed=k) for k in range(8)},
        annotations={
            f"{k}": voc_tree.xml(*map(voc_tree.box, names), size=(90, 120)) for k in range(8)
        },
        splits={"train": [str(k) for k in range(8)], "val": ["0"]},
    )
    here = dataclasses.replace(
        cfg.data, dataset="folder", path=str(data), train_split="train", eval_split="val"
    )
    config = dataclasses.replace(
        cfg,
        data=here,
        model=dataclasses.replace(cfg.model, pretrained=str(path)),
        train=dataclasses.replace(cfg.train, learning_rate=1e-9),  # so that all stays as it began
    )
    loop.train(config, tmp_path / "run")
    detector = load.load_detector(tmp_path / "run")
    assert detector.class_names == names
    assert detector.config.model.clip_priors  # as amdegroot's
    found = flax.traverse_util.flatten_dict(jax.device_get(detector.params), sep="/")
    for name, values in ours.items():
        if not name.startswith("conf"):  # the backbone, the extras and where the boxes are
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
            continue
        theirs = values.reshape(*values.shape[:-1], -1, 21)
        mine = found[name].reshape(*values.shape[:-1], -1, 4)
        for here, there in ((0, 0), (2, classes.VOC.index("dog") + 1), (3, 15)):  # person is 15
            np.testing.assert_allclose(mine[..., here], theirs[..., there], atol=1e-5)
        assert np.abs(mine[..., 1] - theirs[..., 1]).max() > 1e-3  # a bee is no aeroplane


def test_the_default_boxes_of_a_detector_come_with_its_heads(cfg, tmp_path):
    there = Conventions(
        mean=(1.0, 2.0, 3.0), prior_sizes="coco", clip_prior_sizes=True, padding="tensorflow"
    )
    source = load.Pretrained(weights_of({}), None, there)
    given = dataclasses.replace(
        cfg, model=dataclasses.replace(cfg.model, pretrained="w", mean=(9.0, 9.0, 9.0))
    )
    settled = start_lib.settled(given, tmp_path, lambda: source)
    assert settled.model == dataclasses.replace(
        given.model, prior_sizes="coco", clip_prior_sizes=True, padding="tensorflow"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("freeze", ("vgg/conv1",), r"config\.train\.freeze: 'vgg/conv1' matches no parameter"),
        (
            "lr_multipliers",
            ("head=2",),
            r"config\.train\.lr_multipliers: 'head' matches no parameter",
        ),
        ("freeze", ("*",), r"config\.train\.freeze leaves no trainable parameter"),
        ("freeze", ("vgg16",), r"would keep vgg16/.* at random values: give the weights"),
    ],
)
def test_a_mistake_in_a_pattern_leaves_no_workdir(cfg, tmp_path, field, value, message):
    wrong = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **{field: value}))
    with pytest.raises(errors.UserError, match=message):
        loop.train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_parameters_have_to_be_in_the_file(cfg, tmp_path):
    np.savez(tmp_path / "w.npz", **{"conv1_1/kernel": np.zeros((3, 3, 3, 8), np.float32)})
    wrong = dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, pretrained=str(tmp_path / "w.npz")),
        train=dataclasses.replace(cfg.train, freeze=("vgg16/conv1_1",)),
    )
    with pytest.raises(errors.UserError, match=r"keep vgg16/conv1_1/bias at random.*w\.npz has"):
        loop.train(wrong, tmp_path / "run")


@pytest.mark.parametrize("text", ["conf*", "conf*=x", "conf*=0", "=2", "conf*=inf", "conf*=-1"])
def test_a_rate_that_is_none_is_one_line(text):
    with pytest.raises(
        errors.UserError, match=r"config\.train\.lr_multipliers has .* give PATTERN=NUMBER"
    ):
        config_checks.lr_multipliers((text,))
    assert config_checks.lr_multipliers(("a=b=2", "c=0.5")) == {"a=b": 2.0, "c": 0.5}
