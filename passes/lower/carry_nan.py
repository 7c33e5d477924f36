# SPDX-License-Identifier: Apache-2.0
"""Carry what is not a finite number from the inputs of a quantized model to its outputs, past codes, which cannot.

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

from samq_onnx.ops import DOMAIN, TERMS
from samq_onnx.passes.graph import scalar_of
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.report import Report

__all__ = ["carry_nan"]

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
QUANTIZES = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
FLOAT_ATTENTION = frozenset(f"Attention{terms}" for terms in TERMS)
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
    found, behind = set(start), set[ir.Value]()
    for node in graph:
        read = {value for value in _read(node) if value is not None}
        if read & found:
            found.update(node.outputs)
            if _quantizes(node) or read & behind:
                behind.update(node.outputs)
    return found, behind


def _is_carried(value: ir.Value) -> bool:
    """Whether the value is one that this pass made: something and a sum of zeros."""
    node = value.producer()
    if node is None or node.op_type != "Add" or node.inputs[1] is None:
        return False
    node = node.inputs[1].producer()
    while node is not None and node.op_type in ("Cast", "Sum", "ReduceSum") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Mul" and scalar_of(node.inputs[1]) == 0


class _Carrier:
    """Makes one sum for each type of output, and adds it once to each value that stands for outputs."""

    def __init__(self, builder: Builder, inputs: list[ir.Value]) -> None:
        self._builder = builder
        self._inputs = inputs
        self._last: ir.Node | None = None  # of the sums, which are made at the front of the graph
        self._none: dict[ir.DataType, ir.Value] = {}
        self._carried: dict[ir.Value, ir.Value] = {}

    def _append(
        self, op_type: str, inputs: list[ir.Value], dtype: ir.DataType, shape: ir.Shape | None, **attributes: int
    ) -> ir.Value:
        assert inputs[0].name is not None
        output = ir.Value(name=f"{inputs[0].name}_{op_type}", type=ir.TensorType(dtype), shape=shape)
        self._last = self._builder.node(op_type, inputs, output, self._last, dict(attributes))
        return output

    def none(self, dtype: ir.DataType) -> ir.Value:
        """0 or NaN, a scalar."""
        if dtype not in self._none:
            scalar, parts = ir.Shape([]), []
            for value in self._inputs:
                assert value.dtype is not None
                zero = self._builder.constant(f"{value.name}_zero", np.zeros((), value.dtype.numpy()))
                zeros = self._append("Mul", [value, zero], value.dtype, value.shape)
                part = self._append("ReduceSum", [zeros], value.dtype, scalar, keepdims=0)
                if value.dtype != dtype:
                    part = self._append("Cast", [part], dtype, scalar, to=int(dtype))
                parts.append(part)
            self._none[dtype] = self._append("Sum", parts, dtype, scalar) if len(parts) > 1 else parts[0]
        return self._none[dtype]

    def carried(self, value: ir.Value) -> ir.Value:
        """The value with the sum added."""
        if value not in self._carried:
            assert value.dtype is not None
            output = ir.Value(name=f"{value.name}_carried", type=value.type, shape=value.shape)
            self._builder.node("Add", [value, self.none(value.dtype)], output, value.producer())
            self._carried[value] = output
        return self._carried[value]


def _place(output: ir.Value, behind: set[ir.Value]) -> tuple[ir.Value, ir.Node | None]:
    """The value that views and resizing alone make an output of, and the view that reads it."""
    value, reader = output, None
    while (node := value.producer()) is not None and node.domain == "" and node.op_type in MOVES:
        source = node.inputs[0]
        if source is None or source.dtype != output.dtype or (source not in behind and not _is_carried(source)):
            break
        value, reader = source, node
    return value, reader


def carry_nan(builder: Builder) -> Report:
    """Add the sums, in place; nothing where no node quantizes or the outputs carry them already."""
    graph, report = builder.graph, Report("NaN carried")
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
        value, reader = _place(output, behind)
        if _is_carried(value):
            continue
        carried = carrier.carried(value)
        report.done.append(output.name or "")
        if reader is not None:
            reader.replace_input_with(0, carried)
        else:
            carried.name, value.name = value.name, f"{value.name}_quantized"
            graph.outputs[index] = carried
    return report
