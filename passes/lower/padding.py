# SPDX-License-Identifier: Apache-2.0
"""Pad rows after a linear instead of before it, so that what the padding gives is computed once.

    QLinear(view(Pad(x))) -> Gather(QLinear([x; one row of padding]), rows)

A linear treats every row alone, and all rows of a padding are equal, so the views between them (window partition)
become the list of rows that they pick, and move the output at once. Exact. Takes Reshape, Transpose and Slice of whole
rows and one Pad with a constant; refuses values that something else reads too, unknown shapes, and padding of less
than two rows, where nothing is saved.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from samq_onnx.ops import DOMAIN
from samq_onnx.passes.graph import array_of, is_constant, known_shape, only_reader
from samq_onnx.passes.lower.build import Builder, take_place
from samq_onnx.passes.lower.rows import keeps_rows
from samq_onnx.passes.report import Report

__all__ = ["pad_later"]

LINEARS = frozenset({"QLinear", "QLinearQuantize", "QLinearLut"})


def _pads_rows(node: ir.Node) -> bool:
    """Whether the node is a Pad with constants that leaves the last axis alone."""
    if node.op_type != "Pad" or node.domain or len(node.inputs) != 3 or known_shape(node.inputs[0]) is None:
        return False
    mode, pads, fill = node.attributes.get("mode"), node.inputs[1], node.inputs[2]
    if (mode is not None and mode.as_string() != "constant") or pads is None or fill is None:
        return False
    given = array_of(pads)
    if given is None or not is_constant(fill):
        return False
    amounts = given.reshape(2, -1)
    return bool((amounts >= 0).all()) and not amounts[:, -1].any()


def _views(x: ir.Value) -> list[ir.Node]:
    """The views of whole rows that make ``x``, in order, each read by the next alone; the first is the only Pad."""
    found: list[ir.Node] = []
    while (node := x.producer()) is not None and only_reader(x) is not None:
        pads = _pads_rows(node)
        held = all(is_constant(value) for value in node.inputs[1:])
        if known_shape(x) is None or not held or not (pads or keeps_rows(node)):
            return []
        found.insert(0, node)
        if pads:
            return found
        source = node.inputs[0]
        assert source is not None
        x = source
    return []


def _rows(value: ir.Value | None) -> int:
    return math.prod((known_shape(value) or ())[:-1])


def _picked(views: list[ir.Node], count: int) -> np.ndarray:
    """Which of ``count`` rows each row of the last output is; ``count`` itself for the padding."""
    x = views[0].inputs[0]
    assert x is not None and x.shape is not None
    shape = x.shape.numpy()
    rows = np.broadcast_to(np.arange(count, dtype=np.int64)[:, None], (count, shape[-1])).reshape(shape)
    for view in views:
        source, *constants = [value for value in view.inputs if value is not None]
        feed: dict[Any, np.ndarray] = {
            value.name: array for value in constants if (array := array_of(value)) is not None
        }
        feed[source.name] = rows
        if view is views[0]:
            feed[constants[1].name] = np.array(count)
        made: Any = ReferenceEvaluator(ir.to_proto(view)).run(None, feed)
        rows = made[0]
    return np.ascontiguousarray(rows[..., 0])


def _move(builder: Builder, linear: ir.Node, views: list[ir.Node]) -> None:
    x, output, fill = views[0].inputs[0], linear.outputs[0], views[0].inputs[2]
    assert x is not None and x.shape is not None and output.shape is not None and fill is not None
    count, width, columns, name = _rows(x), x.shape[-1], output.shape[-1], output.name
    picked = builder.constant(f"{name}_rows", _picked(views, count))
    flat_shape = builder.constant(f"{name}_flat_shape", np.array([count, width], np.int64))
    pads = builder.constant(f"{name}_one_row", np.array([0, 0, 1, 0], np.int64))
    flat = ir.Value(name=f"{name}_flat", type=x.type, shape=ir.Shape((count, width)))
    padded = ir.Value(name=f"{name}_padded", type=x.type, shape=ir.Shape((count + 1, width)))
    once = ir.Value(name=f"{name}_once", type=output.type, shape=ir.Shape((count + 1, columns)))
    gathered = ir.Value(name=f"{name}_gathered", type=output.type, shape=output.shape)
    last = builder.node("Reshape", [x, flat_shape], flat, views[-1])
    last = builder.node("Pad", [flat, pads, fill], padded, last)
    further = [value for value in linear.inputs[1:] if value is not None]
    attributes: dict[str, int | float] = {key: value.as_int() for key, value in linear.attributes.items()}
    last = builder.node(linear.op_type, [padded, *further], once, last, attributes, DOMAIN)
    builder.node("Gather", [once, picked], gathered, last, {"axis": 0})
    take_place(builder.graph, output, gathered, [linear, *views])


def pad_later(builder: Builder) -> Report:
    """Move paddings of rows from before to behind integer linears, in place."""
    report = Report("padding behind linears")
    for node in list(builder.graph):
        if node.domain != DOMAIN or node.op_type not in LINEARS or known_shape(node.outputs[0]) is None:
            continue
        x = node.inputs[0]
        views = _views(x) if x is not None else []
        if views and _rows(views[-1].outputs[0]) > _rows(views[0].inputs[0]) + 1:
            report.done.append(node.name or "")
            _move(builder, node, views)
    return report
