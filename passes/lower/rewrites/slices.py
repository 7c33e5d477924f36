# SPDX-License-Identifier: Apache-2.0
"""Cut along several axes at once, so that the whole is copied once.

    Slice(Slice(x, s1, e1, a1), s2, e2, a2)  ->  Slice(x, [s1, s2], [e1, e2], [a1, a2])

Exact. SAM's decoder crops masks of the whole image so, row-wise, then column-wise. Takes constant axes, starts and ends
that may be computed; refuses an axis that both cut, axes counted from both ends, an inner Slice that something else
reads too, and indices of two types.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import array_of, constant, input_of, only_reader
from samq_onnx.passes.lower.build import Builder, take_place
from samq_onnx.passes.report import Report

__all__ = ["merge_slices"]

STARTS, ENDS, AXES, STEPS = range(1, 5)


def _axes(node: ir.Node) -> list[int] | None:
    """The axes that a Slice names by a constant."""
    axes = array_of(input_of(node, AXES)) if node.op_type == "Slice" and not node.domain else None
    return axes.tolist() if axes is not None and axes.ndim == 1 else None


def _inner(outer: ir.Node) -> ir.Node | None:
    """The Slice that ``outer`` alone reads, if one can do what both do."""
    axes = _axes(outer)
    x = outer.inputs[0] if axes is not None else None
    node = x.producer() if x is not None else None
    before = _axes(node) if node is not None else None
    if x is None or node is None or axes is None or before is None or only_reader(x) is None:
        return None
    apart = not set(axes) & set(before) and len({axis < 0 for axis in axes + before}) == 1
    values = [value for part in (node, outer) for value in part.inputs[STARTS:] if value is not None]
    flat = all(array is None or array.ndim == 1 for array in map(array_of, values))
    return node if apart and flat and len({value.dtype for value in values}) == 1 else None


def _merge(builder: Builder, inner: ir.Node, outer: ir.Node) -> None:
    x, output = inner.inputs[0], outer.outputs[0]
    assert x is not None
    inputs = [x]
    for index, what in ((STARTS, "starts"), (ENDS, "ends"), (AXES, "axes"), (STEPS, "steps")):
        parts = []
        for node in (inner, outer):
            ones = np.ones_like(constant(input_of(node, AXES)))  # steps, the only ones that may be left out
            parts.append(input_of(node, index) or builder.constant(f"{output.name}_ones", ones))
        held = [array for value in parts if (array := array_of(value)) is not None]
        if len(held) == len(parts):
            inputs.append(builder.constant(f"{output.name}_{what}", np.concatenate(held)))
            continue
        joined = ir.Value(name=f"{output.name}_{what}", type=parts[0].type)
        builder.graph.insert_before(outer, ir.node("Concat", parts, {"axis": 0}, outputs=[joined]))
        inputs.append(joined)
    made = ir.Value(name=output.name, type=output.type, shape=output.shape)
    builder.graph.insert_before(outer, ir.node("Slice", inputs, outputs=[made], name=outer.name))
    take_place(builder.graph, output, made, [outer, inner])


def merge_slices(builder: Builder) -> Report:
    """Merge Slices that follow one another, in place."""
    report = Report("slices")
    for node in list(builder.graph):
        inner = _inner(node)
        if inner is not None:
            report.done.append(node.name or "")
            _merge(builder, inner, node)
    return report
