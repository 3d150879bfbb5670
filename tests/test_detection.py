import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssd_jax import boxes, detection

NMS = jax.jit(detection.nms, static_argnames=("iou_threshold", "max_outputs"))
# Small limits, so that random cases reach them.
DETECT = functools.partial(detection.detect, score_threshold=0.2, top_k=10, max_detections=12)
EXPECTED = functools.partial(reference.detect, score_threshold=0.2, top_k=10, max_detections=12)
JITTED = jax.jit(DETECT)
BATCHED = jax.jit(jax.vmap(DETECT))


def random_boxes(rng, count):
    """Corners that overlap a lot."""
    low = rng.uniform(0, 0.5, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.1, 0.5, (count, 2))], -1).astype(np.float32)


def grid_boxes(rng, count):
    """Corners in eighths: many equal boxes, overlaps that float32 computes like float64."""
    low = rng.integers(0, 5, (count, 2)) / 8
    return np.concatenate([low, low + rng.integers(0, 5, (count, 2)) / 8], -1).astype(np.float32)


def random_outputs(seed, *, priors=30, classes=4):
    """(loc, conf, priors) of one image."""
    rng = np.random.default_rng(seed)
    conf = rng.normal(0, 1.5, (priors, classes))
    conf[:, 0] += seed % 4  # from crowded to sparse
    center, size = rng.uniform(0.2, 0.8, (priors, 2)), rng.uniform(0.2, 0.6, (priors, 2))
    return (
        rng.normal(0, 1, (priors, 4)).astype(np.float32),
        conf.astype(np.float32),
        np.concatenate([center, size], -1).astype(np.float32),
    )


def check_detections(found, expected):
    """Compares with the reference's list; the rows behind it are all zero."""
    used = len(expected)
    np.testing.assert_array_equal(found.labels[:used], [label for _, _, label in expected])
    scores = [score for _, score, _ in expected]
    np.testing.assert_allclose(found.scores[:used], scores, rtol=1e-5)
    if used:
        expected_boxes = np.stack([box for box, _, _ in expected])
        np.testing.assert_allclose(found.boxes[:used], expected_boxes, atol=1e-5)
    for part in found:
        np.testing.assert_array_equal(part[used:], 0)


@pytest.mark.parametrize("make", [random_boxes, grid_boxes])
@pytest.mark.parametrize("seed", range(10))
def test_nms_equals_the_reference(make, seed):
    rng = np.random.default_rng(seed)
    candidates = make(rng, 40)
    scores = (rng.integers(0, 9, 40) / 8).astype(np.float32)  # ties, and zeros
    index, valid = NMS(candidates, scores, max_outputs=15)
    expected = reference.nms(candidates, scores, max_outputs=15)
    np.testing.assert_array_equal(index[valid], expected)
    np.testing.assert_array_equal(valid, np.arange(15) < len(expected))
    np.testing.assert_array_equal(index[~valid], 0)


def test_nms_plain_jit_and_vmap_agree():
    rng = np.random.default_rng(0)
    candidates = np.stack([random_boxes(rng, 20) for _ in range(4)])
    scores = rng.random((4, 20)).astype(np.float32)
    nms = functools.partial(detection.nms, max_outputs=8)
    batched = jax.jit(jax.vmap(nms))(candidates, scores)
    for row in range(2):
        for function in (nms, functools.partial(NMS, max_outputs=8)):
            single = function(candidates[row], scores[row])
            np.testing.assert_array_equal(single[0], batched[0][row])
            np.testing.assert_array_equal(single[1], batched[1][row])


def test_an_overlap_of_exactly_the_threshold_is_kept():
    pair = jnp.array([[0, 0, 1, 1], [0, 0, 1, 0.5]])  # IoU 1/2
    scores = jnp.array([0.9, 0.8])
    assert NMS(pair, scores, iou_threshold=0.5, max_outputs=2)[1].tolist() == [True, True]
    assert NMS(pair, scores, iou_threshold=0.49, max_outputs=2)[1].tolist() == [True, False]


