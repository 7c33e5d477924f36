# SPDX-License-Identifier: Apache-2.0
"""Recognise linear layers: MatMul with a constant matrix (and Add of a constant vector), Gemm, Conv.

A Gemm is first brought to the one form that is a linear layer of rows, y = x W + b: its factors go into its constants,
a bias that is the same for all rows becomes a vector, and a transposed input is transposed by a node.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import add_constant, array_of, input_of, is_constant, only_reader
from samq_onnx.passes.lift.structure import Linear

__all__ = ["find_linears", "plain_gemms"]


def _separate_bias(output: ir.Value, channels: int) -> tuple[ir.Node, ir.Value] | None:
    found = only_reader(output, "Add")
    if found is None:
        return None
    node, index = found
    other = node.inputs[1 - index]
    bias = array_of(other)
    return (node, other) if other is not None and bias is not None and bias.shape == (channels,) else None


def _linear(node: ir.Node) -> Linear | None:
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm", "Conv") or node.inputs[0] is None:
        return None
    x, weight = node.inputs[0], node.inputs[1]
    held = array_of(weight)
    if is_constant(x) or weight is None or held is None or not held.size:
        return None
    if node.op_type == "MatMul":
        if held.ndim != 2:
            return None
        found = _separate_bias(node.outputs[0], held.shape[1])
        if found is None:
            return Linear(node, None, x, weight, None, node.outputs[0], 1)
        return Linear(node, found[0], x, weight, found[1], found[0].outputs[0], 1)
    bias = input_of(node, 2)
    if (bias is not None and not is_constant(bias, rank=1)) or (node.op_type == "Gemm" and not _is_plain(node)):
        return None
    transposed = node.op_type == "Gemm" and bool(_option(node, "transB"))
    out_axis = 0 if node.op_type == "Conv" or transposed else 1
    return Linear(node, None, x, weight, bias, node.outputs[0], out_axis)


def _option(node: ir.Node, name: str) -> float:
    """An attribute of a Gemm."""
    attribute = node.attributes.get(name)
    return attribute.value if attribute is not None else float(name in ("alpha", "beta"))


def _columns(gemm: ir.Node, weight: np.ndarray) -> int:
    return int(weight.shape[0 if _option(gemm, "transB") else 1])


def _is_plain(gemm: ir.Node) -> bool:
    """Whether it is x W + b, with W as it stands or transposed, and b a number for every column."""
    weight, bias = array_of(gemm.inputs[1]), array_of(input_of(gemm, 2))
    if weight is None or (bias is not None and bias.shape != (_columns(gemm, weight),)):
        return False
    return _option(gemm, "alpha") == _option(gemm, "beta") == 1 and not _option(gemm, "transA")


def plain_gemms(graph: ir.Graph) -> None:
    """Bring Gemms of constant weights, and of a constant bias that is alike for all rows, to x W + b, in place."""
    for node in graph:
        if node.op_type != "Gemm" or node.domain or node.inputs[0] is None:
            continue
        weight, given = array_of(node.inputs[1]), input_of(node, 2)
        bias = array_of(given)
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or _is_plain(node):
            continue
        columns = _columns(node, weight)
        alike = (
            bias is not None
            and all(size == 1 for size in bias.shape[:-1])
            and bias.shape[-1:] in ((), (1,), (columns,))
        )
        if given is not None and not alike:
            continue
        name = node.outputs[0].name
        alpha, beta = np.float32(_option(node, "alpha")), np.float32(_option(node, "beta"))
        if alpha != 1:
            node.replace_input_with(1, add_constant(graph, f"{name}_weight", alpha * weight))
        if bias is not None:
            row = np.broadcast_to(beta * bias.reshape(-1), (columns,))
            node.replace_input_with(2, add_constant(graph, f"{name}_bias", np.ascontiguousarray(row)))
        if _option(node, "transA"):
            turned = ir.node("Transpose", [node.inputs[0]], {"perm": [1, 0]})
            made, x = turned.outputs[0], node.inputs[0]
            made.name, made.type = f"{name}_turned", x.type
            made.shape = ir.Shape(list(x.shape)[::-1]) if x.shape is not None else None
            turned.name = made.name
            graph.insert_before(node, turned)
            node.replace_input_with(0, made)
        for option in ("alpha", "beta", "transA"):
            node.attributes.pop(option, None)


def find_linears(graph: ir.Graph) -> list[Linear]:
    """Linears of a graph in graph order."""
    return [found for node in graph if (found := _linear(node)) is not None]
