"""From a JAX function to an ONNX graph, and SSD's post-processing in ONNX's own operators.

`trace` writes an ONNX node for each operation of a function whose first dimension, the batch, is
open. It knows the operations that detectors consist of; one that it does not know it names.
Convolutions and pooling are channels-first in ONNX: what follows them stays so as long as it can,
so that few transpositions remain.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from jax import export as jax_export

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12, 2022: what runtimes in use read
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)

Shape = tuple[int | None, ...]  # None is the batch


class Value(NamedTuple):
    """What a variable of the traced function is in the graph.

    Attributes:
      name: Of the tensor, or for a constant what to call it.
      shape: In JAX's order of axes. A 1 may stand where JAX has more: ONNX broadcasts.
      array: Of a constant.
      channels_first: Whether the tensor's axes are in the order (0, 3, 1, 2) of JAX's.
      dtype: Of its numbers.
    """

    name: str
    shape: Shape
    array: np.ndarray | None = None
    channels_first: bool = False
    dtype: Any = np.float32


class Graph:
    """An ONNX graph that grows node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self._transposed: dict[tuple[str, bool], str] = {}

    def input(self, name: str, shape: Shape) -> Value:
        """Declares a float32 input of the graph."""
        self.inputs.append(_value_info(name, Value(name, shape)))
        return Value(name, shape)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output, whose name it returns."""
        return self.add_many(op, *inputs, outputs=1, **attributes)[0]

    def add_many(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Adds a node of several outputs, whose names it returns."""
        number = len(self.nodes)
        names = [f"{op}_{number}" + (f"_{k}" if k else "") for k in range(outputs)]
        node = onnx.helper.make_node(op, inputs, names, name=names[0], **attributes)
        self.nodes.append(node)
        return names

    def constant(self, array: Any, name: str = "constant") -> str:
        """Adds an initializer; one of the same name and content is used again."""
        tensor = onnx.numpy_helper.from_array(np.asarray(array), name)
        for number in range(len(self.initializers) + 1):
            tensor.name = f"{name}_{number}" if number else name
            if self.initializers.setdefault(tensor.name, tensor) == tensor:
                break
        return tensor.name

    def named(self, value: Value, *, channels_first: bool = False) -> str:
        """The name of a value's tensor in one of the two orders of axes."""
        order = _TO_CHANNELS_FIRST if channels_first else _TO_CHANNELS_LAST
        if value.array is not None:
            moved = channels_first and value.array.ndim == 4
            return self.constant(value.array.transpose(order) if moved else value.array, value.name)
        if value.channels_first == channels_first:
            return value.name
        key = value.name, channels_first
        if key not in self._transposed:
            self._transposed[key] = self.add("Transpose", value.name, perm=order)
        return self._transposed[key]

    def model(
        self, outputs: Mapping[str, Value], *, metadata: Mapping[str, str], version: str
    ) -> onnx.ModelProto:
        """Closes the graph.

        Args:
          outputs: By the name that they get.
          metadata: Goes into the file as it is.
          version: Of the program that writes it.

        Raises:
          onnx.checker.ValidationError: If the graph is not a valid one.
        """
        for name, value in outputs.items():
            identity = onnx.helper.make_node("Identity", [self.named(value)], [name], name=name)
            self.nodes.append(identity)
        graph = onnx.helper.make_graph(
            self.nodes,
            "ssd",
            self.inputs,
            [_value_info(name, value) for name, value in outputs.items()],
            initializer=list(self.initializers.values()),
        )
        model = onnx.helper.make_model(
            graph,
            opset_imports=[onnx.helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="ssd_jax",
            producer_version=version,
        )
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model)
        return model


