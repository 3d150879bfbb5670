import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssd_jax import boxes, matching, priors

CASES = 250  # of each kind below: 2,000 in all
MATCH = jax.jit(matching.match)
BATCHED = jax.jit(jax.vmap(matching.match))


def continuous(rng, count):
    """Random corners; overlaps are all different."""
    low = rng.uniform(-0.1, 0.8, (CASES, count, 2))
    return np.concatenate([low, low + rng.uniform(0.02, 0.6, (CASES, count, 2))], -1)


def on_grid(rng, count):
    """Corners in eighths: float32 computes their overlaps like float64, so ties are ties."""
    center = rng.integers(1, 8, (CASES, count, 2)) / 8
    half = rng.integers(0, 4, (CASES, count, 2)) / 8  # some have no area
    return np.concatenate([center - half, center + half], -1)


def cxcywh(corners):
    low, high = corners[..., :2], corners[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def random_case(seed, *, num_gt, num_priors, make, padded=0.0):
    rng = np.random.default_rng(seed)
    gt = make(rng, num_gt)
    labels = rng.integers(1, 6, (CASES, num_gt)) * (rng.random((CASES, num_gt)) >= padded)
    gt = np.where(labels[..., None] > 0, gt, 0)  # padding may lie between real boxes
    return gt.astype(np.float32), labels, cxcywh(make(rng, num_priors)).astype(np.float32)


def outside(rng, count):
    """Two of three boxes lie beyond the priors, which `continuous` puts below 1.4."""
    return continuous(rng, count) + rng.choice([0, 2, -2], (CASES, count, 1))


def expected_matches(gt_boxes, gt_labels, priors_cxcywh):
    """(index, boxes, labels) of the reference, for one image."""
    index = reference.match(gt_boxes, gt_labels, priors_cxcywh)
    corners = np.asarray(boxes.cxcywh_to_xyxy(priors_cxcywh))
    if len(gt_boxes) == 0:
        return index, corners, np.zeros(len(index), int)
    return (
        index,
        np.where(index[:, None] >= 0, np.asarray(gt_boxes)[index], corners),
        np.where(index >= 0, np.asarray(gt_labels)[index], 0),
    )


def check(gt_boxes, gt_labels, priors_cxcywh):
    """Compares a batch with the reference, exactly; returns the references' indices."""
    got = BATCHED(gt_boxes, gt_labels, priors_cxcywh)
    expected = [
        expected_matches(*row) for row in zip(gt_boxes, gt_labels, priors_cxcywh, strict=True)
    ]
    index, matched_boxes, labels = (np.stack(part) for part in zip(*expected, strict=True))
    np.testing.assert_array_equal(got.labels, labels)
    np.testing.assert_array_equal(got.boxes, matched_boxes)
    return index


KINDS = [
    {"num_gt": 1, "num_priors": 20, "make": continuous},
    {"num_gt": 4, "num_priors": 30, "make": continuous},
    {"num_gt": 8, "num_priors": 30, "make": continuous, "padded": 0.5},
    {"num_gt": 4, "num_priors": 20, "make": outside},
    {"num_gt": 3, "num_priors": 30, "make": on_grid},
    {"num_gt": 8, "num_priors": 20, "make": on_grid},
    {"num_gt": 6, "num_priors": 4, "make": on_grid},  # more ground truths than priors
    {"num_gt": 6, "num_priors": 20, "make": on_grid, "padded": 0.4},
]


@pytest.mark.parametrize(("seed", "kind"), list(enumerate(KINDS)))
def test_random_cases_equal_the_reference_exactly(seed, kind):
    index = check(*random_case(seed, **kind))
    assert (index >= 0).any(axis=1).mean() > 0.5  # the cases are not empty


def test_random_cases_hold_ties_and_shared_favorites():
    gt, _, defaults = random_case(5, num_gt=8, num_priors=20, make=on_grid)
    corners = np.asarray(boxes.cxcywh_to_xyxy(defaults))
    iou = np.asarray(jax.vmap(boxes.pairwise_iou)(gt, corners))
    best = iou.max(axis=2)
    tied = ((iou == best[..., None]).sum(2) > 1) & (best > 0)
    favorites = np.sort(np.where(best > 0, iou.argmax(2), -1 - np.arange(8)), axis=1)
    assert tied.any(1).mean() > 0.3
    assert (favorites[:, 1:] == favorites[:, :-1]).any(1).mean() > 0.5


def one_image(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.7, (4, 2))
    gt = np.concatenate([low, low + rng.uniform(0.05, 0.3, (4, 2))], -1).astype(np.float32)
    return gt, np.array([3, 1, 2, 3]), priors.default_boxes(priors.SSD300_VOC)


def test_the_priors_of_ssd300_match_as_in_the_reference():
    gt, labels, defaults = one_image(0)
    index, matched_boxes, matched_labels = expected_matches(gt, labels, defaults)
    assert set(index) == {-1, 0, 1, 2, 3}
    got = MATCH(gt, labels, defaults)
    np.testing.assert_array_equal(got.labels, matched_labels)
    # Background rows hold the prior's corners, whose last bit is the compiler's.
    np.testing.assert_allclose(got.boxes, matched_boxes, atol=1e-6)


def test_plain_jit_and_vmap_agree():
    gt, labels, defaults = random_case(9, num_gt=3, num_priors=30, make=on_grid)
    batched = BATCHED(gt, labels, defaults)
    for row in range(3):
        for function in (matching.match, MATCH):
            single = function(gt[row], labels[row], defaults[row])
            np.testing.assert_array_equal(single.labels, batched.labels[row])
            np.testing.assert_array_equal(single.boxes, batched.boxes[row])


def test_float64_matches_as_float32():
    gt, labels, defaults = one_image(0)
    expected = MATCH(gt, labels, defaults)
    with jax.enable_x64(True):
        got = matching.match(gt.astype(float), labels, defaults.astype(float))
    assert got.boxes.dtype == jnp.float64
    np.testing.assert_array_equal(got.labels, expected.labels)
    np.testing.assert_allclose(got.boxes, expected.boxes, atol=1e-6)


# Two squares beside each other and one below the second, as center and size.
ROW = jnp.array([[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])


def test_two_ground_truths_with_one_best_prior_both_survive():
    # Both overlap prior 0 most, the second less: it gets prior 1 with an overlap far below 0.5.
    gt = jnp.array([[0, 0, 0.5, 0.5], [0.125, 0, 0.625, 0.5]])
    got = MATCH(gt, jnp.array([1, 2]), ROW)
    np.testing.assert_array_equal(got.labels, [1, 2, 0])
    np.testing.assert_array_equal(got.boxes[1], gt[1])


def test_the_better_pair_is_fixed_first_whatever_the_order_of_the_ground_truths():
    gt = jnp.array([[0.125, 0, 0.625, 0.5], [0, 0, 0.5, 0.5]])
    got = MATCH(gt, jnp.array([2, 1]), ROW)
    np.testing.assert_array_equal(got.labels, [1, 2, 0])


def test_equal_overlaps_go_to_the_lowest_prior_then_the_lowest_ground_truth():
    # A box halfway between priors 0 and 1 has the same overlap with both.
    halfway = jnp.array([[0.25, 0, 0.75, 0.5]])
    np.testing.assert_array_equal(MATCH(halfway, jnp.array([1]), ROW).labels, [1, 0, 0])
    # Two equal boxes: the first takes prior 0, the second what is left.
    twice = jnp.concatenate([halfway, halfway])
    np.testing.assert_array_equal(MATCH(twice, jnp.array([1, 2]), ROW).labels, [1, 2, 0])


def test_stage_one_wins_over_stage_two():
    # Prior 0 overlaps ground truth 0 more, but that one prefers prior 1: prior 0 is the only one
    # that ground truth 1 has, so it takes it although stage two would give it to ground truth 0.
    defaults = jnp.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.625]])
    gt = boxes.cxcywh_to_xyxy(jnp.array([[0.5, 0.5, 0.5, 0.625], [0.25, 0.25, 0.25, 0.25]]))
    iou = boxes.pairwise_iou(gt, boxes.cxcywh_to_xyxy(defaults))
    assert iou[0, 0] > 0.5 > iou[1, 0] > 0
    got = MATCH(gt, jnp.array([1, 2]), defaults)
    np.testing.assert_array_equal(got.labels, [2, 1])


