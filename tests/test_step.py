"""The mapped train step. conftest.py gives 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny_backbone

from ssd_jax import augment, boxes, losses, matching, optimizer, priors
from ssd_jax.models import ssd
from ssd_jax.training import step

SIZE, BATCH = (tiny_backbone.SIDE, tiny_backbone.SIDE), 8
MODEL = tiny_backbone.network(num_classes=4)
PRIORS = ssd.default_boxes(MODEL, SIZE)
VGG, VGG_SIZE = ssd.SSD(num_classes=4, width=0.125), (300, 300)


@pytest.fixture(scope="module")
def batch():
    return make_batch(BATCH)


def make_batch(count):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (count, 3, 2))
    labels = rng.integers(1, 4, (count, 3))
    labels[2] = 0  # an image without objects
    labels[5, 1:] = 0
    return {
        "image": rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8),
        "valid_size": np.tile(np.float32([50, 60]), (count, 1)),
        "boxes": np.concatenate([low, low + rng.uniform(0.1, 0.5, low.shape)], -1).astype("f4"),
        "labels": labels.astype(np.int32),
        "position": np.arange(count, dtype=np.int32),
    }


OPTIMIZER = optimizer.make_optimizer(optax.constant_schedule(1e-5))


def make_step(
    model,
    opt,
    mesh,
    *,
    size=SIZE,
    parallel="shard_map",
    boundary_boxes=True,
    loc_weight=1.0,
    **options,
):
    """The train step of a network, with the options of the loop.

    It only flips: to compile all of the paper's augmentation takes longer than the rest.
    """
    all_priors = ssd.default_boxes(model, size)
    used = np.arange(len(all_priors))
    if not boundary_boxes:
        used = np.flatnonzero(priors.inside(all_priors))
    return step.make_train_step(
        model,
        opt,
        prepare=functools.partial(
            step.prepare,
            priors_cxcywh=all_priors[used],
            transform=functools.partial(augment.augment, size=size, policy="flip"),
        ),
        over_devices=functools.partial(getattr(step, f"by_{parallel}"), mesh=mesh),
        loss=step.loss_of_priors(
            functools.partial(losses.multibox_loss, loc_weight=loc_weight), used
        ),
        **options,
    )


def run_state(
    batch, *, devices, steps, model=MODEL, size=SIZE, opt=OPTIMIZER, ema=False, **options
):
    """State and metrics after a few steps on the same batch."""
    mesh = step.make_mesh(jax.devices()[:devices])
    train_step = make_step(model, opt, mesh, size=size, **options)
    state = step.init_state(model, opt, size, seed=0, ema=ema)
    state = jax.device_put(state, step.replicated(mesh))
    for _ in range(steps):
        given = state
        state, metrics = train_step(given, step.shard_batch(batch, mesh))
        if "parallel" not in options:
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))  # its memory is reused
    assert int(state.step) == steps
    return jax.device_get((state, metrics))


def run(batch, *, devices, steps=2, **options):
    """Parameters and metrics after a few steps on the same batch."""
    state, metrics = run_state(batch, devices=devices, steps=steps, **options)
    return state.params, metrics


@pytest.fixture(scope="module")
def on_eight(batch):
    return run(batch, devices=8)


def assert_close(result, expected):
    for (path, leaf), want in zip(
        jax.tree_util.tree_leaves_with_path(result), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(want).max() + 1e-6
        # The devices' sums come in another order: fresh biases, which are nothing but two steps of
        # gradients, differ by 3e-5. Another normalization would show in the first digit.
        np.testing.assert_allclose(leaf / scale, want / scale, atol=1e-4, err_msg=str(path))


@pytest.mark.slow
def test_pmap_and_shard_map_are_equal(batch, on_eight):
    assert_close(run(batch, devices=8, parallel="pmap"), on_eight)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_the_number_of_devices_does_not_change_the_step(batch, on_eight, devices):
    assert_close(run(batch, devices=devices), on_eight)


def flipped(batch, size):
    """Images, boxes and labels of the first step, whose seed is 0."""

    def augmented(position, *example):
        key = jax.random.fold_in(jax.random.key(0), position)
        return augment.augment(key, *example, size=size, policy="flip")

    names = ("position", "image", "valid_size", "boxes", "labels")
    return jax.jit(jax.vmap(augmented))(*(batch[name] for name in names))


@pytest.mark.slow
def test_the_step_is_the_sum_of_its_parts(batch):
    """Against the pieces called one after the other, on one device and without any mapping.

    Of a VGG at 300 pixels. Flipping alone: the crops of "ssd" magnify what the compiler rounds in
    another order.
    """
    image, gt_boxes, labels = flipped(batch, VGG_SIZE)
    vgg_priors = ssd.default_boxes(VGG, VGG_SIZE)
    matches = jax.jit(jax.vmap(matching.match, in_axes=(0, 0, None)))(gt_boxes, labels, vgg_priors)
    targets = jax.vmap(boxes.encode, in_axes=(0, None))(matches.boxes, vgg_priors)
    params = step.init_state(VGG, OPTIMIZER, VGG_SIZE, seed=0).params

    @jax.jit
    @jax.value_and_grad
    def loss(params, image, matches, targets):
        loc, conf = VGG.apply({"params": params}, augment.normalize(image))
        positive = matches.labels > 0
        log_probs = jax.nn.log_softmax(conf)
        worst = jnp.where(positive, -jnp.inf, -log_probs[..., 0])
        rank = jnp.argsort(jnp.argsort(-worst, axis=1, stable=True), axis=1)
        negative = ~positive & (rank < 3 * positive.sum(1, keepdims=True))
        entropy = -jnp.take_along_axis(log_probs, matches.labels[..., None], -1)[..., 0]
        far = jnp.abs(loc - jnp.where(positive[..., None], targets, 0))
        smooth = jnp.where(far < 1, far**2 / 2, far - 0.5).sum(-1)
        total = jnp.where(positive | negative, entropy, 0) + jnp.where(positive, smooth, 0)
        return total.sum() / positive.sum()

    value, grads = loss(params, image, matches, targets)
    updates, _ = OPTIMIZER.update(grads, OPTIMIZER.init(params), params)
    expected = jax.device_get(optax.apply_updates(params, updates))
    new_params, metrics = run(batch, devices=4, steps=1, model=VGG, size=VGG_SIZE)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert_close(new_params, expected)


def test_the_same_image_is_augmented_alike_in_any_batch():
    key = jax.random.key(7)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    arguments = (image, np.float32([64, 64]), np.zeros((1, 4), "f4"), np.zeros(1, "i4"))

    @jax.jit
    def augmented(number):
        return augment.augment(jax.random.fold_in(key, number), *arguments, size=32)

    alone = [augmented(number) for number in range(6)]
    many = jax.jit(jax.vmap(augmented))(jnp.arange(6))
    for index, one in enumerate(alone):
        np.testing.assert_allclose(one.image, many.image[index], atol=1e-3)


def gradients(batch, **options):
    """What one step of rate 1 without momentum takes away, and its metrics."""
    plain = optax.sgd(1.0)
    before = step.init_state(MODEL, plain, SIZE, seed=0).params
    after, metrics = run(batch, steps=1, opt=plain, **options)
    return jax.tree.map(lambda a, b: a - b, jax.device_get(before), after), metrics


def assert_same_gradient(result, expected):
    """Each array to 1e-5 of its length, its entries to 5e-5 of the largest.

    Where two pixels under a max pool are equal but for rounding, another order of the sums may
    send the gradient to the other one: one entry of 4,608 was 1.1e-5 of the largest apart.
    """
    for got, want in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        length, largest = np.linalg.norm(want.ravel()), np.abs(want).max()
        assert np.linalg.norm((got - want).ravel()) <= 1e-5 * max(length, 1)
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-5 * max(largest, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "parts"), [(1, 4), (2, 2)])
def test_accumulated_parts_give_the_gradient_of_the_whole(batch, devices, parts):
    expected, metrics = gradients(batch, devices=devices)
    result, accumulated = gradients(batch, devices=devices, accumulate=parts)
    for name in metrics:
        np.testing.assert_allclose(accumulated[name], metrics[name], rtol=1e-5, err_msg=name)
    assert_same_gradient(result, expected)


@pytest.mark.slow
def test_four_parts_of_eight_give_the_parameters_of_thirty_two():
    """Parameters to 1e-5 after a step at ten times the paper's rate.

    A network of 8 images rounds otherwise than one of 32, see `assert_same_gradient`: the whole
    gradient was 1.5e-5 of its length apart.
    """
    batch, rate = make_batch(32), 1e-2
    before = jax.device_get(step.init_state(MODEL, OPTIMIZER, SIZE, seed=0).params)
    options = {"devices": 1, "steps": 1, "opt": optax.sgd(rate)}
    expected, metrics = run(batch, **options)
    result, accumulated = run(batch, accumulate=4, **options)
    for name in metrics:
        np.testing.assert_allclose(accumulated[name], metrics[name], rtol=1e-5, err_msg=name)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, expected)
    assert max(jax.tree.leaves(moved)) > 1e-2  # an average in place of a sum would show
    for got, want in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    apart = optax.tree.norm(jax.tree.map(np.subtract, result, expected))
    assert apart <= 2e-5 * rate * metrics["grad_norm"]


@pytest.mark.slow
def test_what_is_computed_twice_gives_the_same_gradient(batch):
    expected, _ = gradients(batch, devices=1)
    result, _ = gradients(batch, devices=1, model=MODEL.clone(remat=True))
    for got, want in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(np.abs(want).max(), 1))


def test_remat_keeps_only_the_inputs_of_blocks():
    """XLA decides what it does with it; JAX is told."""
    images = jax.ShapeDtypeStruct((1, *VGG_SIZE, 3), jnp.float32)
    for remat, times in ((False, 0), (True, 5)):
        model = ssd.SSD(num_classes=4, width=0.125, remat=remat)
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        graph = jax.make_jaxpr(lambda p, x, model=model: model.apply(p, x))(params, images)
        assert str(graph).count("checkpoint[") + str(graph).count("remat2[") == times
        assert (
            params["params"].keys()
            == jax.eval_shape(VGG.init, jax.random.key(0), images)["params"].keys()
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        pytest.param({"valid_size": np.nan}, id="image"),
        pytest.param({"boxes": np.nan}, id="boxes"),
        pytest.param({"loc_weight": np.float32(np.inf)}, id="gradients"),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(batch, harm):
    options = {"devices": 2, "ema": True, "ema_decay": 0.9}
    harmed = {name: np.array(values) for name, values in batch.items()}
    for name, value in harm.items():
        if name in batch:
            harmed[name][3] = value
        else:
            options[name] = value
    assert_skipped(*run_state(harmed, steps=1, **options))


@pytest.mark.slow
def test_a_step_whose_gradients_alone_are_not_finite_is_skipped_too(batch, monkeypatch):
    @jax.custom_vjp
    def poisoned(x):
        return x

    poisoned.defvjp(lambda x: (x, None), lambda _, grads: (grads * jnp.nan,))
    original = ssd.apply
    monkeypatch.setattr(ssd, "apply", lambda *args: jax.tree.map(poisoned, original(*args)))
    options = {"devices": 2, "ema": True, "ema_decay": 0.9}
    state, metrics = run_state(batch, steps=1, **options)
    assert np.isfinite(metrics["loss"])
    assert_skipped(state, metrics)


def assert_skipped(state, metrics):
    """After one step nothing but its number has changed."""
    assert metrics["skipped"] == 1
    fresh = step.init_state(MODEL, OPTIMIZER, SIZE, seed=0, ema=True)
    assert int(state.step) == 1
    for got, want in zip(
        jax.tree.leaves((state.params, state.opt_state, state.ema)),
        jax.tree.leaves((fresh.params, fresh.opt_state, fresh.ema)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_the_moving_average_follows_its_formula(batch):
    options = {"devices": 2, "opt": optax.sgd(1e-5)}
    expected = jax.device_get(step.init_state(MODEL, optax.sgd(1e-5), SIZE, seed=0).params)
    for steps in (1, 2):
        params, _ = run(batch, steps=steps, **options)
        keep = min(0.15, steps / (9 + steps))  # of (1 + t) / (10 + t), with t from 0
        expected = jax.tree.map(lambda a, b, k=keep: k * a + (1 - k) * b, expected, params)
    state, _ = run_state(batch, steps=2, ema=True, ema_decay=0.15, **options)
    for got, want in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_larger_gradients_are_clipped_to_the_norm(batch):
    _, metrics = gradients(batch, devices=1)
    rate = optax.constant_schedule(1.0)
    clipped = optimizer.make_optimizer(
        rate, momentum=0.0, weight_decay=0.0, bias_lr_multiplier=1.0, clip_norm=0.5
    )
    before = step.init_state(MODEL, clipped, SIZE, seed=0).params
    after, again = run(batch, devices=1, steps=1, opt=clipped)
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, jax.device_get(before), after))
    np.testing.assert_allclose(moved, 0.5, rtol=1e-4)
    np.testing.assert_allclose(again["grad_norm"], metrics["grad_norm"], rtol=1e-4)


@pytest.mark.slow
def test_boxes_over_the_edge_can_be_as_if_they_were_not_there(batch):
    """Against the reference on the default boxes inside the image alone."""
    image, gt_boxes, gt_labels = flipped(batch, SIZE)
    corners = np.array([reference.corners(prior) for prior in PRIORS])
    kept = (corners.min(1) >= -1e-6) & (corners.max(1) <= 1 + 1e-6)
    targets, labels = np.zeros((BATCH, kept.sum(), 4)), np.zeros((BATCH, kept.sum()), int)
    for number in range(BATCH):
        boxes_of, labels_of = np.asarray(gt_boxes[number]), np.asarray(gt_labels[number])
        matched = reference.match(boxes_of, labels_of, PRIORS[kept])
        for row in np.flatnonzero(matched >= 0):
            labels[number, row] = labels_of[matched[row]]
            targets[number, row] = reference.encode(boxes_of[matched[row]], PRIORS[kept][row])
    params = step.init_state(MODEL, OPTIMIZER, SIZE, seed=0).params
    loc, conf = jax.jit(MODEL.apply)({"params": params}, augment.normalize(image))
    loc, conf = np.asarray(loc)[:, kept], np.asarray(conf)[:, kept]
    expected = reference.multibox_loss(loc, conf, targets, labels)[0]
    _, metrics = run(batch, devices=4, steps=1, boundary_boxes=False)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    _, metrics = run(batch, devices=4, steps=1)
    assert abs(metrics["loss"] - expected) > 1e-3
