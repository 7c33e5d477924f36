# SPDX-License-Identifier: Apache-2.0
"""Small builders of quantize and dequantize nodes on an onnx_ir graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from samq_onnx.codes import HybridCodes, UniformCodes
from samq_onnx.passes.graph import add_constant

__all__ = ["FLOAT_OUTPUT", "UNSIGNED", "Builder", "CodeType", "Codes", "take_place"]

FLOAT_OUTPUT = "samq_onnx.float_output"  # metadata of a fused node: the name of the value that it no longer gives


def take_place(graph: ir.Graph, old: ir.Value, made: ir.Value, nodes: Iterable[ir.Node]) -> None:
    """Let ``made`` be read and given instead of ``old``, under its name, and remove the nodes that made that."""
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    graph.remove(nodes, safe=True)
    made.name = old.name


@dataclasses.dataclass(frozen=True)
class CodeType:
    """The integers of 8 bits that hold the activation codes of a target: ``UINT8`` or ``INT8``.

    The plan counts codes from 0; signed ones begin at -2^(bits - 1), and so does their zero point.
    """

    dtype: ir.DataType

    def lowest(self, bits: int) -> int:
        """The integer that stands for code 0."""
        return -(2 ** (bits - 1)) if self.dtype == ir.DataType.INT8 else 0

    def number(self, code: int, bits: int) -> np.ndarray:
        """The integer that stands for a code, a scalar of this type."""
        return np.array(self.lowest(bits) + code, self.dtype.numpy())


UNSIGNED = CodeType(ir.DataType.UINT8)


@dataclasses.dataclass(frozen=True)
class Codes:
    """A tensor of codes of the graph with the constants that give it meaning."""

    value: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class Builder:
    """Adds nodes and constants to a graph; equal requests share one node.

    Args:
        graph: to add to. code_type: of activation codes.
    """

    def __init__(self, graph: ir.Graph, code_type: CodeType = UNSIGNED) -> None:
        self.graph = graph
        self.code_type = code_type
        self._codes: dict[tuple[ir.Value, UniformCodes | HybridCodes], Codes] = {}
        self._floats: dict[ir.Value, ir.Value] = {}

    def constant(self, name: str, tensor: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """A new initializer, named after ``name``."""
        return add_constant(self.graph, name, tensor)

    def node(
        self,
        op_type: str,
        inputs: list[ir.Value],
        output: ir.Value,
        after: ir.Node | None,
        attributes: dict[str, int | float] | None = None,
        domain: str = "",
    ) -> ir.Node:
        """Insert a single-output node right after ``after``, or at the front of the graph when that is None."""
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, outputs=[output], name=output.name)
        if after is not None:
            self.graph.insert_after(after, node)
        else:
            self.graph.insert_before(self.graph[0], node)
        return node

    def _scale(self, name: str | None, codes: UniformCodes) -> tuple[ir.Value, ir.Value]:
        scale = self.constant(f"{name}_scale", np.array(codes.scale, np.float32))
        return scale, self.constant(f"{name}_zero_point", self.code_type.number(codes.zero_point, codes.bits))

    def provide(self, value: ir.Value, codes: UniformCodes | HybridCodes, made: ir.Value) -> None:
        """Let ``made`` be what `quantize` gives for ``value``."""
        grid = codes.grid if isinstance(codes, HybridCodes) else codes
        self._codes[value, codes] = Codes(made, *self._scale(value.name, grid))

    def quantize(self, value: ir.Value, codes: UniformCodes | HybridCodes) -> Codes:
        """Codes of a float value, made where the value is made; below 8 bits clipped inside their container.

        Hybrid codes are looked up in a table of the codes of their grid.
        """
        key = (value, codes)
        if key in self._codes:
            return self._codes[key]
        if isinstance(codes, HybridCodes):
            self._codes[key] = self._looked_up(value, codes)
            return self._codes[key]
        scale, zero = self._scale(value.name, codes)
        output = ir.Value(name=f"{scale.name}_codes", type=ir.TensorType(self.code_type.dtype), shape=value.shape)
        last = self.node("QuantizeLinear", [value, scale, zero], output, value.producer())
        if codes.bits < 8:
            low = self.constant(f"{value.name}_qmin", self.code_type.number(0, codes.bits))
            high = self.constant(f"{value.name}_qmax", self.code_type.number(2**codes.bits - 1, codes.bits))
            clipped = ir.Value(name=f"{scale.name}_clipped", type=output.type, shape=value.shape)
            self.node("Clip", [output, low, high], clipped, last)
            output = clipped
        self._codes[key] = Codes(output, scale, zero)
        return self._codes[key]

    def _looked_up(self, value: ir.Value, codes: HybridCodes) -> Codes:
        grid = self.quantize(value, codes.grid)
        lowest = self.code_type.lowest(codes.grid.bits)
        # a signed code below 0 counts from the end
        numbers = np.roll(codes.table().astype(np.int64) + lowest, lowest).astype(self.code_type.dtype.numpy())
        table = self.constant(f"{value.name}_hybrid", numbers)
        index = ir.Value(name=f"{table.name}_index", type=ir.TensorType(ir.DataType.INT32), shape=value.shape)
        cast = self.node("Cast", [grid.value], index, grid.value.producer(), {"to": int(ir.DataType.INT32)})
        output = ir.Value(name=f"{table.name}_codes", type=grid.value.type, shape=value.shape)
        self.node("Gather", [table, index], output, cast)
        return Codes(output, grid.scale, grid.zero_point)

    def dequantize(self, codes: Codes) -> ir.Value:
        """The float value that ``codes`` stand for."""
        if codes.value not in self._floats:
            output = ir.Value(
                name=f"{codes.value.name}_float", type=ir.TensorType(ir.DataType.FLOAT), shape=codes.value.shape
            )
            self.node("DequantizeLinear", [codes.value, codes.scale, codes.zero_point], output, codes.value.producer())
            self._floats[codes.value] = output
        return self._floats[codes.value]
