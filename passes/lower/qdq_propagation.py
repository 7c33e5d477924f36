# SPDX-License-Identifier: Apache-2.0
"""Quantize before views instead of after them, so that they move bytes instead of floats.

    Quantize(view(x)) -> view(Quantize(x))
    Clip(view(codes)) -> view(Clip(codes))

Exact for Reshape, Transpose and their like, which only move elements, and for a Pad with zeros, which becomes a Pad
with the zero point; codes are clipped before a Pad with a code that the Clip would leave alone. Refuses views that
something else reads too, other padding, and a Clip of floats, which may be the model's own.
"""

from __future__ import annotations

import onnx_ir as ir

from samq_onnx.passes.graph import array_of, input_of, only_reader, scalar_of
from samq_onnx.passes.lower.build import Builder, take_place
from samq_onnx.passes.report import Report

__all__ = ["propagate_qdq"]

CODES = frozenset({ir.DataType.UINT8, ir.DataType.INT8})
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice"})


def _is_zero_pad(node: ir.Node) -> bool:
    if node.op_type != "Pad":
        return False
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return False
    value = input_of(node, 2)
    fill = array_of(value)
    return value is None or (fill is not None and not fill.any())


def _fill(view: ir.Node, node: ir.Node) -> ir.Value | None:
    """What a Pad has to pad with once ``node`` comes before it; None if it cannot."""
    fill = input_of(view, 2)
    if node.op_type == "QuantizeLinear":
        return node.inputs[2] if _is_zero_pad(view) else None
    low, code, high = (scalar_of(value) for value in (node.inputs[1], fill, node.inputs[2]))
    return fill if low is not None and code is not None and high is not None and low <= code <= high else None


def _move_up(builder: Builder, node: ir.Node) -> ir.Node | None:
    """Exchange a node with the view before it, if that is possible; the node that stands there then."""
    moved, *constants = node.inputs[:3]
    assert moved is not None
    view = moved.producer()
    if view is None or view.domain or len(view.outputs) != 1 or only_reader(moved) is None:
        return None
    fill = _fill(view, node) if view.op_type == "Pad" else None
    if fill is None and view.op_type not in MOVES:
        return None
    source, codes = view.inputs[0], node.outputs[0]
    assert source is not None and codes.name is not None
    early = ir.Value(name=f"{codes.name}_early", type=codes.type, shape=source.shape)
    inputs = [source, *(value for value in constants if value is not None)]
    first = builder.node(node.op_type, inputs, early, source.producer())
    first.attributes.update(node.attributes)
    view.replace_input_with(0, early)
    if fill is not None:
        view.resize_inputs(max(3, len(view.inputs)))
        view.replace_input_with(2, fill)
    moved.type = codes.type
    take_place(builder.graph, codes, moved, [node])
    return first


def _moves_up(node: ir.Node) -> bool:
    """Whether the node quantizes with one scale, or clips codes."""
    if node.op_type not in ("QuantizeLinear", "Clip") or node.domain or len(node.inputs) < 3:
        return False
    if any(scalar_of(value) is None for value in node.inputs[1:3]):
        return False
    x = node.inputs[0]
    return node.op_type == "QuantizeLinear" or (x is not None and x.dtype in CODES)


def propagate_qdq(builder: Builder) -> Report:
    """Move every quantization with one scale, and every Clip of codes, as far up as it goes, in place."""
    report = Report("QDQ propagation")
    earlier: set[ir.Node] = set()  # nodes that stand for one that was moved already
    changed = True
    while changed:
        changed = False
        for node in list(builder.graph):
            if _moves_up(node):
                first = _move_up(builder, node)
                if first is None:
                    continue
                if node not in earlier:
                    report.done.append(node.outputs[0].name or "")
                earlier.add(first)
                changed = True
    return report
