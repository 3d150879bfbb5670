"""Scales freshly initialized layers of a partly trained backbone to the size of their inputs."""

import itertools
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ssd_jax.models import layers, ssd

_CALM = (0.5, 2.0)  # root mean square of inputs for which the initialization is meant: about 1


def calibrate(
    model: ssd.SSD, params: Any, images: jax.Array | np.ndarray, *, fresh: Collection[str]
) -> tuple[Any, dict[str, float]]:
    """Scales freshly initialized kernels after a trained one to the size of their inputs.

    A freshly initialized kernel keeps the size of its input, which is about 1 in a new network and
    several hundred in a trained VGG-16: the heads would start with logits of that size, and
    training would first have to reduce them. A backbone that is new or trained as a whole, the
    extra layers and the heads stay as they are.

    Args:
      model: The network.
      params: Its parameters, on the host or on devices of this process.
      images: `[B, H, W, 3]` normalized images, a few.
      fresh: Paths of the parameters that are not trained, `vgg16/conv4_1/kernel`.

    Returns:
      The parameters, and the factor of each kernel that was scaled.

    Source: after Mishkin and Matas 2016, "All you need is a good init", section 2, for the inputs.
    """
    found: dict[str, jax.Array] = {}

    def record(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Conv | layers.ConvAffine):
            path = "/".join((*context.module.path, "kernel"))
            found[path] = jnp.sqrt(jnp.mean(args[0].astype(jnp.float32) ** 2))
        return next_call(*args, **kwargs)

    @jax.jit
    def sizes(params: Any, images: Any) -> dict[str, jax.Array]:
        """Root mean square of each convolution's inputs, by the path of its kernel."""
        with nn.intercept_methods(record):
            ssd.apply(model, params, images)
        return dict(found)

    jax.eval_shape(sizes, params, images)  # fills `found` in the order of the layers
    kernels = [path for path in found if path.startswith(f"{model.backbone}/")]
    factors: dict[str, float] = {}
    for before, path in itertools.pairwise(kernels):
        if before in fresh or path not in fresh:
            continue
        size = float(sizes(params, images)[path])
        if size > 0 and not _CALM[0] <= size <= _CALM[1]:
            factors[path] = 1 / size
            flat = flax.traverse_util.flatten_dict(params, sep="/")
            scaled = {**flat, path: flat[path] * np.float32(1 / size)}
            params = flax.traverse_util.unflatten_dict(scaled, sep="/")
    return params, factors