def _value_info(name: str, value: Value) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    shape = ["batch" if side is None else side for side in value.shape]
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def trace(
    graph: Graph, function: Callable[[Any, jax.Array], Any], params: Any, images: Value
) -> Any:
    """Adds a function of a batch of pictures to a graph.

    Args:
      graph: Grows.
      function: `function(params, images)`, which gives a tree of arrays.
      params: Tree of NumPy arrays; they become initializers by the names of their path.
      images: The graph's input, whose first axis is the batch.

    Returns:
      The function's tree of results.

    Raises:
      NotImplementedError: Naming an operation of the function that this module does not know.
    """
    (batch,) = jax_export.symbolic_shape("batch")
    pictures = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, pictures)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    values = [_constant(leaf, "/".join(str(key.key) for key in path)) for path, leaf in leaves]
    results = _run(graph, closed, [*values, images])
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _run(graph: Graph, closed: Any, values: Sequence[Value]) -> list[Value]:
    """Adds the operations of a jaxpr to the graph, given its arguments."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.invars, values, strict=True))
    known |= dict(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))

    def read(atom: Any) -> Value:
        return _constant(atom.val) if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        results = _write(graph, equation, [read(atom) for atom in equation.invars])
        for var, result in zip(equation.outvars, results, strict=True):
            known[var] = result._replace(dtype=var.aval.dtype)
    return [read(atom) for atom in jaxpr.outvars]


def _constant(array: Any, name: str = "constant") -> Value:
    array = np.asarray(array)
    return Value(name, array.shape, array, dtype=array.dtype)


def _write(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """Adds one operation: a known function, one that calls another, a constant's, or a node."""
    params = equation.params
    if params.get("name") in _FUNCTIONS:
        return [_FUNCTIONS[params["name"]](graph, values[0])]
    if equation.primitive.name == "platform_index":
        return [_constant(np.int32(0))]  # which branch is taken, `_default_branch` says
    if params.get("branches_platforms") is not None:
        return _run(graph, _default_branch(**params), values[1:])
    if (inner := params.get("jaxpr", params.get("call_jaxpr"))) is not None:
        return _run(graph, inner, values)
    shapes = [_shape(var.aval.shape) for var in equation.outvars]
    arrays = [value.array for value in values if value.array is not None]
    if len(arrays) == len(values) and not any(None in shape for shape in shapes):
        return _folded(equation, values[0].name if values else "constant", arrays)
    name = equation.primitive.name
    if name in _ELEMENTWISE:
        return [_elementwise(graph, _ELEMENTWISE[name], values)]
    if name == "select_n":
        return [_select(graph, *values)]
    if name not in _OPERATIONS:
        raise NotImplementedError(f"ONNX export does not know JAX's operation {name!r}")
    for value, atom in zip(values, equation.invars, strict=True):
        if value.shape != (expected := _shape(atom.aval.shape)):
            raise NotImplementedError(
                f"ONNX export cannot broadcast {value.shape} to {expected} for {name!r}"
            )
    return _OPERATIONS[name](graph, values, shapes, **params)


def _default_branch(*, branches: Sequence[Any], branches_platforms: Sequence[Any], **_: Any) -> Any:
    """Of `jax.lax.platform_dependent` the function that is for no platform in particular."""
    return next(
        branch
        for branch, platforms in zip(branches, branches_platforms, strict=True)
        if platforms is None
    )


def _shape(shape: Sequence[Any]) -> Shape:
    return tuple(int(side) if isinstance(side, int | np.integer) else None for side in shape)


def _folded(equation: Any, name: str, arrays: list[np.ndarray]) -> list[Value]:
    """Computes an operation on constants now."""
    results = equation.primitive.bind(*arrays, **equation.params)
    results = results if equation.primitive.multiple_results else [results]
    return [_constant(array, name) for array in results]


# --- Operations on single elements ---

_ELEMENTWISE = {
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


def _elementwise(graph: Graph, op: str, values: list[Value]) -> Value:
    """A node whose operands broadcast; channels-first if one of them is."""
    bounds = [value for value in values if value.array is not None and value.array.ndim == 0]
    if op == "Max" and bounds:
        others = [value for value in values if value is not bounds[0]]
        if bounds[0].array == -math.inf:  # of an empty maximum
            return others[0]
        if bounds[0].array == 0:  # runtimes fuse it with a convolution, which they do not with Max
            op, values = "Relu", others
    first = any(value.channels_first for value in values)
    name = graph.add(op, *(graph.named(value, channels_first=first) for value in values))
    return Value(name, _broadcast([value.shape for value in values]), channels_first=first)


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((n for n in sides if n != 1), 1) for sides in zip(*padded, strict=True))


