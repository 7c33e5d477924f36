# SPDX-License-Identifier: Apache-2.0
"""Edits of a linear layer's constants, and the conditions under which they stay invisible from outside."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import constant, is_shared, replace_constant
from samq_onnx.passes.lift import AttentionSite, Lifted, Linear, Projection
from samq_onnx.passes.lift.trace import fills
from samq_onnx.passes.lift.views import VIEW_OPS, pools

__all__ = [
    "map_inputs",
    "map_outputs",
    "private_to_attention",
    "reaches_only_attention",
    "reader_is_private",
    "scale_outputs",
    "shift_outputs",
]

HARMLESS_OPS = VIEW_OPS | {"Flatten"}  # what only moves values that are edited, and does nothing else with them


def reaches_only_attention(value: ir.Value) -> bool:
    """Whether everything that reads ``value``, through views and pooling, is an attention."""
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if current.is_graph_output():
            return False
        for node, index in current.uses():
            if node in seen or node.domain == "samq" or (node.op_type == "Shape" and not node.domain):
                continue
            if node.domain or not (node.op_type in HARMLESS_OPS or fills(node) or pools(node)) or index:
                return False
            seen.add(node)
            pending.extend(node.outputs)
    return True


def private_to_attention(lifted: Lifted, site: AttentionSite, *operands: str, in_order: bool = False) -> str | None:
    """Why the named operands (``"q"``, ``"k"``, ``"v"``) of a site cannot be edited, or None when they can.

    An edit of a projection's channels is invisible only if these channels reach nothing but this operand of
    this site, and if the constants belong to this linear alone. Tables of relative position are edited with q.

    Args:
        in_order: whether the edit keeps the order of the values of each channel: factors above 0, and shifts.
    """
    for operand in operands:
        projection: Projection | None = getattr(site, operand)
        if projection is None:
            return f"the linear that makes {operand} is not known"
        if projection.pooled and not in_order:
            return f"{operand} is pooled by maximum, which edits of signs and of several channels at once would change"
        linear = projection.linear
        if not reaches_only_attention(linear.output):
            return f"the output of the linear that makes {operand} is read by more than attention"
        for constant_value in (linear.weight, linear.bias):
            if constant_value is not None and is_shared(constant_value):
                return f"{constant_value.name} is shared with another node"
        mine = set(projection.channels.ravel().tolist())
        if len(mine) != projection.channels.size:
            return f"heads share channels of the linear that makes {operand}"
        for other in lifted.attentions:
            for name in ("q", "k", "v"):
                rival: Projection | None = getattr(other, name)
                if rival is None or rival.linear.node is not linear.node or (other is site and name == operand):
                    continue
                if mine & set(rival.channels.ravel().tolist()):
                    return f"the channels of {operand} also make {name} of {other.name}"
    if "q" in operands and any(map(is_shared, site.tables or ())):
        return "its relative position tables are shared with another node"
    return None


def reader_is_private(site: AttentionSite) -> str | None:
    """Why the linear that reads a site's output cannot be edited, or None when it can."""
    if site.out is None:
        return "the linear that reads its output is not known"
    return f"{site.out.linear.weight.name} is shared with another node" if is_shared(site.out.linear.weight) else None


def map_outputs(linear: Linear, channels: np.ndarray, matrices: np.ndarray) -> None:
    """Multiply groups of output channels by matrices: y[g] -> y[g] M[g].

    Args:
        channels: int64 [groups, n]. matrices: float64 [groups, n, n].
    """
    weight = np.moveaxis(constant(linear.weight), linear.out_axis, -1).astype(np.float64)
    weight[..., channels] = np.einsum("...gi,gij->...gj", weight[..., channels], matrices, optimize=True)
    replace_constant(linear.weight, np.moveaxis(weight, -1, linear.out_axis))
    for row in (linear.bias, linear.fill):
        if row is not None:
            moved = constant(row).astype(np.float64)
            moved[..., channels] = np.einsum("...gi,gij->...gj", moved[..., channels], matrices)
            replace_constant(row, moved)


def map_inputs(linear: Linear, channels: np.ndarray, inverses: np.ndarray) -> None:
    """Undo in a linear what was done to its input, x[g] -> x[g] M[g]; ``inverses`` are those of M [groups, n, n]."""
    weight = np.moveaxis(constant(linear.weight), 1 - linear.out_axis, 0).astype(np.float64)
    shape = weight[channels].shape
    flat = weight[channels].reshape(*channels.shape, -1)
    weight[channels] = (inverses @ flat).reshape(shape)
    replace_constant(linear.weight, np.moveaxis(weight, 0, 1 - linear.out_axis))


def scale_outputs(linear: Linear, channels: np.ndarray, factor: np.ndarray) -> None:
    """Multiply output channels of a linear (weight and bias) by ``factor``, same shape as ``channels``."""
    multiplier = np.ones(linear.out_features)
    multiplier[channels] = factor
    weight = constant(linear.weight)
    shape = [1] * weight.ndim
    shape[linear.out_axis] = -1
    replace_constant(linear.weight, weight * multiplier.reshape(shape))
    for row in (linear.bias, linear.fill):
        if row is not None:
            replace_constant(row, constant(row) * multiplier)


def shift_outputs(linear: Linear, channels: np.ndarray, offset: np.ndarray) -> None:
    """Add ``offset`` (same shape as ``channels``) to output channels of a linear that has a bias."""
    assert linear.bias is not None
    for row in (linear.bias, linear.fill):
        if row is not None:
            moved = constant(row).astype(np.float64)
            moved[..., channels] += offset
            replace_constant(row, moved)
