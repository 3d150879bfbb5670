import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import PartitionSpec

from ssd_jax import losses

LOSS = jax.jit(losses.multibox_loss)
LOSS_AND_GRADIENTS = jax.jit(jax.value_and_grad(losses.multibox_loss, (0, 1), has_aux=True))
MASK = jax.jit(losses.hard_negative_mask)


def random_batch(seed, *, images=4, priors=50, classes=5, positive=0.1):
    """(loc, conf, targets, labels); about `positive` of the priors have a class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, classes, (images, priors))
    labels *= rng.random((images, priors)) < positive
    return (
        rng.normal(0, 1, (images, priors, 4)).astype(np.float32),
        rng.normal(0, 2, (images, priors, classes)).astype(np.float32),
        rng.normal(0, 1, (images, priors, 4)).astype(np.float32),
        labels.astype(np.int32),
    )


def check_loss(batch):
    """Compares loss and parts with the reference."""
    loss, metrics = LOSS(*batch)
    got = (loss, metrics["loc_loss"], metrics["conf_loss"])
    np.testing.assert_allclose(got, reference.multibox_loss(*batch), rtol=1e-5, atol=1e-7)
    return metrics


@pytest.mark.parametrize("seed", range(8))
def test_mask_equals_the_reference_plain_jit_and_vmap(seed):
    rng = np.random.default_rng(seed)
    loss = rng.integers(0, 4, (6, 40)).astype(np.float32)  # many ties
    positive = rng.random((6, 40)) < rng.choice([0, 0.05, 0.1, 0.4, 1], (6, 1))
    expected = [reference.hard_negative_mask(*row) for row in zip(loss, positive, strict=True)]
    batched = jax.jit(jax.vmap(losses.hard_negative_mask))(loss, positive)
    np.testing.assert_array_equal(batched, expected)
    for row in range(2):
        for function in (losses.hard_negative_mask, MASK):
            np.testing.assert_array_equal(function(loss[row], positive[row]), expected[row])


def test_exactly_three_negatives_for_each_positive_when_all_losses_tie():
    positive = jnp.arange(40) % 10 == 9  # 4 of 40
    mask = np.asarray(MASK(jnp.full(40, 0.5), positive))
    assert mask.sum() == 12
    # Ties go to the lowest index: the first twelve that are not positive.
    np.testing.assert_array_equal(np.flatnonzero(mask), [*range(9), *range(10, 13)])


def test_mined_negatives_are_never_positives():
    # The positives have the highest background loss.
    positive = jnp.arange(20) < 4
    mask = MASK(jnp.linspace(9, 1, 20), positive)
    assert not (mask & positive).any()
    np.testing.assert_array_equal(np.flatnonzero(mask), range(4, 16))


def test_float64_is_mined_as_float32():
    positive = np.arange(20) < 4
    with jax.enable_x64(True):
        mask = losses.hard_negative_mask(jnp.linspace(9, 1, 20), jnp.asarray(positive))
    np.testing.assert_array_equal(np.flatnonzero(mask), range(4, 16))


def test_no_more_negatives_than_there_are():
    positive = jnp.arange(10) < 8
    np.testing.assert_array_equal(MASK(jnp.ones(10), positive), ~positive)


@pytest.mark.parametrize("positive", [np.zeros(10, bool), np.ones(10, bool)], ids=["none", "all"])
def test_no_negatives_without_positives_or_without_negatives(positive):
    assert not MASK(jnp.ones(10), positive).any()


def test_losses_of_zero_are_mined_too():
    # A saturated background has a loss of exactly 0; the ratio holds all the same.
    assert MASK(jnp.zeros(30), jnp.arange(30) == 5).sum() == 3


@pytest.mark.parametrize(("ratio", "count"), [(1, 3), (1.5, 4), (0, 0)])
def test_the_ratio_is_rounded_down(ratio, count):
    mask = losses.hard_negative_mask(jnp.ones(30), jnp.arange(30) < 3, neg_pos_ratio=ratio)
    assert mask.sum() == count


@pytest.mark.parametrize("seed", range(4))
def test_loss_equals_the_reference(seed):
    check_loss(random_batch(seed, positive=[0.1, 0.02, 0.5, 1][seed]))


def test_loss_of_one_positive_by_hand():
    # Uniform logits over 4 classes: ln 4 for the positive and each of 3 negatives. Errors 0.5, 2.
    loc = jnp.zeros((1, 6, 4))
    targets = loc.at[0, 2].set(jnp.array([0.5, 0, 0, -2]))
    labels = jnp.zeros((1, 6), jnp.int32).at[0, 2].set(3)
    loss, metrics = LOSS(loc, jnp.zeros((1, 6, 4)), targets, labels)
    np.testing.assert_allclose(metrics["conf_loss"], 4 * np.log(4), rtol=1e-6)
    np.testing.assert_allclose(metrics["loc_loss"], 0.5 * 0.5**2 + (2 - 0.5), rtol=1e-6)
    np.testing.assert_allclose(loss, metrics["conf_loss"] + metrics["loc_loss"], rtol=1e-6)
    assert (metrics["positives"], metrics["negatives"]) == (1, 3)


def test_loc_weight_scales_the_localization_part_only():
    batch = random_batch(3)
    loss, metrics = losses.multibox_loss(*batch, loc_weight=2.5)
    expected = metrics["conf_loss"] + 2.5 * metrics["loc_loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, reference.multibox_loss(*batch, loc_weight=2.5)[0], rtol=1e-5)


def test_mining_is_per_image():
    # One image has a positive, the other none: all negatives come from the first.
    _, conf, _, _ = batch = random_batch(4, images=2, positive=0)
    labels = batch[3].copy()
    labels[0, 7] = 1
    conf[1, :, 0] = -20  # the second image's background is far worse
    metrics = check_loss((*batch[:3], labels))
    assert metrics["negatives"] == 3


def test_positives_are_counted_over_the_batch():
    # An image with 1 positive and one with 4: the sum over 5, not the mean of two quotients.
    batch = random_batch(5, images=2, positive=0)
    batch[3][0, 3], batch[3][1, 10:14] = 2, 1
    metrics = check_loss(batch)
    assert metrics["positives"] == 5
    alone = [LOSS(*(part[row : row + 1] for part in batch))[0] for row in (0, 1)]
    np.testing.assert_allclose(metrics["loss"], (alone[0] + 4 * alone[1]) / 5, rtol=1e-5)


def test_without_positives_loss_and_gradient_are_exactly_zero():
    (loss, metrics), gradients = LOSS_AND_GRADIENTS(*random_batch(6, positive=0))
    assert loss == 0
    assert (metrics["positives"], metrics["negatives"]) == (0, 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_offsets_of_unmatched_priors_may_be_anything():
    loc, conf, targets, labels = random_batch(7)
    (loss, _), gradients = LOSS_AND_GRADIENTS(loc, conf, targets, labels)
    for junk in (np.inf, -np.inf, np.nan):
        dirty = np.where(labels[..., None] > 0, targets, np.float32(junk))
        (same, _), same_gradients = LOSS_AND_GRADIENTS(loc, conf, dirty, labels)
        assert same == loss
        jax.tree.map(np.testing.assert_array_equal, same_gradients, gradients)


def test_gradients_equal_their_formula():
    loc, conf, targets, labels = random_batch(8)
    (_, metrics), (loc_gradient, conf_gradient) = LOSS_AND_GRADIENTS(loc, conf, targets, labels)
    positive = labels > 0
    log_probs = reference.log_softmax(conf)
    negative = [
        reference.hard_negative_mask(-row[:, 0], pos)
        for row, pos in zip(log_probs, positive, strict=True)
    ]
    # Softmax cross-entropy: probability minus one-hot; smooth L1: the error within +-1.
    chosen = (positive | negative)[..., None]
    expected_conf = chosen * (np.exp(log_probs) - np.eye(5)[labels]) / positive.sum()
    expected_loc = positive[..., None] * np.clip(loc - targets, -1, 1) / positive.sum()
    np.testing.assert_allclose(conf_gradient, expected_conf, atol=1e-6)
    np.testing.assert_allclose(loc_gradient, expected_loc, atol=1e-6)
    assert metrics["positives"] == positive.sum()


def test_gradient_equals_finite_differences_of_the_reference():
    batch = random_batch(9, images=1, priors=12, positive=0.2)
    assert (batch[3] > 0).any()
    _, gradients = LOSS_AND_GRADIENTS(*batch)
    step = 1e-5
    for which, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            values = []
            for sign in (1, -1):
                moved = [part.astype(np.float64) for part in batch[:3]]
                moved[which][index] += sign * step
                values.append(reference.multibox_loss(*moved, batch[3])[0])
            slope = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(gradient[index], slope, atol=2e-5)


def test_what_all_logits_have_in_common_changes_no_gradient():
    loc, conf, targets, labels = random_batch(14)
    conf = np.round(conf * 16) / 16  # so that float32 adds 4096 exactly
    _, (_, gradient) = LOSS_AND_GRADIENTS(loc, conf, targets, labels)
    _, (_, shifted) = LOSS_AND_GRADIENTS(loc, conf + 4096, targets, labels)
    np.testing.assert_allclose(shifted, gradient, rtol=1e-6)


def test_bfloat16_inputs_are_computed_in_float32():
    loc, conf, targets, labels = random_batch(10)
    loc, conf = jnp.asarray(loc, jnp.bfloat16), jnp.asarray(conf, jnp.bfloat16)
    loss, metrics = LOSS(loc, conf, targets, labels)
    wide = (np.asarray(loc, np.float32), np.asarray(conf, np.float32), targets, labels)
    assert {value.dtype for value in metrics.values()} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(loss, reference.multibox_loss(*wide)[0], rtol=1e-5)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_give_a_finite_loss_and_gradient(size):
    _, conf, targets, labels = random_batch(11)
    conf = np.sign(conf) * np.float32(size)
    batch = (targets + 3, conf, targets, labels)
    (loss, _), gradients = LOSS_AND_GRADIENTS(*batch)
    np.testing.assert_allclose(loss, reference.multibox_loss(*batch)[0], rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_softmax_is_stable_for_each_prior_on_its_own():
    # Against the largest logit of the batch, the second prior's would all underflow.
    conf = jnp.array([[[1e4, 0, 0], [-1e4, -1e4, -1e4], [0, 0, 0], [0, 0, 0]]])
    labels = jnp.array([[0, 2, 0, 0]])
    loss, _ = LOSS(jnp.zeros((1, 4, 4)), conf, jnp.zeros((1, 4, 4)), labels)
    np.testing.assert_allclose(loss, 3 * np.log(3), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1)])
def test_tiny_batches_equal_the_reference(shape):
    batch = random_batch(12, images=shape[0], priors=shape[1], positive=1)
    check_loss(batch)


def test_eight_devices_give_the_loss_and_gradients_of_one():
    # The devices' positives differ, two have none, so a mean over devices would be another loss.
    batch = random_batch(13, images=8)
    batch[3][:2] = 0
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("data")

    def of_a_device(*rows_of_batch):
        positives = jax.lax.psum(jnp.sum(rows_of_batch[3] > 0), "data")
        (loss, metrics), gradients = jax.value_and_grad(
            lambda *args: losses.multibox_loss(*args, positives=positives), (0, 1), has_aux=True
        )(*rows_of_batch)
        return jax.lax.psum((loss, metrics), "data"), gradients

    mapped = jax.shard_map(
        of_a_device, mesh=mesh, in_specs=(rows,) * 4, out_specs=((PartitionSpec(),) * 2, rows)
    )
    (loss, metrics), gradients = jax.jit(mapped)(*batch)
    (one_loss, one_metrics), one_gradients = LOSS_AND_GRADIENTS(*batch)
    np.testing.assert_allclose(loss, one_loss, rtol=1e-6)
    np.testing.assert_allclose(loss, reference.multibox_loss(*batch)[0], rtol=1e-5)
    assert metrics.keys() == one_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, one_metrics[name], rtol=1e-6, err_msg=name)
    for got, expected in zip(gradients, one_gradients, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-7)
