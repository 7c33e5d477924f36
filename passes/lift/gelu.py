# SPDX-License-Identifier: Apache-2.0
"""Recognise GELU: the operator itself, and its spelling x * (erf(x / sqrt 2) + 1) / 2, factors in any order."""

from __future__ import annotations

import onnx_ir as ir

from samq_onnx.passes.lift.structure import Gelu

__all__ = ["find_gelus"]


def _by_erf(erf: ir.Node) -> Gelu | None:
    divide = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    if divide is None or divide.op_type not in ("Div", "Mul") or divide.inputs[0] is None:
        return None
    x = divide.inputs[0]
    uses = tuple(erf.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add":
        return None
    value, seen_x = uses[0][0].outputs[0], False
    for _ in range(2):  # times x and times one half
        uses = tuple(value.uses())
        if len(uses) != 1 or uses[0][0].op_type != "Mul":
            return None
        node, index = uses[0]
        other = node.inputs[1 - index]
        half_x = other.producer() if other is not None else None
        if other is x:
            seen_x = True
        elif half_x is not None and half_x.op_type == "Mul" and x in half_x.inputs:
            return Gelu(x, node.outputs[0])
        value = node.outputs[0]
    return Gelu(x, value) if seen_x else None


def find_gelus(graph: ir.Graph) -> list[Gelu]:
    """GELUs of a graph in graph order."""
    found = []
    for node in graph:
        if node.op_type == "Gelu" and node.inputs[0] is not None:
            found.append(Gelu(node.inputs[0], node.outputs[0]))
        elif node.op_type == "Erf" and (gelu := _by_erf(node)) is not None:
            found.append(gelu)
    return found
