# SPDX-License-Identifier: Apache-2.0
"""What every pass asks of a graph: is this value a constant, and what does it hold; and how a constant is added."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["add_constant", "array_of", "input_of", "is_constant", "scalar_of"]


def is_constant(value: ir.Value | None, rank: int | None = None) -> bool:
    """Whether the value is an initializer of the graph that no feed replaces, of that rank if one is given."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return False
    return rank is None or len(value.const_value.shape) == rank


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """What a constant holds; None of other values."""
    tensor = value.const_value if value is not None and is_constant(value) else None
    return tensor.numpy() if tensor is not None else None


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds; None of other values."""
    array = array_of(value)
    return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node, None where it is blank or left out."""
    return node.inputs[index] if index < len(node.inputs) else None


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