def _hard_sigmoid(graph: Graph, x: Value) -> Value:
    name = graph.named(x, channels_first=x.channels_first)
    return x._replace(name=graph.add("HardSigmoid", name, alpha=1 / 6, beta=0.5))


def _hard_swish(graph: Graph, x: Value) -> Value:
    name = graph.add("HardSwish", graph.named(x, channels_first=x.channels_first))
    return x._replace(name=name)


def _relu6(graph: Graph, x: Value) -> Value:
    bounds = (graph.constant(np.float32(bound), name) for bound, name in ((0, "zero"), (6, "six")))
    name = graph.add("Clip", graph.named(x, channels_first=x.channels_first), *bounds)
    return x._replace(name=name)


def _select(graph: Graph, where: Value, when_false: Value, when_true: Value) -> Value:
    values = where, when_true, when_false
    name = graph.add("Where", *(graph.named(value) for value in values))
    return Value(name, _broadcast([value.shape for value in values]))


def _integer_pow(
    graph: Graph, values: list[Value], shapes: list[Shape], *, y: int, **_: Any
) -> list[Value]:
    if y != 2:
        raise NotImplementedError(f"ONNX export knows squares only, no power of {y}")
    return [_elementwise(graph, "Mul", [values[0], values[0]])]


def _cast(
    graph: Graph, values: list[Value], shapes: list[Shape], *, new_dtype: Any, **_: Any
) -> list[Value]:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(new_dtype))
    name = graph.add("Cast", values[0].name, to=kind)
    return [values[0]._replace(name=name)]


def _same(graph: Graph, values: list[Value], shapes: list[Shape], **_: Any) -> list[Value]:
    return [values[0]]


# --- Operations on shapes; each takes and gives JAX's order of axes ---


def _reshape(graph: Graph, values: list[Value], shapes: list[Shape], **_: Any) -> list[Value]:
    """Also squeezing and adding axes; the batch has to stay the first of them."""
    sizes = [0 if side is None else side for side in shapes[0]]  # 0: as it is in the input
    if None in shapes[0][1:] or (shapes[0][0] is None) != (values[0].shape[0] is None):
        raise NotImplementedError("ONNX export cannot move the batch from the first axis")
    name = graph.add("Reshape", graph.named(values[0]), graph.constant(np.array(sizes), "shape"))
    return [Value(name, shapes[0])]


def _broadcast_in_dim(
    graph: Graph, values: list[Value], shapes: list[Shape], *, broadcast_dimensions: Any, **_: Any
) -> list[Value]:
    """Only adds axes of size 1: what takes the result broadcasts."""
    axes = dict(zip(map(int, broadcast_dimensions), values[0].shape, strict=True))
    shape = tuple(axes.get(axis, 1) for axis in range(len(shapes[0])))
    if values[0].array is not None:
        return [Value(values[0].name, shape, values[0].array.reshape(shape))]  # type: ignore[arg-type]
    return _reshape(graph, values, [shape])


def _transpose(
    graph: Graph, values: list[Value], shapes: list[Shape], *, permutation: Any, **_: Any
) -> list[Value]:
    order = [int(axis) for axis in permutation]
    return [Value(graph.add("Transpose", graph.named(values[0]), perm=order), shapes[0])]


def _concatenate(
    graph: Graph, values: list[Value], shapes: list[Shape], *, dimension: int, **_: Any
) -> list[Value]:
    names = [graph.named(value) for value in values]
    return [Value(graph.add("Concat", *names, axis=int(dimension)), shapes[0])]