def test_an_overlap_of_exactly_the_threshold_matches():
    prior = jnp.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    half = jnp.array([[0.25, 0.25, 0.75, 0.5]])  # IoU 1/2 with both; stage one takes the first
    label = jnp.array([4])
    np.testing.assert_array_equal(MATCH(half, label, prior).labels, [4, 4])
    stricter = matching.match(half, label, prior, iou_threshold=0.51)
    np.testing.assert_array_equal(stricter.labels, [4, 0])


def test_an_overlap_below_a_millionth_is_none():
    prior = jnp.array([[0.5, 0.5, 1.0, 1.0]])
    for side, label in ((1e-4, 0), (1e-2, 1)):  # IoU = side^2
        gt = jnp.array([[0.5, 0.5, 0.5 + side, 0.5 + side]])
        assert MATCH(gt, jnp.array([1]), prior).labels[0] == label


@pytest.mark.parametrize("extra", [1, 7])
def test_more_padding_changes_nothing(extra):
    gt, labels, defaults = one_image(1)
    expected = MATCH(gt, labels, defaults)
    padded = MATCH(np.pad(gt, ((0, extra), (0, 0))), np.pad(labels, (0, extra)), defaults)
    np.testing.assert_array_equal(padded.labels, expected.labels)
    np.testing.assert_array_equal(padded.boxes, expected.boxes)


