# SPDX-License-Identifier: Apache-2.0
"""What every pass asks of a graph: is this value a constant, and what does it hold, who alone reads it, what shape has
it; and how a constant is added or replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

__all__ = [
    "add_constant",
    "array_of",
    "constant",
    "held_constants",
    "input_of",
    "is_constant",
    "is_shared",
    "known_shape",
    "only_reader",
    "put_back",
    "replace_constant",
    "scalar_of",
    "tap",
]


def is_constant(value: ir.Value | None, rank: int | None = None) -> bool:
    """Whether the value is an initializer of the graph that no feed replaces, of that rank if one is given."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return False
    return rank is None or len(value.const_value.shape) == rank


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """What a constant holds; None of other values."""
    tensor = value.const_value if value is not None and is_constant(value) else None
    return tensor.numpy() if tensor is not None else None


def constant(value: ir.Value | None) -> np.ndarray:
    """What a constant holds.

    Raises:
        ValueError: the value is none, or a feed may replace it.
    """
    array = array_of(value)
    if array is None:
        raise ValueError(f"{value.name if value is not None else 'nothing'} is no constant")
    return array


def held_constants(graph: ir.Graph) -> dict[str, ir.TensorProtocol | None]:
    """Name of each constant of a graph -> the tensor that it holds now; tensors are replaced, never changed."""
    return {name: value.const_value for name, value in graph.initializers.items() if is_constant(value)}


def put_back(graph: ir.Graph, held: Mapping[str, ir.TensorProtocol | None]) -> None:
    """Let constants hold what `held_constants` said that they held."""
    for name, tensor in held.items():
        graph.initializers[name].const_value = tensor


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds; None of other values."""
    array = array_of(value)
    return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node, None where it is blank or left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_shared(value: ir.Value) -> bool:
    """Whether more than one node reads it, or the model gives it out, so that an edit would be seen elsewhere."""
    return len(value.uses()) > 1 or value.is_graph_output()


def only_reader(value: ir.Value, op_type: str | None = None) -> tuple[ir.Node, int] | None:
    """The node that alone reads the value, once and in the value's own graph, and the place of the input.

    None where there is no such node, where the model gives the value out, and, if an ``op_type`` is given, where the
    node is not that operator of ONNX.
    """
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    if op_type is not None and (uses[0].node.op_type != op_type or uses[0].node.domain):
        return None
    return uses[0].node, uses[0].idx


def known_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a value, None where any dimension is not known before a run."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return value.shape.numpy()


def add_constant(graph: ir.Graph, name: str, held: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """A new initializer, named after ``name``."""
    unique, suffix = name, 1
    while unique in graph.initializers:
        unique, suffix = f"{name}_{suffix}", suffix + 1
    tensor = ir.tensor(held, name=unique) if isinstance(held, np.ndarray) else held
    tensor.name = unique
    shape = ir.Shape(tensor.numpy().shape)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give a constant new contents of the same dtype."""
    old = constant(value)
    value.const_value = ir.tensor(np.ascontiguousarray(array, dtype=old.dtype), name=value.name)
    value.shape = ir.Shape(array.shape)


def tap(model: ir.Model, names: Iterable[str]) -> None:
    """Make the float values of these names outputs too, behind those there are."""
    made = {value.name: value for node in model.graph for value in node.outputs}
    present = {value.name for value in model.graph.outputs}
    for name in names:
        if name not in present:
            made[name].type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(made[name])
