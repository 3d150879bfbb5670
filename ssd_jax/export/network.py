"""The functions that are exported: from resized images to raw outputs or to candidates of NMS."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssd_jax import augment, boxes, build
from ssd_jax import config as config_lib
from ssd_jax.detection import Detections
from ssd_jax.export import metadata
from ssd_jax.models import ssd

Arrays = Mapping[str, Any]  # a network's outputs by name
Network = Callable[[Any, jax.Array], dict[str, jax.Array]]


def raw_network(config: config_lib.ModelConfig, num_classes: int) -> Network:
    """Returns `network(params, images)` with the outputs `raw`, see the module."""
    model = build.model(config, num_classes)
    priors_cxcywh = build.priors(config, model)

    def network(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        images = augment.normalize(images, mean=build.mean(config))
        loc, conf = ssd.apply(model, params, images)
        return {"loc": loc, "conf": conf, "priors_cxcywh": jnp.asarray(priors_cxcywh)}

    return network


def detections_of(outputs: Arrays, config: config_lib.EvalConfig) -> Detections:
    """Detections of a batch from the outputs called `raw`."""
    detect = functools.partial(build.post_processing(config), variances=metadata.VARIANCES)
    batched = jax.vmap(detect, in_axes=(0, 0, None))
    return batched(outputs["loc"], outputs["conf"], jnp.asarray(outputs["priors_cxcywh"]))


def candidates(
    loc: jax.Array,
    conf: jax.Array,
    priors_cxcywh: jax.Array,
    *,
    score_threshold: float,
    clip: bool,
) -> tuple[jax.Array, jax.Array]:
    """Candidates of NMS in one image: `[P, 4]` boxes and `[C - 1, P]` scores.

    Scores that do not exceed the threshold are 0. Boxes are corners.
    """
    decoded = boxes.decode(loc, priors_cxcywh, variances=metadata.VARIANCES)
    decoded = jnp.clip(decoded, 0, 1) if clip else decoded
    scores = jax.nn.softmax(conf)
    return decoded, jnp.where(scores > score_threshold, scores, 0)[:, 1:].T
