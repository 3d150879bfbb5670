"""JAX's operations that detectors consist of, each as nodes of an ONNX graph.

A function takes the graph, the operands, the shapes of the results and the operation's parameters,
and returns the results; those of single elements need less.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from ssd_jax.export import onnx_graph

# --- Operations on single elements ---

ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "exp": "Exp",
    "log": "Log",
    "neg": "Neg",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "gt": "Greater",
}


def elementwise(
    graph: onnx_graph.Graph, op: str, values: list[onnx_graph.Value]
) -> onnx_graph.Value:
    """Adds a node with broadcast operands; channels-first if one of them is."""
    bounds = [value for value in values if value.array is not None and value.array.ndim == 0]
    if op == "Max" and bounds:
        others = [value for value in values if value is not bounds[0]]
        if bounds[0].array == -math.inf:  # of an empty maximum
            return others[0]
        if bounds[0].array == 0:  # runtimes fuse it with a convolution, which they do not with Max
            op, values = "Relu", others
    first = any(value.channels_first for value in values)
    name = graph.add(op, *(graph.named(value, channels_first=first) for value in values))
    return onnx_graph.Value(
        name, _broadcast([value.shape for value in values]), channels_first=first
    )


def _broadcast(shapes: Sequence[onnx_graph.Shape]) -> onnx_graph.Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((n for n in sides if n != 1), 1) for sides in zip(*padded, strict=True))


def _hard_sigmoid(graph: onnx_graph.Graph, x: onnx_graph.Value) -> onnx_graph.Value:
    name = graph.named(x, channels_first=x.channels_first)
    return x._replace(name=graph.add("HardSigmoid", name, alpha=1 / 6, beta=0.5))


def _hard_swish(graph: onnx_graph.Graph, x: onnx_graph.Value) -> onnx_graph.Value:
    name = graph.add("HardSwish", graph.named(x, channels_first=x.channels_first))
    return x._replace(name=name)


def _relu6(graph: onnx_graph.Graph, x: onnx_graph.Value) -> onnx_graph.Value:
    bounds = (graph.constant(np.float32(bound), name) for bound, name in ((0, "zero"), (6, "six")))
    name = graph.add("Clip", graph.named(x, channels_first=x.channels_first), *bounds)
    return x._replace(name=name)


def select(
    graph: onnx_graph.Graph,
    where: onnx_graph.Value,
    when_false: onnx_graph.Value,
    when_true: onnx_graph.Value,
) -> onnx_graph.Value:
    """A node that chooses element by element, as `jax.lax.select_n` with two cases."""
    values = where, when_true, when_false
    name = graph.add("Where", *(graph.named(value) for value in values))
    return onnx_graph.Value(name, _broadcast([value.shape for value in values]))


def _integer_pow(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    y: int,
    **_: Any,
) -> list[onnx_graph.Value]:
    if y != 2:
        raise NotImplementedError(f"ONNX export knows squares only, no power of {y}")
    return [elementwise(graph, "Mul", [values[0], values[0]])]


def _cast(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    new_dtype: Any,
    **_: Any,
) -> list[onnx_graph.Value]:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(new_dtype))
    name = graph.add("Cast", values[0].name, to=kind)
    return [values[0]._replace(name=name)]


def _same(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    **_: Any,
) -> list[onnx_graph.Value]:
    return [values[0]]


# --- Operations on shapes; each takes and gives JAX's order of axes ---


def _reshape(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    **_: Any,
) -> list[onnx_graph.Value]:
    """Also squeezing and adding axes; the batch has to stay the first of them."""
    sizes = [0 if side is None else side for side in shapes[0]]  # 0: as in the input
    if None in shapes[0][1:] or (shapes[0][0] is None) != (values[0].shape[0] is None):
        raise NotImplementedError("ONNX export cannot move the batch from the first axis")
    name = graph.add("Reshape", graph.named(values[0]), graph.constant(np.array(sizes), "shape"))
    return [onnx_graph.Value(name, shapes[0])]


def _broadcast_in_dim(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    broadcast_dimensions: Any,
    **_: Any,
) -> list[onnx_graph.Value]:
    """Only adds axes of size 1, because the consumers broadcast."""
    axes = dict(zip(map(int, broadcast_dimensions), values[0].shape, strict=True))
    shape = tuple(axes.get(axis, 1) for axis in range(len(shapes[0])))
    if values[0].array is not None:
        return [onnx_graph.Value(values[0].name, shape, values[0].array.reshape(shape))]  # type: ignore[arg-type]
    return _reshape(graph, values, [shape])


def _transpose(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    permutation: Any,
    **_: Any,
) -> list[onnx_graph.Value]:
    order = [int(axis) for axis in permutation]
    return [onnx_graph.Value(graph.add("Transpose", graph.named(values[0]), perm=order), shapes[0])]


def _concatenate(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    dimension: int,
    **_: Any,
) -> list[onnx_graph.Value]:
    names = [graph.named(value) for value in values]
    return [onnx_graph.Value(graph.add("Concat", *names, axis=int(dimension)), shapes[0])]


def _split(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    axis: int,
    sizes: Any,
    **_: Any,
) -> list[onnx_graph.Value]:
    sizes = graph.constant(np.array(sizes, np.int64), "sizes")
    names = graph.add_many(
        "Split", graph.named(values[0]), sizes, outputs=len(shapes), axis=int(axis)
    )
    return [onnx_graph.Value(name, shape) for name, shape in zip(names, shapes, strict=True)]


def _slice(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    start_indices: Any,
    limit_indices: Any,
    strides: Any,
    **_: Any,
) -> list[onnx_graph.Value]:
    strides = strides or (1,) * len(shapes[0])
    rows = zip(start_indices, limit_indices, range(len(shapes[0])), strides, strict=True)
    static = [row for row, side in zip(rows, values[0].shape, strict=True) if side is not None]
    bounds = (graph.constant(column.astype(np.int64), "bounds") for column in np.transpose(static))
    return [onnx_graph.Value(graph.add("Slice", graph.named(values[0]), *bounds), shapes[0])]


def _reduce_sum(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    axes: Any,
    **_: Any,
) -> list[onnx_graph.Value]:
    which = graph.constant(np.array(axes, np.int64), "axes")
    return [
        onnx_graph.Value(
            graph.add("ReduceSum", graph.named(values[0]), which, keepdims=0), shapes[0]
        )
    ]


def _reduce_max(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    axes: Any,
    **_: Any,
) -> list[onnx_graph.Value]:
    which = [int(axis) for axis in axes]
    name = graph.add("ReduceMax", graph.named(values[0]), axes=which, keepdims=0)
    return [onnx_graph.Value(name, shapes[0])]


# --- Convolution and pooling: channels-first in ONNX ---


def _conv(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> list[onnx_graph.Value]:
    x, kernel = values
    layout = dimension_numbers.lhs_spec, dimension_numbers.rhs_spec, dimension_numbers.out_spec
    flax_layout = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)  # NHWC, HWIO, NHWC
    if layout != flax_layout or set(lhs_dilation) != {1} or batch_group_count != 1:
        raise NotImplementedError(f"ONNX export does not know a convolution like {layout}")
    if kernel.array is None:
        raise NotImplementedError("ONNX export knows convolutions with constant kernels only")
    name = graph.add(
        "Conv",
        graph.named(x, channels_first=True),
        graph.constant(kernel.array.transpose(3, 2, 0, 1), kernel.name),
        strides=window_strides,
        pads=_pads(padding),
        dilations=rhs_dilation,
        group=feature_group_count,
    )
    return [onnx_graph.Value(name, shapes[0], channels_first=True)]


def _reduce_window_max(
    graph: onnx_graph.Graph,
    values: list[onnx_graph.Value],
    shapes: list[onnx_graph.Shape],
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
    **_: Any,
) -> list[onnx_graph.Value]:
    if (window_dimensions[0], window_dimensions[3]) != (1, 1) or {*base_dilation} != {1}:
        raise NotImplementedError(f"ONNX export does not know a window of {window_dimensions}")
    name = graph.add(
        "MaxPool",
        graph.named(values[0], channels_first=True),
        kernel_shape=window_dimensions[1:3],
        strides=window_strides[1:3],
        pads=_pads(padding[1:3]),
        dilations=window_dilation[1:3],
    )
    return [onnx_graph.Value(name, shapes[0], channels_first=True)]


def _max_pool_2x2(graph: onnx_graph.Graph, x: onnx_graph.Value) -> onnx_graph.Value:
    """`models.layers.max_pool_2x2`: ceil mode by padding odd sides, ignored by ONNX."""
    batch, height, width, channels = x.shape
    assert height is not None
    assert width is not None
    name = graph.add(
        "MaxPool",
        graph.named(x, channels_first=True),
        kernel_shape=(2, 2),
        strides=(2, 2),
        pads=(0, 0, height % 2, width % 2),
    )
    shape = (batch, -(-height // 2), -(-width // 2), channels)
    return onnx_graph.Value(name, shape, channels_first=True)


def _spatial_mean(graph: onnx_graph.Graph, x: onnx_graph.Value) -> onnx_graph.Value:
    """`models.layers.spatial_mean`."""
    name = graph.add("GlobalAveragePool", graph.named(x, channels_first=True))
    return onnx_graph.Value(name, (x.shape[0], 1, 1, x.shape[3]), channels_first=True)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """JAX's (low, high) of each axis as ONNX's lows, then highs."""
    return [int(pair[end]) for end in (0, 1) for pair in padding]


# Functions by the name that `jit` gives them, each one node that runtimes have tuned.
FUNCTIONS: dict[str, Callable[[onnx_graph.Graph, onnx_graph.Value], onnx_graph.Value]] = {
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_swish,
    "max_pool_2x2": _max_pool_2x2,
    "relu6": _relu6,
    "spatial_mean": _spatial_mean,
}

OPERATIONS: dict[str, Callable[..., list[onnx_graph.Value]]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _cast,
    "copy": _same,
    "expand_dims": _reshape,
    "integer_pow": _integer_pow,
    "reduce_max": _reduce_max,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _reduce_window_max,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "square": functools.partial(_integer_pow, y=2),
    "squeeze": _reshape,
    "stop_gradient": _same,
    "transpose": _transpose,
}
