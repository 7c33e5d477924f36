# SPDX-License-Identifier: Apache-2.0
"""Trace an attention operand back to the channels of the linear that makes it, by running what lies between.

The graph between a linear's output and the operand only moves values (reshape, split, transpose). It is run once
with the linear's output replaced by the number of each channel; the operand then holds, for every head and
coordinate, the channel it comes from. That works for any spelling, and proves that nothing else happens on the way.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.errors import shortened
from samq_onnx.passes.lift.structure import Linear, Projection

__all__ = ["VIEW_OPS", "nodes_between", "trace_projection"]

VIEW_OPS = frozenset({"Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Gather", "Identity"})
UNKNOWN_SIZE = 3  # tokens tried where a dimension is not known
LONGEST = 12  # nodes of an activation or a norm, however spelled


def nodes_between(start: ir.Value, end: ir.Value) -> set[ir.Node] | None:
    """The nodes that read ``start`` and lead to ``end``; None if one leads elsewhere, or if they are many."""
    last, pending, seen = end.producer(), [start], set()
    assert last is not None
    while pending:
        value = pending.pop()
        users = {node for node, _ in value.uses()}
        if value.is_graph_output() or not users:
            return None
        seen |= users
        if len(seen) > LONGEST or any(node.graph is not last.graph for node in users):
            return None
        pending += [output for node in users for output in node.outputs if output is not end]
    return seen


def _linear_behind(operand: ir.Value, by_output: dict[ir.Value, Linear]) -> Linear | None:
    value: ir.Value | None = operand
    while value is not None and value not in by_output:
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in VIEW_OPS or not node.inputs:
            return None
        value = node.inputs[0]
    return by_output[value] if value is not None else None


def _period(rows: np.ndarray) -> np.ndarray | None:
    """The shortest block of rows whose repetition gives all rows, if its rows are distinct."""
    first = rows[0]
    repeats = np.flatnonzero((rows == first).all(axis=1))
    heads = int(repeats[1]) if len(repeats) > 1 else len(rows)
    if len(rows) % heads or not (rows == np.tile(rows[:heads], (len(rows) // heads, 1))).all():
        return None
    return rows[:heads]


def trace_projection(
    model: ir.Model, operand: ir.Value, linears: dict[ir.Value, Linear], rank: int | None
) -> Projection | str:
    """The projection behind ``operand`` [..., tokens, d], or why there is none.

    Args:
        linears: output value -> linear. rank: of the linear's output if its shape is unknown.
    """
    linear = _linear_behind(operand, linears)
    if linear is None:
        return "no linear layer makes it by reshaping alone"
    shape = linear.output.shape
    if (shape is None and rank is None) or (shape is not None and len(shape) == 0):
        return "the shape of its projection is not known"
    dims = [d if isinstance(d, int) else UNKNOWN_SIZE for d in shape] if shape is not None else [UNKNOWN_SIZE] * rank  # type: ignore[operator]
    dims[0] = shape[0] if shape is not None and isinstance(shape[0], int) else 1
    dims[-1] = linear.out_features
    try:
        graph = ir.convenience.extract(model.graph, [linear.output], [operand])
    except Exception:  # onnx_ir raises several kinds
        return "its reshaping depends on other activations"
    fed = {value.name for value in model.graph.inputs}
    if any(name in fed for name in graph.initializers):
        return "its reshaping depends on an input of the model"
    graph.inputs[0].shape, graph.inputs[0].type = ir.Shape(dims), ir.TensorType(ir.DataType.FLOAT)
    graph.outputs[0].shape, graph.outputs[0].type = None, ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        for value in node.outputs:
            value.shape = None
    graph.opset_imports.update(model.opset_imports)
    piece = ir.Model(graph, ir_version=min(model.ir_version or 10, 10))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    numbers = np.broadcast_to(np.arange(linear.out_features, dtype=np.float32), dims)
    try:
        session = ort.InferenceSession(
            ir.to_proto(piece).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(numbers)})
    except Exception as error:  # onnxruntime raises its own kinds
        return f"its reshaping cannot be followed ({shortened(error)[:80]})"
    if found.ndim < 3 or not found.size or (found != found[..., :1, :]).any():
        return "its channels change from token to token"
    rows = found[..., 0, :].reshape(-1, found.shape[-1]).astype(np.int64)
    channels = _period(rows)
    if channels is None:
        return "its heads are laid out irregularly"
    return Projection(linear, channels)
