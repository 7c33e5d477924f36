# SPDX-License-Identifier: Apache-2.0
"""Trace an attention operand back to the channels of the linear that makes it, by running what lies between.

The graph between a linear's output and the operand only moves values (reshape, split, transpose), or pools each channel
by maximum, as Hiera does with queries. It is run once with the linear's output replaced by the number of each channel;
the operand then holds, for every head and coordinate, the channel it comes from. That works for any spelling, and
proves that nothing else happens on the way. The linear that reads the attention's output is found the same way, with
the numbers there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx.errors import shortened
from samq_onnx.passes.graph import is_constant, known_shape
from samq_onnx.passes.lift.dims import Dim, Product
from samq_onnx.passes.lift.structure import Linear, Projection
from samq_onnx.passes.lift.views import VIEW_OPS, Sizes, dims_of, pools, viewed

__all__ = ["fills", "nodes_between", "trace_projection", "trace_reader"]

UNKNOWN_SIZE = 3  # tokens tried where a dimension is not known
LONGEST = 12  # nodes of an activation or a norm, however spelled


def fills(node: ir.Node) -> bool:
    """Whether the node adds rows that are constants to the rows of its first input (`passes.lift.padding`)."""
    axis = node.attributes.get("axis") if node.op_type == "Concat" and not node.domain else None
    return axis is not None and axis.as_int() == 0 and all(is_constant(value, rank=2) for value in node.inputs[1:])


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


def _linear_behind(operand: ir.Value, by_output: dict[ir.Value, Linear]) -> tuple[Linear, bool] | None:
    """The linear that an operand is a view of, and whether it is pooled on the way."""
    value: ir.Value | None = operand
    pooled = False
    while value is not None and value not in by_output:
        node = value.producer()
        if node is None or node.domain != "" or not node.inputs:
            return None
        if not (node.op_type in VIEW_OPS or fills(node) or pools(node)):
            return None
        pooled |= pools(node)
        value = node.inputs[0]
    return (by_output[value], pooled) if value is not None else None


def _period(rows: np.ndarray) -> np.ndarray | None:
    """The shortest block of rows whose repetition gives all rows, if its rows are distinct."""
    first = rows[0]
    repeats = np.flatnonzero((rows == first).all(axis=1))
    heads = int(repeats[1]) if len(repeats) > 1 else len(rows)
    if len(rows) % heads or not (rows == np.tile(rows[:heads], (len(rows) // heads, 1))).all():
        return None
    return rows[:heads]


def trace_projection(operand: ir.Value, linears: dict[ir.Value, Linear], rank: int | None) -> Projection | str:
    """The projection behind ``operand`` [..., tokens, d], or why there is none.

    Args:
        linears: output value -> linear. rank: of the linear's output if its shape is unknown.
    """
    behind = _linear_behind(operand, linears)
    if behind is None:
        return "no linear layer makes it by reshaping and pooling alone"
    linear, pooled = behind
    shape = dims_of(linear.output)
    if (shape is None and rank is None) or shape == []:
        return "the shape of its projection is not known"
    dims: list[Dim] = shape if shape is not None else [1, *[None] * ((rank or 2) - 1)]
    sizes = Sizes(dict.fromkeys(_names(dims[0]), 1), UNKNOWN_SIZE)
    numbers = np.arange(linear.out_features, dtype=np.int32)
    fed = np.broadcast_to(
        numbers, (sizes.of(dims[0]) if dims[0] is not None else 1, *sizes.shape(dims[1:-1]), linear.out_features)
    )
    found = _moved(linear.output, operand, fed, sizes, numbers)
    if isinstance(found, str):
        return found
    if found.ndim < 3 or not found.size or (found != found[..., :1, :]).any():
        return "its channels change from token to token"
    rows = found[..., 0, :].reshape(-1, found.shape[-1]).astype(np.int64)
    channels = _period(rows)
    if channels is None:
        return "its heads are laid out irregularly"
    return Projection(linear, channels, pooled)


def _only_user(value: ir.Value) -> tuple[ir.Node, int] | None:
    """As `only_reader`, of those that read what the value holds: its shape may be asked for."""
    uses = [use for use in value.uses() if use.node.op_type != "Shape" or use.node.domain]
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node, uses[0].idx


def trace_reader(
    output: ir.Value, linears: dict[ir.Value, list[Linear]], heads: int, head_dim: int
) -> Projection | str:
    """The linear that alone reads the output [..., tokens, d] of an attention, or why there is none.

    Args:
        linears: input value -> linears. heads, head_dim: of the attention.
    """
    value = output
    while value not in linears:
        found = _only_user(value)
        if found is None or found[1] != 0 or found[0].domain or found[0].op_type not in VIEW_OPS:
            return "no linear layer alone reads it through views"
        value = found[0].outputs[0]
    readers = linears[value]
    shape = dims_of(output)
    if len(readers) != 1 or _only_user(value) is None or shape is None:
        return "no linear layer alone reads it through views"
    sizes = Sizes(_heads_known(shape, heads), UNKNOWN_SIZE)
    dims = (*sizes.shape(shape[:-1]), head_dim)
    count = math.prod(dims[:-2])
    if count % heads:
        return "its heads are laid out irregularly"
    numbers = np.arange(heads * head_dim, dtype=np.int32).reshape(heads, 1, head_dim)
    fed = np.broadcast_to(np.tile(numbers, (count // heads, dims[-2], 1)), (count, *dims[-2:])).reshape(dims)
    held = _moved(output, value, fed, sizes, None)
    if isinstance(held, str):
        return held
    rows = held.reshape(-1, held.shape[-1])
    order = rows[0].astype(np.int64)
    if (rows != rows[0]).any() or not np.array_equal(np.sort(order), np.arange(heads * head_dim)):
        return "its heads are laid out irregularly"
    return Projection(readers[0], np.argsort(order).reshape(heads, head_dim))


def _names(dim: Dim) -> tuple[str, ...]:
    return dim.names if isinstance(dim, Product) else ()


def _heads_known(shape: Sequence[Dim], heads: int) -> dict[str, int]:
    """Numbers for the names of leading axes [..., tokens, d] that make room for all heads: one entry of a batch."""
    given = dict.fromkeys(_names(shape[0]), 1)
    if len(shape) == 4 and not isinstance(shape[1], int):
        given |= dict.fromkeys(_names(shape[1])[:1], heads)
    if len(shape) == 3 and isinstance(shape[0], Product) and shape[0].number % heads:
        given[shape[0].names[0]] = heads
    return given


def _moved(
    start: ir.Value, end: ir.Value, numbers: np.ndarray, sizes: Sizes, fill: np.ndarray | None
) -> np.ndarray | str:
    """What the views between two values make of ``numbers``, and of ``fill`` where rows are padded, or why they cannot
    be run."""
    path: list[ir.Value] = []
    while end is not start:
        path.insert(0, end)
        node = end.producer()
        source = node.inputs[0] if node is not None else None
        assert source is not None  # whoever found the two came this way
        end = source
    for value in path:
        node = value.producer()
        assert node is not None
        try:
            made = _filled(node, numbers, fill) if node.op_type == "Concat" else viewed(node, value, numbers, sizes)
        except (ValueError, IndexError) as error:
            return f"its reshaping cannot be followed ({shortened(error)[:80]})"
        if made is None:
            return "its reshaping depends on other activations"
        numbers = made
    return numbers


def _filled(node: ir.Node, numbers: np.ndarray, fill: np.ndarray | None) -> np.ndarray | None:
    """Rows with the numbers of the row that they are padded with behind them."""
    if fill is None or known_shape(node.inputs[-1]) != (1, fill.size) or len(node.inputs) != 2:
        return None
    return np.concatenate([numbers, fill.reshape(1, -1)])