def test_a_dropped_box_suppresses_nothing():
    # A chain: the first drops the second, so the third, which only the second overlaps, stays.
    chain = jnp.array([[0, 0, 0.5, 1], [0.125, 0, 0.625, 1], [0.375, 0, 0.875, 1.0]])
    index, valid = NMS(chain, jnp.array([0.9, 0.8, 0.7]), iou_threshold=0.3, max_outputs=3)
    assert index[valid].tolist() == [0, 2]


def test_equal_boxes_of_equal_scores_leave_the_first():
    index, valid = NMS(jnp.tile(jnp.array([0, 0, 1, 1.0]), (6, 1)), jnp.ones(6), max_outputs=3)
    assert valid.tolist() == [True, False, False]
    assert index[0] == 0


def test_boxes_without_area_suppress_nothing():
    _, valid = NMS(jnp.zeros((4, 4)), jnp.ones(4), max_outputs=4)
    assert valid.all()


def test_more_outputs_than_boxes_leaves_the_rest_unused():
    _, valid = NMS(jnp.array([[0, 0, 1, 1.0]]), jnp.ones(1), max_outputs=5)
    assert valid.tolist() == [True, False, False, False, False]


def test_detect_equals_the_reference_plain_jit_and_vmap():
    cases = [random_outputs(seed) for seed in range(40)]
    expected = [EXPECTED(*case) for case in cases]
    lengths = {len(rows) for rows in expected}
    assert max(lengths) == 12  # some images fill every row,
    assert min(lengths) < 12  # some don't
    batched = BATCHED(*(np.stack(part) for part in zip(*cases, strict=True)))
    for row, (case, rows) in enumerate(zip(cases, expected, strict=True)):
        check_detections(jax.tree.map(lambda part, row=row: part[row], batched), rows)
        if row == 0:
            check_detections(DETECT(*case), rows)
            check_detections(JITTED(*case), rows)


def test_the_papers_limits_are_the_defaults():
    case = random_outputs(1, priors=500, classes=3)
    case[0][...] /= 10  # neighbors do not overlap less than their priors
    found = jax.jit(detection.detect)(*case)
    assert found.boxes.shape == (200, 4)
    explicit = functools.partial(
        detection.detect,
        variances=(0.1, 0.2),
        score_threshold=0.01,
        iou_threshold=0.45,
        top_k=400,
        max_detections=200,
    )
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(explicit)(*case))


def hostile(name):
    loc, conf, priors = random_outputs(50)
    match name:
        case "all equal":
            loc, priors = np.zeros_like(loc), np.tile(priors[:1], (30, 1))
            conf = np.tile(np.float32([0, 1, 1, 0.5]), (30, 1))
        case "scores tie":
            conf = np.tile(np.float32([0, 1, 1, 1]), (30, 1))
        case "nothing over the threshold":
            conf[:, 0] += 20
        case "one class takes all":
            conf[:, 2] += 5
        case "large loc":
            loc *= 20
    return loc, conf, priors


@pytest.mark.parametrize(
    "name",
    [
        "all equal",
        "scores tie",
        "nothing over the threshold",
        "one class takes all",
        "large loc",
    ],
)
def test_detect_equals_the_reference_on_hostile_outputs(name):
    case = hostile(name)
    expected = EXPECTED(*case)
    assert (len(expected) == 0) == (name == "nothing over the threshold")
    check_detections(JITTED(*case), expected)


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_huge_offsets_give_no_nan(size):
    loc, conf, priors = random_outputs(51)
    found = JITTED(np.sign(loc) * np.float32(size), conf, priors)
    assert found.scores[0] > 0
    for part in found:
        assert np.isfinite(part).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= 1).all()


