# SPDX-License-Identifier: Apache-2.0
"""Let a model of half precision compute in float32, which everything behind takes; its inputs and outputs stay.

Weights and attributes of float16 and bfloat16 become float32, as do types of values; casts at the border keep the
types of inputs and outputs. What the model says differs from what it said by the rounding that it no longer does.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import onnx_ir as ir

__all__ = ["single_precision"]

T = TypeVar("T", bound="ir.TypeProtocol | None")
HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
TYPE_ATTRIBUTES = ("to", "dtype", "stash_type", "output_datatype")  # whose number is a type


def single_precision(model: ir.Model) -> int:
    """Make a model compute in float32, in place; local functions are inlined before.

    Returns:
        How many constants were of half precision.
    """
    nodes = list(model.graph.all_nodes())
    graphs = [model.graph, *{node.graph for node in nodes if isinstance(node.graph, ir.Graph)} - {model.graph}]
    inputs = [value for value in model.graph.inputs if value.dtype in HALVES]
    outputs = [(place, value.type) for place, value in enumerate(model.graph.outputs) if value.dtype in HALVES]
    widened = sum(_widen(value) for graph in graphs for value in graph.initializers.values())
    for node in nodes:
        for name, attribute in list(node.attributes.items()):
            node.attributes[name] = _wide(attribute)
        for value in node.outputs:
            value.type = _wide_type(value.type)
    for graph in graphs[1:]:
        for value in (*graph.inputs, *graph.outputs):
            value.type = _wide_type(value.type)
    for value in inputs:
        _cast_input(model.graph, value)
    for place, declared in outputs:
        _cast_output(model.graph, place, declared)
    return widened


def _widen(value: ir.Value) -> bool:
    """Make an initializer float32 that is of half precision; one that is an input too keeps its type."""
    tensor = value.const_value
    if tensor is None or tensor.dtype not in HALVES or value.is_graph_input():
        return False
    value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return True


def _wide_type(held: T) -> T | ir.TensorType | ir.SequenceType | ir.OptionalType:
    if isinstance(held, ir.TensorType):
        return ir.TensorType(ir.DataType.FLOAT) if held.dtype in HALVES else held
    if isinstance(held, (ir.SequenceType, ir.OptionalType)):
        return type(held)(_wide_type(held.elem_type))
    return held


def _wide(attribute: ir.Attr) -> ir.Attr:
    """An attribute that gives a type, or a tensor, of half precision, as one of float32."""
    if attribute.type == ir.AttributeType.INT and attribute.name in TYPE_ATTRIBUTES and attribute.as_int() in HALVES:
        return ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
        return ir.AttrTensor(attribute.name, ir.tensor(attribute.as_tensor().numpy().astype(np.float32)))
    return attribute


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(to)}, name=f"{name}_cast")
    made = node.outputs[0]
    made.name, made.type, made.shape = name, ir.TensorType(to), value.shape
    return node


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    readers = list(value.uses())
    node = _cast(value, ir.DataType.FLOAT, f"{value.name}_single")
    for reader, index in readers:
        reader.replace_input_with(index, node.outputs[0])
    graph.insert_before(graph[0], node)


def _cast_output(graph: ir.Graph, place: int, declared: ir.TypeProtocol | None) -> None:
    value = graph.outputs[place]
    if value.is_graph_input() or declared is None:
        return
    name = value.name or ""
    value.name = f"{name}_single"
    node = _cast(value, declared.dtype, name)
    graph.outputs[place] = node.outputs[0]
    graph.append(node)
