# SPDX-License-Identifier: Apache-2.0
"""Recognise LayerNorm: the operator itself, and its spelling by means (SAM's LayerNorm2d over the channel axis).

mean = ReduceMean(x);  centred = x - mean;  y = centred / sqrt(ReduceMean(centred ^ 2) + eps) * scale + bias
"""

from __future__ import annotations

import onnx_ir as ir

from samq_onnx.passes.graph import add_constant, array_of, input_of, is_shared, only_reader
from samq_onnx.passes.lift.structure import Norm

__all__ = ["epsilon_of", "find_norms", "own_constants"]


def epsilon_of(node: ir.Node) -> float:
    """Of a LayerNormalization."""
    epsilon = node.attributes.get("epsilon")
    return epsilon.as_float() if epsilon is not None else 1e-5


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return next((entry for entry in node.inputs if entry is not value), None)


def _next(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """The node of this type that alone reads the first output of ``node``."""
    found = only_reader(node.outputs[0], op_type) if node is not None else None
    return found[0] if found is not None else None


def _mean(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """What ``value`` is the mean of, over which one axis, which it keeps."""
    node = _producer(value, "ReduceMean")
    x = node.inputs[0] if node is not None else None
    if node is None or x is None:
        return None
    keeps, named = node.attributes.get("keepdims"), node.attributes.get("axes")
    held = array_of(input_of(node, 1))
    axes = named.as_ints() if named is not None else held.tolist() if held is not None else ()
    return (x, axes[0]) if len(axes) == 1 and (keeps is None or keeps.value) else None


def _squares(node: ir.Node, x: ir.Value) -> bool:
    """Whether the node squares ``x``."""
    if node.op_type == "Mul":
        return all(value is x for value in node.inputs)
    power = array_of(node.inputs[1]) if node.op_type == "Pow" else None
    return node.inputs[0] is x and power is not None and power.size == 1 and power.item() == 2


def _by_means(divide: ir.Node) -> Norm | None:
    centre = _producer(divide.inputs[0], "Sub")
    root = _producer(divide.inputs[1], "Sqrt")
    shifted = _producer(root.inputs[0], "Add") if root else None
    if centre is None or shifted is None or centre.inputs[0] is None:
        return None
    x = centre.inputs[0]
    mean = _mean(centre.inputs[1])
    variances = [(value, found) for value in shifted.inputs if (found := _mean(value)) is not None]
    if mean is None or mean[0] is not x or len(variances) != 1:
        return None
    ((variance, (squares, axis)),) = variances
    square = squares.producer()
    if square is None or not _squares(square, centre.outputs[0]) or axis != mean[1] or variance is None:
        return None
    epsilon = array_of(_other(shifted, variance))
    multiply = _next(divide, "Mul")
    scale = _other(multiply, divide.outputs[0]) if multiply else None
    add = _next(multiply, "Add")
    bias = _other(add, multiply.outputs[0]) if add and multiply else None
    if add is None or scale is None or array_of(scale) is None or array_of(bias) is None or epsilon is None:
        return None
    return Norm(divide, x, scale, bias, add.outputs[0], axis, epsilon.item()) if epsilon.size == 1 else None


def find_norms(graph: ir.Graph) -> list[Norm]:
    """Layer norms of a graph in graph order."""
    found = []
    for node in graph:
        if node.domain:
            continue
        if node.op_type == "LayerNormalization" and node.inputs[0] is not None and node.inputs[1] is not None:
            bias = input_of(node, 2)
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
            found.append(Norm(node, node.inputs[0], node.inputs[1], bias, node.outputs[0], axis, epsilon_of(node)))
        elif node.op_type == "Div" and (norm := _by_means(node)) is not None:
            found.append(norm)
    return found


def own_constants(graph: ir.Graph, norms: list[Norm]) -> None:
    """Give every norm a scale and a shift of its own, in place: equal ones of fresh norms are stored once, and what is
    folded into one norm would be seen in the others."""
    for norm in norms:
        for name in ("scale", "bias"):
            value = getattr(norm, name)
            held = array_of(value)
            if value is None or held is None or not is_shared(value):
                continue
            last = norm.output.producer()
            assert last is not None
            # itself, or what multiplies and adds behind it where it is spelled by means
            node = next(node for node in (norm.node, last, *last.predecessors()) if value in node.inputs)
            own = add_constant(graph, f"{norm.output.name}_{name}", held.copy())
            node.replace_input_with(list(node.inputs).index(value), own)
            setattr(norm, name, own)
