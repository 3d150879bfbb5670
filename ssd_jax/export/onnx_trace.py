"""From a JAX function to an ONNX graph.

`trace` writes an ONNX node for each operation of a function whose first dimension, the batch, is
open. One that `onnx_operations` does not know it names.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from ssd_jax.export import onnx_graph, onnx_operations


def trace(
    graph: onnx_graph.Graph,
    function: Callable[[Any, jax.Array], Any],
    params: Any,
    images: onnx_graph.Value,
) -> Any:
    """Adds a function of a batch of images to a graph.

    Args:
      graph: Grows.
      function: `function(params, images)`, which gives a tree of arrays.
      params: Tree of NumPy arrays; they become initializers by the names of their path.
      images: The graph's input with the batch as first axis.

    Returns:
      The function's tree of results.

    Raises:
      NotImplementedError: Naming an operation of the function that this module does not know.
    """
    (batch,) = jax_export.symbolic_shape("batch")
    shaped = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, shaped)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    values = [_constant(leaf, "/".join(str(key.key) for key in path)) for path, leaf in leaves]
    results = _run(graph, closed, [*values, images])
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _run(
    graph: onnx_graph.Graph, closed: Any, values: Sequence[onnx_graph.Value]
) -> list[onnx_graph.Value]:
    """Adds the operations of a jaxpr to the graph, given its arguments."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.invars, values, strict=True))
    known |= dict(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))

    def read(atom: Any) -> onnx_graph.Value:
        return _constant(atom.val) if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        results = _write(graph, equation, [read(atom) for atom in equation.invars])
        for var, result in zip(equation.outvars, results, strict=True):
            known[var] = result._replace(dtype=var.aval.dtype)
    return [read(atom) for atom in jaxpr.outvars]


def _constant(array: Any, name: str = "constant") -> onnx_graph.Value:
    array = np.asarray(array)
    return onnx_graph.Value(name, array.shape, array, dtype=array.dtype)


def _write(
    graph: onnx_graph.Graph, equation: Any, values: list[onnx_graph.Value]
) -> list[onnx_graph.Value]:
    """Adds one operation: a known function, one that calls another, a constant's, or a node."""
    params = equation.params
    if params.get("name") in onnx_operations.FUNCTIONS:
        return [onnx_operations.FUNCTIONS[params["name"]](graph, values[0])]
    if equation.primitive.name == "platform_index":
        return [_constant(np.int32(0))]  # `_default_branch` selects the branch
    if params.get("branches_platforms") is not None:
        return _run(graph, _default_branch(**params), values[1:])
    if (inner := params.get("jaxpr", params.get("call_jaxpr"))) is not None:
        return _run(graph, inner, values)
    shapes = [_shape(var.aval.shape) for var in equation.outvars]
    arrays = [value.array for value in values if value.array is not None]
    if len(arrays) == len(values) and not any(None in shape for shape in shapes):
        return _folded(equation, values[0].name if values else "constant", arrays)
    name = equation.primitive.name
    if name in onnx_operations.ELEMENTWISE:
        return [onnx_operations.elementwise(graph, onnx_operations.ELEMENTWISE[name], values)]
    if name == "select_n":
        return [onnx_operations.select(graph, *values)]
    if name not in onnx_operations.OPERATIONS:
        raise NotImplementedError(f"ONNX export does not know JAX's operation {name!r}")
    for value, atom in zip(values, equation.invars, strict=True):
        if value.shape != (expected := _shape(atom.aval.shape)):
            raise NotImplementedError(
                f"ONNX export cannot broadcast {value.shape} to {expected} for {name!r}"
            )
    return onnx_operations.OPERATIONS[name](graph, values, shapes, **params)


def _default_branch(*, branches: Sequence[Any], branches_platforms: Sequence[Any], **_: Any) -> Any:
    """Of `jax.lax.platform_dependent` the function that is for no platform in particular."""
    return next(
        branch
        for branch, platforms in zip(branches, branches_platforms, strict=True)
        if platforms is None
    )


def _shape(shape: Sequence[Any]) -> onnx_graph.Shape:
    return tuple(int(side) if isinstance(side, int | np.integer) else None for side in shape)


def _folded(equation: Any, name: str, arrays: list[np.ndarray]) -> list[onnx_graph.Value]:
    """Computes an operation on constants now."""
    results = equation.primitive.bind(*arrays, **equation.params)
    results = results if equation.primitive.multiple_results else [results]
    return [_constant(array, name) for array in results]
