# SPDX-License-Identifier: Apache-2.0
"""Pad rows behind a linear instead of before it: real rows alone are multiplied, the others are its bias.

    W view(Pad(x)) + b   ->   view'([W x + b; fill]),   fill = b

A linear treats every row alone and a padding is rows of zeros, so the views between them (window partition) become
the list of rows that they pick, and the padding becomes one row that is a constant of its own. Exact, and it stays so
when the bias absorbs a shift of x (`passes.fold.norm_affine`), which zeros before the linear would not. It saves a
sixth of the rows of SAM's windowed attention.

Takes Reshape, Transpose and Slice of whole rows and one Pad with zeros in front of MatMul and its bias; leaves alone
values that something else reads too, unknown shapes, and where nothing is saved.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from samq_onnx.passes.graph import add_constant, array_of, constant, input_of, is_constant, known_shape, only_reader
from samq_onnx.passes.lift.structure import Linear

__all__ = ["fill_of", "keeps_rows", "pad_behind"]


def keeps_rows(view: ir.Node) -> bool:
    """Whether the view leaves the last axis as it is."""
    before, after = view.inputs[0], view.outputs[0]
    if view.domain or before is None or before.shape is None or after.shape is None:
        return False
    if not len(before.shape) or not len(after.shape):
        return False
    if before.shape[-1] != after.shape[-1] or not isinstance(after.shape[-1], int):
        return False
    if view.op_type == "Reshape":
        return True
    if view.op_type == "Transpose":
        perm = view.attributes.get("perm")
        return perm is not None and perm.as_ints()[-1] == len(before.shape) - 1
    if view.op_type == "Slice" and len(view.inputs) > 3:
        axes = array_of(view.inputs[3])
        return axes is not None and all(axis % len(before.shape) != len(before.shape) - 1 for axis in axes.ravel())
    return False


def _pads_rows(node: ir.Node) -> bool:
    """Whether the node is a Pad with zeros that leaves the last axis alone."""
    if node.op_type != "Pad" or node.domain or not 2 <= len(node.inputs) <= 3 or known_shape(node.inputs[0]) is None:
        return False
    mode, given, value = node.attributes.get("mode"), array_of(node.inputs[1]), input_of(node, 2)
    fill = array_of(value)
    if (mode is not None and mode.as_string() != "constant") or given is None:
        return False
    if value is not None and (fill is None or fill.any()):
        return False
    amounts = given.reshape(2, -1)
    return bool((amounts >= 0).all()) and not amounts[:, -1].any()


def _views(x: ir.Value) -> list[ir.Node]:
    """The views of whole rows that make ``x``, in order, each read by the next alone; the first is the only Pad."""
    found: list[ir.Node] = []
    while (node := x.producer()) is not None and only_reader(x) is not None:
        pads = _pads_rows(node)
        held = all(value is None or is_constant(value) for value in node.inputs[1:])
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
    shape = known_shape(views[0].inputs[0])
    assert shape is not None
    rows = np.broadcast_to(np.arange(count, dtype=np.int64)[:, None] - count, (count, shape[-1])).reshape(shape)
    for view in views:  # zeros that come in stand for the padding
        feed: dict[Any, np.ndarray] = {
            value.name: array
            for value in view.inputs[1:]
            if value is not None and (array := array_of(value)) is not None
        }
        fill = input_of(view, 2) if view is views[0] else None
        if fill is not None:
            feed[fill.name] = np.array(0)
        assert view.inputs[0] is not None
        feed[view.inputs[0].name] = rows
        made: Any = ReferenceEvaluator(ir.to_proto(view)).run(None, feed)
        rows = made[0]
    return np.ascontiguousarray(rows[..., 0]) + count


def _move(graph: ir.Graph, linear: Linear, views: list[ir.Node]) -> None:
    x, y = views[0].inputs[0], linear.output
    assert x is not None and x.shape is not None and y.shape is not None
    count, columns, name, shape = _rows(x), linear.out_features, y.name, y.shape
    readers = list(y.uses())
    linear.node.replace_input_with(0, x)
    linear.x = x
    for value in {linear.node.outputs[0], y}:
        value.shape = ir.Shape([*x.shape[:-1], columns])
    bias = constant(linear.bias) if linear.bias is not None else np.zeros(columns, np.float32)
    linear.fill = add_constant(graph, f"{name}_fill", bias.reshape(1, columns).copy())
    size = add_constant(graph, f"{name}_rows_shape", np.array([count, columns], np.int64))
    picked = add_constant(graph, f"{name}_rows", _picked(views, count))
    parts = [
        ir.node("Reshape", [y, size]),
        ir.node("Concat", [], {"axis": 0}),
        ir.node("Gather", [], {"axis": 0}),
    ]
    flat, both, gathered = (part.outputs[0] for part in parts)
    for part, inputs in ((parts[1], [flat, linear.fill]), (parts[2], [both, picked])):
        part.resize_inputs(2)
        for index, value in enumerate(inputs):
            part.replace_input_with(index, value)
    for value, suffix, dims in (
        (flat, "flat", [count, columns]),
        (both, "filled", [count + 1, columns]),
        (gathered, "padded", shape),
    ):
        value.name, value.type, value.shape = f"{name}_{suffix}", y.type, ir.Shape(dims)
    last = y.producer()
    assert last is not None
    for part in parts:
        part.name = part.outputs[0].name
        graph.insert_after(last, part)
        last = part
    for reader, index in readers:
        reader.replace_input_with(index, gathered)
    graph.remove(list(reversed(views)), safe=True)


def fill_of(output: ir.Value) -> ir.Value | None:
    """The row that the output of a linear is padded with, if it is."""
    found = only_reader(output, "Reshape")
    joined = only_reader(found[0].outputs[0], "Concat") if found is not None else None
    if joined is None or len(joined[0].inputs) != 2 or joined[1] != 0:
        return None
    fill, gathered = joined[0].inputs[1], only_reader(joined[0].outputs[0], "Gather")
    return fill if gathered is not None and gathered[1] == 0 and is_constant(fill, rank=2) else None


def pad_behind(graph: ir.Graph, linears: list[Linear]) -> None:
    """Move the padding of rows from before to behind linears, in place; linears that have one know their `fill`."""
    for linear in linears:
        linear.fill = fill_of(linear.output)
        if linear.node.op_type != "MatMul" or known_shape(linear.output) is None or linear.output.is_graph_output():
            continue
        views = _views(linear.x)
        if views and _rows(views[-1].outputs[0]) > _rows(views[0].inputs[0]) + 1:
            _move(graph, linear, views)
