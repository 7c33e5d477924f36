# SPDX-License-Identifier: Apache-2.0
"""Recognise linear layers: MatMul with a constant matrix (and Add of a constant vector), Gemm, Conv."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.lift.structure import Linear

__all__ = ["array_of", "find_linears"]


def _is_constant(value: ir.Value | None, rank: int | None = None) -> bool:
    """Whether the value is an initializer that no feed replaces, of that rank if one is given."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return False
    return rank is None or len(value.const_value.shape) == rank


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """What an initializer holds that no feed replaces; None of other values."""
    tensor = value.const_value if value is not None and _is_constant(value) else None
    return tensor.numpy() if tensor is not None else None


def _separate_bias(output: ir.Value, channels: int) -> tuple[ir.Node, ir.Value] | None:
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return None
    node, index = uses[0]
    other = node.inputs[1 - index] if node.op_type == "Add" and node.domain == "" else None
    if other is None or not _is_constant(other, rank=1):
        return None
    assert other.const_value is not None
    return (node, other) if other.const_value.shape[0] == channels else None


def _linear(node: ir.Node) -> Linear | None:
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm", "Conv") or node.inputs[0] is None:
        return None
    x, weight = node.inputs[0], node.inputs[1]
    if x.const_value is not None or weight is None:
        return None
    if node.op_type == "MatMul":
        if not _is_constant(weight, rank=2):
            return None
        assert weight.const_value is not None
        found = _separate_bias(node.outputs[0], weight.const_value.numpy().shape[1])
        if found is None:
            return Linear(node, None, x, weight, None, node.outputs[0], 1)
        return Linear(node, found[0], x, weight, found[1], found[0].outputs[0], 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not _is_constant(weight) or (bias is not None and not _is_constant(bias, rank=1)):
        return None
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    out_axis = 0 if node.op_type == "Conv" or transposed else 1
    return Linear(node, None, x, weight, bias, node.outputs[0], out_axis)


def find_linears(graph: ir.Graph) -> list[Linear]:
    """Linears of a graph in graph order."""
    return [found for node in graph if (found := _linear(node)) is not None]
