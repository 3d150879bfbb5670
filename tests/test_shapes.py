"""The paper's functions check the shapes of their arguments: a wrong one might broadcast."""

import functools

import jax
import numpy as np
import pytest

from ssd_jax import augment, boxes, detection, losses, matching, priors, resampling

P, G, C = 5, 3, 4
KEY = jax.random.key(0)
IMAGE, OBJECTS = {"image": (6, 7, 3)}, {"boxes": (G, 4), "labels": (G,)}
PAIR = {"boxes": (P, 4), "priors_cxcywh": (P, 4)}

# Each function, and the shapes of its arguments.
EXACT = {
    "pairwise_iou": (boxes.pairwise_iou, {"a": (P, 4), "b": (G, 4)}),
    "inside": (priors.inside, {"priors_cxcywh": (P, 4)}),
    "match": (
        matching.match,
        {"gt_boxes": (G, 4), "gt_labels": (G,), "priors_cxcywh": (P, 4)},
    ),
    "hard_negative_mask": (
        losses.hard_negative_mask,
        {"background_loss": (P,), "positive": (P,)},
    ),
    "multibox_loss": (
        losses.multibox_loss,
        {"loc": (2, P, 4), "conf": (2, P, C), "loc_targets": (2, P, 4), "labels": (2, P)},
    ),
    "nms": (
        functools.partial(detection.nms, max_outputs=2),
        {"boxes": (P, 4), "scores": (P,)},
    ),
    "multiclass_nms": (detection.multiclass_nms, {"boxes": (P, 4), "scores": (P, C)}),
    "detect": (
        detection.detect,
        {"loc": (P, 4), "conf": (P, C), "priors_cxcywh": (P, 4)},
    ),
    "augment": (
        functools.partial(augment.augment, KEY, size=8),
        IMAGE | {"valid_size": (2,)} | OBJECTS,
    ),
    "resize": (functools.partial(augment.resize, size=8), IMAGE | {"valid_size": (2,)}),
    "warp": (
        functools.partial(resampling.warp, size=8),
        IMAGE | {"valid_size": (2,), "canvas": (4,), "crop": (4,)},
    ),
    "sample_crop": (functools.partial(augment.sample_crop, KEY), OBJECTS),
    "propose_crops": (functools.partial(augment.propose_crops, KEY), OBJECTS),
    "crop_boxes": (augment.crop_boxes, {"crop": (4,)} | OBJECTS),
    "photometric": (functools.partial(augment.photometric, KEY), IMAGE),
}
# These take any leading axes.
OPEN = {
    "cxcywh_to_xyxy": (boxes.cxcywh_to_xyxy, {"boxes": (P, 4)}),
    "xyxy_to_cxcywh": (boxes.xyxy_to_cxcywh, {"boxes": (P, 4)}),
    "area": (boxes.area, {"boxes": (P, 4)}),
    "clip": (boxes.clip, {"boxes": (P, 4)}),
    "encode": (boxes.encode, PAIR),
    "decode": (boxes.decode, {"loc": (P, 4), "priors_cxcywh": (P, 4)}),
    "unmirror": (detection.unmirror, {"loc": (P, 4), "priors_cxcywh": (P, 4)}),
    "normalize": (augment.normalize, {"images": (6, 7, 3)}),
    "adjust_brightness": (functools.partial(augment.adjust_brightness, delta=1), IMAGE),
    "adjust_contrast": (functools.partial(augment.adjust_contrast, factor=1), IMAGE),
    "adjust_saturation": (functools.partial(augment.adjust_saturation, factor=1), IMAGE),
    "adjust_hue": (functools.partial(augment.adjust_hue, degrees=1), IMAGE),
}
DTYPES = {"labels": np.int32, "gt_labels": np.int32, "positive": bool, "image": np.uint8}


def arrays(shapes):
    return {name: np.zeros(shape, DTYPES.get(name, np.float32)) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", EXACT | OPEN)
def test_right_shapes_pass_in_numpy_and_under_jit_and_vmap(name):
    function, shapes = (EXACT | OPEN)[name]
    given = arrays(shapes)
    jax.eval_shape(lambda: function(**given))
    if name == "inside":  # NumPy's: priors are constants
        return
    jax.eval_shape(function, **given)
    if name in OPEN and name != "unmirror":
        jax.eval_shape(function, **{key: array[None] for key, array in given.items()})
    batch = {key: np.stack([array] * 2) for key, array in given.items()}
    jax.eval_shape(jax.vmap(lambda batch: function(**batch)), batch)


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, case in (EXACT | OPEN).items() for argument in case[1]],
)
def test_wrong_shapes_are_refused(name, argument):
    function, shapes = (EXACT | OPEN)[name]
    shape = shapes[argument]
    wrong = [] if (name, argument) == ("multibox_loss", "conf") else [(*shape[:-1], shape[-1] + 1)]
    if argument == "conf" or (name, argument) == ("multiclass_nms", "scores"):
        wrong = [(shape[0] + 1, *shape[1:])]  # any number of classes is right
    wrong += [shape[1:], (1, *shape)] if name in EXACT else [()]
    for other in wrong:
        given = arrays(shapes | {argument: other})
        with pytest.raises(AssertionError, match=r"Assertion assert_(shape|rank) failed"):
            function(**given)
        if name != "inside":
            with pytest.raises(AssertionError, match=r"Assertion assert_(shape|rank) failed"):
                jax.eval_shape(function, **given)
