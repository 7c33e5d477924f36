# SPDX-License-Identifier: Apache-2.0
"""Carry what is not a finite number from the inputs of a quantized model to its outputs, past codes that cannot hold it.

    none = ReduceSum(input * 0) of each float input      0, or NaN if an element is NaN or infinite
    views(y) given as an output  ->  views(y + none)

Bits of finite runs stay, but for the sign of zero. The sum stands as far up as views and resizing go, where masks are
small, and only on the way to the output, so that no other reader of y loses its integer kernel. Takes inputs that
reach a quantizing node and outputs of floats behind one; others carry NaN by themselves. Standard operators only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from samq_onnx.ops import DOMAIN
from samq_onnx.passes.lower.build import Builder

__all__ = ["carry_nan"]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
QUANTIZES = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
FLOAT_ATTENTION = frozenset({"Attention", "AttentionRelPos"})
MOVES = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Gather", "Identity", "Resize"}
)


def _quantizes(node: ir.Node) -> bool:
    if node.domain == DOMAIN:
        return node.op_type not in FLOAT_ATTENTION
    return node.domain == "" and node.op_type in QUANTIZES


def _read(node: ir.Node) -> Iterator[ir.Value | None]:
    """What a node reads, in its subgraphs too."""
    yield from node.inputs
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        graphs += attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            yield from graph.outputs
            for inner in graph:
                yield from _read(inner)


def _reached(graph: ir.Graph, start: set[ir.Value]) -> tuple[set[ir.Value], set[ir.Value]]:
    """The values that depend on ``start``, itself included, and those of them that come out of quantizing nodes on."""
    found, behind = set(start), set()
    for node in graph:
        read = {value for value in _read(node) if value is not None}
        if read & found:
            found.update(node.outputs)
            if _quantizes(node) or read & behind:
                behind.update(node.outputs)
    return found, behind


def _is_none(value: ir.Value | None) -> bool:
    """Whether the value is a sum that this pass made."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cast", "Sum") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "ReduceSum" or node.inputs[0] is None:
        return False
    zeros = node.inputs[0].producer()
    if zeros is None or zeros.op_type != "Mul" or zeros.inputs[1] is None:
        return False
    factor = zeros.inputs[1].const_value
    return factor is not None and factor.size == 1 and not factor.numpy().any()


class _Carrier:
    """Adds the sums; one for each type of output, one sum for each value that stands for outputs."""

    def __init__(self, builder: Builder, inputs: list[ir.Value]) -> None:
        self._builder = builder
        self._inputs = inputs
        self._none: dict[ir.DataType, ir.Value] = {}
        self._made: dict[ir.Value, ir.Value] = {}

    def _append(self, op_type: str, inputs: list[ir.Value], dtype: ir.DataType, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].type = ir.TensorType(dtype)
        if self._none_after is None:
            self._builder.graph.insert_before(self._builder.graph[0], node)
        else:
            self._builder.graph.insert_after(self._none_after, node)
        self._none_after = node
        return node.outputs[0]

    _none_after: ir.Node | None = None

    def none(self, dtype: ir.DataType) -> ir.Value:
        """0 or NaN, a scalar."""
        if dtype not in self._none:
            parts = []
            for value in self._inputs:
                assert value.dtype is not None
                zero = self._builder.constant(f"{value.name}_zero", np.zeros((), value.dtype.numpy()))
                zeros = self._append("Mul", [value, zero], value.dtype)
                zeros.shape = value.shape
                part = self._append("ReduceSum", [zeros], value.dtype, keepdims=0)
                if value.dtype != dtype:
                    part = self._append("Cast", [part], dtype, to=int(dtype))
                parts.append(part)
            self._none[dtype] = self._append("Sum", parts, dtype) if len(parts) > 1 else parts[0]
            self._none[dtype].shape = ir.Shape([])
        return self._none[dtype]

    def carried(self, value: ir.Value) -> ir.Value:
        """The value with the sum added."""
        if value not in self._made:
            producer = value.producer()
            assert value.dtype is not None and producer is not None
            added = ir.node("Add", [value, self.none(value.dtype)])
            self._builder.graph.insert_after(producer, added)
            output = added.outputs[0]
            output.name, output.type, output.shape = f"{value.name}_carried", value.type, value.shape
            self._made[value] = output
        return self._made[value]


def carry_nan(builder: Builder) -> None:
    """Add the sums, in place; nothing where no node quantizes or the outputs carry them already."""
    graph = builder.graph
    inputs, behind = [], set()
    for value in graph.inputs:
        if value.dtype in FLOATS and not value.is_initializer():
            _, after = _reached(graph, {value})
            if after:
                inputs.append(value)
                behind |= after
    carrier = _Carrier(builder, inputs)
    for index, output in enumerate(graph.outputs):
        if output.dtype not in FLOATS or output not in behind:
            continue
        value, reader = output, None
        while (node := value.producer()) is not None and node.domain == "" and node.op_type in MOVES:
            source = node.inputs[0]
            if source is None or source.dtype != output.dtype or source not in behind:
                break
            value, reader = source, node
        if node is None or (node.op_type == "Add" and _is_none(node.inputs[1])):
            continue
        carried = carrier.carried(value)
        if reader is not None:
            reader.replace_input_with(0, carried)
        else:
            value.name, carried.name = f"{value.name}_quantized", value.name
            graph.outputs[index] = carried
