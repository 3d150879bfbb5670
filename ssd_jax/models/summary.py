"""Summary of a network by layer: shapes, parameters, operations."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Layer(NamedTuple):
    """A layer with parameters.

    Attributes:
      name: Path in the parameters, as in `vgg16/conv1_1`.
      output: Shape of its output for one image: (rows, columns, channels), of a dense layer
        (features,).
      parameters: Number of its parameters.
      flops: Floating point operations of one image's forward pass; a multiply-add counts as 2.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    flops: int


def summarize(model: nn.Module, image_size: tuple[int, int]) -> list[Layer]:
    """Lists the layers of a network in the order in which they run; nothing is computed.

    Args:
      model: Takes `[B, H, W, 3]`.
      image_size: (height, width) in pixels.

    Returns:
      Its layers. The sum of `parameters` is that of the network; pooling, activations and
      reshapes have none and are omitted.
    """
    outputs: dict[str, tuple[int, ...]] = {}

    def record(next_call, args, kwargs, context):
        result = next_call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(result, jax.Array):
            outputs["/".join(context.module.path)] = result.shape[1:]
        return result

    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    with nn.intercept_methods(record):
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return [
        _layer(name, shape, arrays)
        for name, shape in outputs.items()
        if (arrays := _find(params, name)) is not None
    ]


def _find(params: dict, name: str) -> dict | None:
    """Returns the arrays of a layer, or None for a module that only contains others."""
    for part in filter(None, name.split("/")):
        params = params[part]
    arrays = {key: value for key, value in params.items() if not isinstance(value, dict)}
    return arrays or None


def _layer(name: str, output: tuple[int, ...], arrays: dict) -> Layer:
    parameters = sum(math.prod(array.shape) for array in arrays.values())
    positions = math.prod(output[:-1])
    if "kernel" in arrays:  # its kernel at each position, of which a dense layer has one; the bias
        flops = positions * (2 * math.prod(arrays["kernel"].shape) + output[-1])
    else:  # L2Norm: square, sum, divide, scale
        flops = 4 * math.prod(output)
    return Layer(name, tuple(output), parameters, flops)
