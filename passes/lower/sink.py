# SPDX-License-Identifier: Apache-2.0
"""Quantize before views instead of after them, so that they move bytes instead of floats.

    Quantize(view(x)) -> view(Quantize(x))

Exact for Reshape, Transpose and their like, which only move elements, and for a Pad with zeros, which becomes a Pad
with the zero point. Refuses views that something else reads too, and other padding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.lower.build import Builder

__all__ = ["sink_views"]

MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice"})


def _is_zero_pad(node: ir.Node) -> bool:
    if node.op_type != "Pad":
        return False
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return False
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or (value.const_value is not None and not value.const_value.numpy().any())


def _sink(builder: Builder, quantize: ir.Node) -> bool:
    """Exchange a QuantizeLinear with the view before it; whether that was possible."""
    moved, scale, zero = quantize.inputs[:3]
    assert moved is not None and scale is not None and zero is not None
    view = moved.producer()
    if view is None or view.domain or len(view.outputs) != 1 or moved.is_graph_output() or len(moved.uses()) != 1:
        return False
    pad = _is_zero_pad(view)
    if not pad and view.op_type not in MOVES:
        return False
    source, codes = view.inputs[0], quantize.outputs[0]
    assert source is not None and codes.name is not None
    early = ir.Value(name=f"{codes.name}_early", type=codes.type, shape=source.shape)
    builder.node("QuantizeLinear", [source, scale, zero], early, source.producer())
    view.replace_input_with(0, early)
    if pad:
        view.resize_inputs(max(3, len(view.inputs)))
        view.replace_input_with(2, zero)
    moved.type = codes.type
    ir.convenience.replace_all_uses_with(codes, moved, replace_graph_outputs=True)
    builder.graph.remove(quantize, safe=True)
    return True


def sink_views(builder: Builder) -> None:
    """Move every QuantizeLinear with one scale as far up as it goes, in place."""
    changed = True
    while changed:
        changed = False
        for node in list(builder.graph):
            if node.op_type != "QuantizeLinear" or node.domain or len(node.inputs) < 3:
                continue
            scale = node.inputs[1]
            if scale is not None and scale.const_value is not None and np.size(scale.const_value.numpy()) == 1:
                changed |= _sink(builder, node)
