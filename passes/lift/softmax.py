# SPDX-License-Identifier: Apache-2.0
"""Softmax over the last axis, where it stands between a flattening and its undoing.

Before opset 13 a softmax worked on all axes from one on, as of a matrix; converters of opsets write that out:

    Reshape(Softmax(Flatten(x, axis=r - 1)), shape of x)  =  Softmax(x) over the last axis,   r = rank of x

Taken are Softmax, LogSoftmax and Hardmax, if nothing else reads what lies between. The flattening may be a Reshape to
two axes, of which the last is that of x. The shape is the output of a Shape of x, or a constant that is the known shape
of x.
"""

from __future__ import annotations

import onnx_ir as ir

from samq_onnx.passes.graph import array_of, known_shape, only_reader

__all__ = ["unflatten"]

KINDS = frozenset({"Softmax", "LogSoftmax", "Hardmax"})


def unflatten(model: ir.Model) -> int:
    """Take such flattenings out, in place.

    Returns:
        How many there were.
    """
    count = 0
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in KINDS or node.attributes.get_int("axis", -1) not in (1, -1):
            continue
        flat = node.inputs[0].producer() if node.inputs[0] is not None else None
        reader = only_reader(node.outputs[0], "Reshape")
        if flat is None or reader is None or reader[1] != 0 or only_reader(flat.outputs[0]) is None:
            continue
        back, x = reader[0], flat.inputs[0]
        if x is None or not _keeps_last_axis(flat, x) or not _is_shape_of(back.inputs[1], x):
            continue
        node.replace_input_with(0, x)
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        y, made = node.outputs[0], back.outputs[0]
        y.type, y.shape = made.type, made.shape
        made.replace_all_uses_with(y, replace_graph_outputs=True)
        y.name, made.name = made.name, y.name
        model.graph.remove([back, flat], safe=True)
        count += 1
    return count


def _keeps_last_axis(flat: ir.Node, x: ir.Value) -> bool:
    """Whether a node makes a matrix of x whose rows are those of its last axis."""
    if flat.domain != "" or not x.shape:
        return False
    if flat.op_type == "Flatten":
        return flat.attributes.get_int("axis", 1) % len(x.shape) == len(x.shape) - 1
    shape = array_of(flat.inputs[1]) if flat.op_type == "Reshape" else None
    return shape is not None and len(shape) == 2 and isinstance(x.shape[-1], int) and shape[1] == x.shape[-1] > 0


def _is_shape_of(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is the shape of x."""
    shape = value.producer() if value is not None else None
    if shape is not None and shape.domain == "" and shape.op_type == "Shape":
        return shape.inputs[0] is x and not set(shape.attributes) & {"start", "end"}
    array = array_of(value)
    return array is not None and tuple(array.tolist()) == known_shape(x)
