"""Each kernel gives what the plain form gives that it replaces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax import detection, losses, matching
from ssd_jax.kernels import batched_nms, cross_entropy, row_matching, selection

# --- Matching ---


def ground_truth(kind, images=100):
    """(boxes [B, 6, 4], real [B, 6], priors [B, 20, 4]); on a grid many IoUs are equal."""
    rng = np.random.default_rng(5)

    def corners(count):
        if kind == "continuous":
            low = rng.uniform(-0.1, 0.8, (images, count, 2))
            return np.concatenate([low, low + rng.uniform(0.02, 0.6, low.shape)], -1)
        center = rng.integers(1, 8, (images, count, 2)) / 8
        half = rng.integers(0, 4, (images, count, 2)) / 8  # some have no area
        return np.concatenate([center - half, center + half], -1)

    gt, priors = np.float32(corners(6)), np.float32(corners(20))
    real = rng.random((images, 6)) < rng.choice([0, 0.5, 1], (images, 1))
    if kind == "alike":
        gt, priors = np.repeat(gt[:, :1], 6, axis=1), np.repeat(priors[:, :5], 4, axis=1)
    return np.where(real[..., None], gt, np.float32(np.nan) if kind == "nan" else 0), real, priors


@pytest.mark.parametrize("kind", ["continuous", "grid", "alike", "nan"])
def test_matching_by_rows_is_matching_by_pairs(kind):
    cases = ground_truth(kind)
    assert cases[1].all(1).any()
    assert not cases[1].any(1).all()  # in some images there is padding alone
    by_rows = functools.partial(row_matching.overlaps, least_overlap=1e-6)
    expected = jax.jit(jax.vmap(matching._overlaps))(*cases)
    batched = jax.jit(jax.vmap(by_rows))(*cases)
    single = jax.jit(by_rows)(*(part[0] for part in cases))
    for got, one, want in zip(batched, single, expected, strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(one, want[0])
        assert got.dtype == want.dtype


# --- Mining ---


@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_the_kth_largest_is_that_of_sorting(platform, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, **forms: forms[platform](*xs))
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (30, 50)) * 10.0 ** rng.integers(-45, 39, (30, 50))
    values = values.astype(np.float32)
    values[0], values[1, :40], values[2, ::2], values[3, 7:] = 0, 7, -np.inf, np.inf
    values[4] = -np.abs(values[4])
    k = np.append(rng.integers(1, 51, 28), [1, 50])
    expected = np.sort(values)[np.arange(30), -k]
    np.testing.assert_array_equal(jax.jit(jax.vmap(selection.kth_largest))(values, k), expected)
    np.testing.assert_array_equal(
        jax.jit(lambda *of: selection.kth_largest(*of))(values[5], k[5]), expected[5]
    )


# --- Cross-entropy ---


def plain_cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_cross_entropy_and_its_derivatives_are_those_of_the_plain_form(platform, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, **forms: forms[platform](*xs))
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, (2, 3))
    logits = np.float32(rng.normal(0, 2, (2, 3, 5)))
    logits[0, 0], logits[0, 1, 2], logits[1] = 0, 80, logits[1] - 1e4  # a tie, saturated, shifted

    def all_derivatives(function, logits):
        loss = functools.partial(function, labels=labels)
        return loss(logits), jax.jacfwd(loss)(logits), jax.jacrev(loss)(logits)

    got, want = (
        jax.jit(functools.partial(all_derivatives, function))(logits)
        for function in (cross_entropy.cross_entropy, plain_cross_entropy)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)
    second = jax.jit(jax.vmap(jax.hessian(cross_entropy.cross_entropy)))(logits[0], labels[0])
    softmax = jax.nn.softmax(logits[0])
    diagonal = jnp.eye(5) * softmax[:, None]
    np.testing.assert_allclose(second, diagonal - softmax[:, None] * softmax[..., None], atol=1e-6)


# --- NMS ---


def plain_multiclass_nms(boxes, scores, priors, *, iou_threshold, max_detections):
    """`detection.nms` of each class on its own, then the best of all."""
    nms = functools.partial(detection.nms, iou_threshold=iou_threshold, max_outputs=scores.shape[1])
    index, valid = jax.vmap(nms)(boxes[priors], scores)
    kept = jnp.where(valid, jnp.take_along_axis(scores, index, axis=1), 0)
    rows = jnp.take_along_axis(priors, index, axis=1)
    # Equal scores: the lowest class, then the first candidate.
    best, place = jax.lax.top_k(kept.ravel(), max_detections)
    used = best > 0
    labels = jnp.where(used, place // scores.shape[1] + 1, 0)
    return jnp.where(used[:, None], boxes[rows.ravel()[place]], 0), best, labels


def corners(rng, shape, *, on_grid):
    """`[*shape, 4]` boxes that overlap a lot; on a grid many boxes and IoUs are equal."""
    low, size = rng.uniform(0, 0.5, (*shape, 2)), rng.uniform(0.1, 0.5, (*shape, 2))
    low, size = (np.round(8 * part) / 8 if on_grid else part for part in (low, size))
    return np.concatenate([low, low + size], -1).astype(np.float32)


def candidates(images=30, priors=16, classes=3):
    """(boxes [B, P, 4], scores [B, C - 1, P], priors [B, C - 1, P]): random ones, ties, and NaN."""
    rng = np.random.default_rng(2)
    parts = [corners(rng, (images, priors), on_grid=on_grid) for on_grid in (False, True, True)]
    parts[2][:, ::5] = np.nan
    scores = rng.random((3, images, classes, priors))
    scores = np.where(scores > rng.choice([0, 0.5, 1], (3, images, 1, 1)), scores, 0)
    scores[1] = np.ceil(scores[1] * 4) / 4
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.float32(np.take_along_axis(scores, order, axis=-1))
    return np.concatenate(parts), np.concatenate(ranked), np.int32(np.concatenate(order))


@pytest.mark.parametrize("block", [1, 7, 512])
def test_nms_of_all_classes_together_is_that_of_each_on_its_own(block, monkeypatch):
    monkeypatch.setattr(batched_nms, "_BLOCK", block)
    cases = candidates()
    options = {"iou_threshold": 0.45, "max_detections": 10}
    expected = jax.jit(jax.vmap(functools.partial(plain_multiclass_nms, **options)))(*cases)
    filled = (expected[1].reshape(3, 30, 10) > 0).sum(-1)
    assert filled.min(1).tolist() == [0, 0, 0]
    assert filled.max(1).tolist() == [10, 10, 10]
    kernel = functools.partial(batched_nms.batched_nms, **options)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(jax.vmap(kernel))(*cases), expected)
    single = jax.jit(kernel)(*(part[-1] for part in cases))
    jax.tree.map(np.testing.assert_array_equal, single, tuple(part[-1] for part in expected))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.6])
def test_leaving_out_priors_below_the_threshold_changes_nothing(threshold, monkeypatch):
    """One batch has images of no, few and many likely priors, of ties and of NaN."""
    rng = np.random.default_rng(3)
    conf = np.round(rng.normal(0, 1.5, (9, 30, 4))).astype(np.float32)  # ties
    conf[..., 0] += np.arange(9)[:, None] % 4
    conf[0, :, 0] += 50
    conf[1, :, 2] += 50  # more than top_k in one class
    conf[8, 5] = np.nan
    given = corners(rng, (9, 30), on_grid=False), conf
    options = {
        "score_threshold": threshold, "iou_threshold": 0.45, "top_k": 10, "max_detections": 12,
    }  # fmt: skip

    def plain(boxes, conf):
        return tuple(detection.multiclass_nms(boxes, jax.nn.softmax(conf), **options))

    expected = jax.jit(jax.vmap(plain))(*given)
    likely = (conf[..., 1:] - conf[..., :1] > np.log(max(threshold, 1e-30))).any(-1).sum(1)
    for few in (3, 30):
        assert likely.min() <= few <= likely.max() or threshold == 0
        monkeypatch.setattr(batched_nms, "_FEW", few)
        kernel = functools.partial(batched_nms.of_few_priors, otherwise=plain, **options)
        got = jax.jit(jax.vmap(kernel))(*given)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


# --- All of them in their places ---


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_images_are_processed_one_by_one_on_a_cpu_and_together_elsewhere(platform):
    def lowered(function, *shapes, last=np.float32):
        dtypes = [*[np.float32] * (len(shapes) - 1), last]
        arguments = map(jax.ShapeDtypeStruct, shapes, dtypes)
        traced = jax.jit(jax.vmap(function)).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    def match(priors, gt_boxes, gt_labels):
        return matching.match(gt_boxes, gt_labels, priors)

    matched = lowered(match, (3, 5, 4), (3, 2, 4), (3, 2), last=np.int32)
    mined = lowered(losses.hard_negative_mask, (3, 5), (3, 5), last=bool)
    detected = lowered(detection.detect, (3, 5, 4), (3, 5, 6), (3, 5, 4))
    together = platform != "cpu"
    assert ("tensor<3x2x5xf32>" in matched) == together  # the IoUs of all pairs
    assert ("tensor<3x15x5xi1>" in mined) == together  # which losses reach each of 15 digits
    exponentials = [line for line in detected.splitlines() if "stablehlo.exponential" in line]
    assert any("tensor<3x5x6xf32>" in line for line in exponentials) == together  # the softmax