def test_huge_logits_give_no_nan():
    loc, conf, priors = random_outputs(52)
    found = JITTED(loc, np.sign(conf) * np.float32(1e30), priors)
    assert found.scores[0] > 0
    for part in found:
        assert np.isfinite(part).all()


def single(conf_rows, priors):
    """Detections of priors that are boxes themselves, at the default thresholds."""
    priors = jnp.asarray(priors, jnp.float32)
    conf = jnp.asarray(conf_rows, jnp.float32)
    four = jax.jit(functools.partial(detection.detect, max_detections=4))
    return four(jnp.zeros((len(priors), 4)), conf, priors)


def test_fewer_boxes_than_detections_leaves_zero_rows():
    found = single([[0, 5, 0]], [[0.5, 0.5, 0.25, 0.25]])
    np.testing.assert_array_equal(found.labels, [1, 0, 0, 0])
    np.testing.assert_array_equal(found.boxes[1:], 0)
    np.testing.assert_array_equal(found.scores[1:], 0)
    np.testing.assert_array_equal(found.boxes[0], [0.375, 0.375, 0.625, 0.625])


def test_labels_count_from_1_and_background_is_never_detected():
    far = [[0.2, 0.2, 0.1, 0.1], [0.8, 0.2, 0.1, 0.1], [0.2, 0.8, 0.1, 0.1]]
    found = single([[0, 9, 0], [0, 0, 10], [20, 0, 0]], far)
    np.testing.assert_array_equal(found.labels, [2, 1, 0, 0])


def test_classes_do_not_suppress_each_other():
    found = single([[0, 5, 4.9]], [[0.5, 0.5, 0.25, 0.25]])
    np.testing.assert_array_equal(found.labels, [1, 2, 0, 0])
    np.testing.assert_array_equal(found.boxes[0], found.boxes[1])


def test_a_score_of_exactly_the_threshold_is_dropped():
    corners = jnp.array([[0.1, 0.1, 0.9, 0.9]])
    scores = jnp.array([[0.5, 0.5]])
    for threshold, score in ((0.5, 0), (0.49, 0.5)):
        nms = jax.jit(functools.partial(detection.multiclass_nms, score_threshold=threshold))
        assert nms(corners, scores).scores.max() == score


def test_nms_sees_boxes_before_they_are_clipped():
    # Of the second box, 4/5 lie left of the image. Unclipped IoU: 1/5 at most, so both stay;
    # clipped, the two would be the same box.
    priors = [[0.125, 0.5, 0.25, 0.25], [-0.375, 0.5, 1.25, 0.25]]
    overlap = reference.iou(*(reference.corners(prior) for prior in priors))
    assert overlap == 0.2
    found = single([[0, 5], [0, 4]], priors)
    np.testing.assert_array_equal(found.labels, [1, 1, 0, 0])
    np.testing.assert_array_equal(found.boxes[0], found.boxes[1])


def test_bfloat16_outputs_are_decoded_in_float32():
    loc, conf, priors = random_outputs(53)
    loc, conf = jnp.asarray(loc, jnp.bfloat16), jnp.asarray(conf, jnp.bfloat16)
    found = JITTED(loc, conf, priors)
    assert (found.boxes.dtype, found.scores.dtype) == (jnp.float32, jnp.float32)
    wide = EXPECTED(np.asarray(loc, np.float32), np.asarray(conf, np.float32), priors)
    check_detections(found, wide)


def test_nms_of_decoded_boxes_is_what_detect_does():
    loc, conf, priors = random_outputs(54)
    options = {"score_threshold": 0.2, "top_k": 10, "max_detections": 12}
    multiclass_nms = jax.jit(functools.partial(detection.multiclass_nms, **options))
    found = multiclass_nms(boxes.decode(loc, priors), jax.nn.softmax(conf))
    detected = JITTED(loc, conf, priors)
    np.testing.assert_allclose(boxes.clip(found.boxes), detected.boxes, atol=1e-6)
    np.testing.assert_array_equal(found.labels, detected.labels)
