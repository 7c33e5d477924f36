# SPDX-License-Identifier: Apache-2.0
"""Recognise GELU: the operator itself, and its spelling x * (erf(x / sqrt 2) + 1) / 2, factors in any order.

Its numbers must be constants that no feed replaces; the operator's approximation by tanh is another function.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from samq_onnx.passes.graph import only_reader, scalar_of
from samq_onnx.passes.lift.structure import Gelu

__all__ = ["find_gelus"]

DOMAINS = ("", "com.microsoft")
NEARLY = 1e-3  # relative, as exporters round


def _is(value: ir.Value | None, number: float) -> bool:
    held = scalar_of(value)
    return held is not None and math.isclose(held, number, rel_tol=NEARLY)


def _times(node: ir.Node | None, number: float) -> ir.Value | None:
    """What the node multiplies by a number, or divides by its inverse."""
    if node is None or node.domain:
        return None
    if node.op_type == "Div" and _is(node.inputs[1], 1 / number):
        return node.inputs[0]
    if node.op_type == "Mul":
        return next((node.inputs[1 - i] for i in (0, 1) if _is(node.inputs[i], number)), None)
    return None


def _by_erf(erf: ir.Node) -> Gelu | None:
    x = _times(erf.inputs[0].producer() if erf.inputs[0] is not None else None, math.sqrt(0.5))
    found = only_reader(erf.outputs[0], "Add")
    if x is None or found is None or not _is(found[0].inputs[1 - found[1]], 1):
        return None
    value, missing = found[0].outputs[0], {"x", "half"}
    while missing:
        found = only_reader(value)
        if found is None or found[0].domain:
            return None
        node, index = found
        other = node.inputs[1 - index] if node.op_type == "Mul" else None
        if _times(node, 0.5) is value:
            factors = {"half"}
        elif other is x:
            factors = {"x"}
        elif other is not None and _times(other.producer(), 0.5) is x:
            factors = {"x", "half"}
        else:
            return None
        if not factors <= missing:
            return None
        missing -= factors
        value = node.outputs[0]
    return Gelu(x, value)


def find_gelus(graph: ir.Graph) -> list[Gelu]:
    """GELUs of a graph in graph order."""
    found = []
    for node in graph:
        if node.op_type == "Gelu" and node.domain in DOMAINS and node.inputs[0] is not None:
            spelled = node.attributes.get("approximate")
            if spelled is None or spelled.as_string() == "none":
                found.append(Gelu(node.inputs[0], node.outputs[0]))
        elif node.op_type == "Erf" and not node.domain and (gelu := _by_erf(node)) is not None:
            found.append(gelu)
    return found