def _split(
    graph: Graph, values: list[Value], shapes: list[Shape], *, axis: int, sizes: Any, **_: Any
) -> list[Value]:
    sizes = graph.constant(np.array(sizes, np.int64), "sizes")
    names = graph.add_many(
        "Split", graph.named(values[0]), sizes, outputs=len(shapes), axis=int(axis)
    )
    return [Value(name, shape) for name, shape in zip(names, shapes, strict=True)]


def _slice(
    graph: Graph,
    values: list[Value],
    shapes: list[Shape],
    *,
    start_indices: Any,
    limit_indices: Any,
    strides: Any,
    **_: Any,
) -> list[Value]:
    strides = strides or (1,) * len(shapes[0])
    rows = zip(start_indices, limit_indices, range(len(shapes[0])), strides, strict=True)
    static = [row for row, side in zip(rows, values[0].shape, strict=True) if side is not None]
    bounds = (graph.constant(column.astype(np.int64), "bounds") for column in np.transpose(static))
    return [Value(graph.add("Slice", graph.named(values[0]), *bounds), shapes[0])]


def _reduce_sum(
    graph: Graph, values: list[Value], shapes: list[Shape], *, axes: Any, **_: Any
) -> list[Value]:
    which = graph.constant(np.array(axes, np.int64), "axes")
    return [Value(graph.add("ReduceSum", graph.named(values[0]), which, keepdims=0), shapes[0])]


def _reduce_max(
    graph: Graph, values: list[Value], shapes: list[Shape], *, axes: Any, **_: Any
) -> list[Value]:
    which = [int(axis) for axis in axes]
    name = graph.add("ReduceMax", graph.named(values[0]), axes=which, keepdims=0)
    return [Value(name, shapes[0])]


# --- Convolution and pooling: channels-first in ONNX ---


