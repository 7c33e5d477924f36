# SPDX-License-Identifier: Apache-2.0
"""Move rows before a linear instead of after it, so that bytes are moved, and dropped rows are never computed.

    view(QLinear(x)) -> QLinear(view(x))

A linear treats every row alone, so views that keep rows whole may come first; window attention's padding then goes
before the output projection. Exact. Takes Reshape, Transpose and Slice that leave the last axis alone, where the
linear keeps its width, so that their constants stay right; refuses outputs that something else reads too, and views
of unknown shape.
"""

from __future__ import annotations

import onnx_ir as ir

from samq_onnx.ops import DOMAIN
from samq_onnx.passes.graph import only_reader
from samq_onnx.passes.lift.padding import keeps_rows
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.report import Report

__all__ = ["move_rows_first"]


def _views(value: ir.Value) -> list[ir.Node]:
    """The views of whole rows, one after the other, that alone read ``value``."""
    found: list[ir.Node] = []
    while (reader := only_reader(value)) is not None:
        node, index = reader
        if index != 0 or not keeps_rows(node):
            break
        found.append(node)
        value = node.outputs[0]
    return found


def move_rows_first(builder: Builder) -> Report:
    """Move views of whole rows from behind to before square linears, in place."""
    report = Report("rows before linears")
    for node in list(builder.graph):
        if node.domain != DOMAIN or node.op_type != "QLinear":
            continue
        x, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
        views = _views(output)
        assert x is not None and weight is not None and weight.shape is not None
        if not views or weight.shape[0] != weight.shape[1]:
            continue
        codes = views[-1].outputs[0]
        made = ir.Value(name=codes.name, type=output.type, shape=codes.shape)
        codes.name = f"{codes.name}_codes"
        ir.convenience.replace_all_uses_with(codes, made, replace_graph_outputs=True)
        views[0].replace_input_with(0, x)
        for view in views:
            view.outputs[0].type = x.type
        builder.node("QLinear", [codes, *(i for i in node.inputs[1:] if i is not None)], made, views[-1], domain=DOMAIN)
        builder.graph.remove(node, safe=True)
        report.done.append(made.name or "")
    return report