def test_padding_does_not_take_prior_0():
    labels = MATCH(jnp.zeros((3, 4)), jnp.zeros(3, jnp.int32), ROW).labels
    np.testing.assert_array_equal(labels, [0, 0, 0])


def test_padding_with_a_box_in_it_matches_nothing():
    gt = boxes.cxcywh_to_xyxy(ROW)  # each is exactly a prior
    got = MATCH(gt, jnp.array([0, 5, 0]), ROW)
    np.testing.assert_array_equal(got.labels, [0, 5, 0])


@pytest.mark.parametrize("way", ["cpu", "default"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_box_that_is_not_finite_matches_nothing_and_hinders_no_other(way, bad, monkeypatch):
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *arguments, **ways: ways[way](*arguments)
    )
    gt = jnp.stack([jnp.full(4, bad), boxes.cxcywh_to_xyxy(ROW)[1]])
    twice = jnp.concatenate([ROW, ROW])  # the second of each is for the second stage
    got = matching.match(gt, jnp.array([4, 5]), twice)
    np.testing.assert_array_equal(got.labels, [0, 5, 0, 0, 5, 0])


def test_a_box_outside_every_prior_matches_nothing():
    got = MATCH(jnp.array([[2, 2, 2.5, 2.5]]), jnp.array([1]), ROW)
    np.testing.assert_array_equal(got.labels, [0, 0, 0])


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_no_ground_truth_at_all_gives_background(transform):
    got = transform(matching.match)(jnp.zeros((0, 4)), jnp.zeros(0, jnp.int32), ROW)
    np.testing.assert_array_equal(got.labels, [0, 0, 0])
    np.testing.assert_array_equal(got.boxes, boxes.cxcywh_to_xyxy(ROW))


def test_background_encodes_to_zero_offsets():
    got = MATCH(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32), ROW)
    np.testing.assert_allclose(boxes.encode(got.boxes, ROW), np.zeros((3, 4)), atol=1e-6)


def test_labels_are_int32_and_boxes_float32():
    got = jax.eval_shape(
        functools.partial(matching.match, iou_threshold=0.5),
        jnp.zeros((2, 4)),
        jnp.zeros(2, jnp.int8),
        ROW,
    )
    assert (got.labels.dtype, got.boxes.dtype) == (jnp.int32, jnp.float32)