def _conv(
    graph: Graph,
    values: list[Value],
    shapes: list[Shape],
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> list[Value]:
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
    return [Value(name, shapes[0], channels_first=True)]


def _reduce_window_max(
    graph: Graph,
    values: list[Value],
    shapes: list[Shape],
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
    **_: Any,
) -> list[Value]:
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
    return [Value(name, shapes[0], channels_first=True)]


def _max_pool_2x2(graph: Graph, x: Value) -> Value:
    """`models.layers.max_pool_2x2`: ceil mode, by padding odd sides, which ONNX leaves out."""
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
    return Value(name, shape, channels_first=True)


def _spatial_mean(graph: Graph, x: Value) -> Value:
    """`models.layers.spatial_mean`."""
    name = graph.add("GlobalAveragePool", graph.named(x, channels_first=True))
    return Value(name, (x.shape[0], 1, 1, x.shape[3]), channels_first=True)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """JAX's (low, high) of each axis as ONNX's lows, then highs."""
    return [int(pair[end]) for end in (0, 1) for pair in padding]


# Functions by the name that `jit` gives them, each one node that runtimes have tuned.
_FUNCTIONS: dict[str, Callable[[Graph, Value], Value]] = {
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_swish,
    "max_pool_2x2": _max_pool_2x2,
    "relu6": _relu6,
    "spatial_mean": _spatial_mean,
}

_OPERATIONS: dict[str, Callable[..., list[Value]]] = {
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


# --- Post-processing ---


def suppress(
    graph: Graph,
    boxes: Value,
    scores: Value,
    *,
    iou_threshold: float,
    top_k: int,
    max_detections: int,
) -> dict[str, Value]:
    """Adds what `detection.multiclass_nms` does after its score threshold, and clips the boxes.

    Args:
      graph: Grows.
      boxes: `[B, P, 4]` corners.
      scores: `[B, C - 1, P]` of the classes without background; those of 0 take no part.
      iou_threshold: Of the suppression.
      top_k: Most boxes of a class that enter the suppression.
      max_detections: D, rows of the result.

    Returns:
      `boxes` `[B, D, 4]` in [0, 1], `scores` `[B, D]` and `labels` `[B, D]` int32, best first;
      unused rows are 0.
    """
    _, classes, count = scores.shape
    assert classes is not None
    assert count is not None
    top_k = min(top_k, count)
    zero = graph.constant(np.float32(0), "zero")
    best_scores, index = _top_k(graph, graph.named(scores), top_k)  # [B, C - 1, K]
    index = _reshaped(graph, index, 0, classes * top_k)
    candidates = _gather_rows(graph, graph.named(boxes), index)  # [B, (C - 1) K, 4]
    kept = _suppressed(graph, candidates, best_scores, top_k, iou_threshold)
    kept = _reshaped(graph, kept, -1, classes * top_k)
    final, where = _top_k(graph, kept, min(max_detections, classes * top_k))  # [B, D]
    real = graph.add("Greater", final, zero)
    found = _gather_rows(graph, candidates, where)
    found = graph.add("Clip", found, zero, graph.constant(np.float32(1), "whole"))
    found = graph.add("Where", _with_axis(graph, real), found, zero)
    missing = max(0, max_detections - classes * top_k)
    rows: Shape = (None, max_detections)
    labels = _padded(graph, _labels(graph, where, real, top_k), missing, rank=2)
    return {
        "boxes": Value(_padded(graph, found, missing, rank=3), (*rows, 4)),
        "scores": Value(_padded(graph, final, missing, rank=2), rows),
        "labels": Value(labels, rows, dtype=np.int32),
    }


def _suppressed(
    graph: Graph, candidates: str, scores: str, top_k: int, iou_threshold: float
) -> str:
    """`[B (C - 1), 1, K]` scores of the boxes that are kept in their class, 0 of the others.

    A class of a picture is a picture of its own to NonMaxSuppression, for it has its own boxes.
    """
    scores = _reshaped(graph, scores, -1, 1, top_k)
    zero = graph.constant(np.float32(0), "zero")
    chosen = graph.add(
        "NonMaxSuppression",
        _reshaped(graph, candidates, -1, top_k, 4),
        scores,
        graph.constant(np.int64(top_k), "top_k"),
        graph.constant(np.float32(iou_threshold), "iou_threshold"),
        zero,  # of the score, which has to be more
    )
    nothing = graph.add("Mul", scores, zero)
    return graph.add("ScatterND", nothing, chosen, graph.add("GatherND", scores, chosen))


def _labels(graph: Graph, where: str, real: str, top_k: int) -> str:
    """`[B, D]` int32 labels of places among `[B, (C - 1) K]`; 0 where not real."""
    place = graph.add("Div", where, graph.constant(np.int64(top_k), "top_k"))
    label = graph.add("Add", place, graph.constant(np.int64(1), "one"))
    label = graph.add("Where", real, label, graph.constant(np.int64(0), "none"))
    return graph.add("Cast", label, to=onnx.TensorProto.INT32)


def _top_k(graph: Graph, values: str, count: int) -> list[str]:
    """The largest of the last axis, best first, equal ones by index; and their int64 index."""
    most = graph.constant(np.array([count], np.int64), "count")
    return graph.add_many("TopK", values, most, outputs=2, axis=-1)


def _gather_rows(graph: Graph, rows: str, index: str) -> str:
    """Rows of `[B, N, 4]` by `[B, M]`."""
    return graph.add("GatherND", rows, _with_axis(graph, index), batch_dims=1)


def _with_axis(graph: Graph, values: str) -> str:
    """A last axis of size 1 more."""
    return graph.add("Unsqueeze", values, graph.constant(np.array([-1], np.int64), "last"))


def _reshaped(graph: Graph, values: str, *shape: int) -> str:
    return graph.add("Reshape", values, graph.constant(np.array(shape, np.int64), "shape"))


def _padded(graph: Graph, values: str, rows: int, rank: int) -> str:
    """`[B, D]` or `[B, D, 4]` with so many rows of 0 more."""
    if not rows:
        return values
    ends = np.zeros(2 * rank, np.int64)
    ends[rank + 1] = rows
    return graph.add("Pad", values, graph.constant(ends, "ends"))
