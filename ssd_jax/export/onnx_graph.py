"""An ONNX graph that grows node by node.

Convolutions and pooling are channels-first in ONNX: the operations after them stay so as long as
possible, so that few transpositions remain.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12, 2022: what runtimes in use read
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)

Shape = tuple[int | None, ...]  # None is the batch


class Value(NamedTuple):
    """A variable of the traced function in the graph.

    Attributes:
      name: Name of the tensor; of a constant, the preferred one.
      shape: Shape in JAX's order of axes. May be 1 where JAX has more: ONNX broadcasts.
      array: Values of a constant.
      channels_first: Whether the tensor's axes are in the order (0, 3, 1, 2) of JAX's.
      dtype: Type of its elements.
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
        """Adds a node with one output and returns its name."""
        return self.add_many(op, *inputs, outputs=1, **attributes)[0]

    def add_many(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Adds a node with several outputs and returns their names."""
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
          metadata: Metadata of the file.
          version: Version of the program that writes it.

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
