# SPDX-License-Identifier: Apache-2.0
"""Fold a scale and a shift of each channel of a norm's output into the norm and into the linears that read it.

    x = norm(.) * w + b,   y = x W + c        x~ = (x - v) / s
    w -> w / s,   b -> (b - v) / s,   W -> diag(s) W,   c -> c + v W        y stays what it was

The fold behind SmoothQuant, RepQ-ViT, Outlier Suppression+ and PQ-SAM. Between norm and linear may lie views, which
move values and leave the channels whole. Takes norms over one axis whose weight is a vector along it, and MatMul, Gemm
and Conv of one group.

Refuses norms that something else reads too (the stream of a post-norm block) and constants that are shared or may be
fed. A shift is refused where a norm or a linear has no bias, and where zero padding lies between them: a padded zero
would have to become -v / s, which no scalar is. A scale leaves zeros what they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import array_of, constant, input_of, is_shared, replace_constant
from samq_onnx.passes.lift import Lifted, Linear, Norm
from samq_onnx.passes.report import Report

__all__ = ["NormReaders", "axis_through", "fold_norm_affine", "into_readers", "norm_readers"]

PADDED = "zero padding lies between it and {}"


@dataclasses.dataclass
class NormReaders:
    """What reads a norm whose channels can be scaled.

    Attributes:
        norm: the norm. linears: those that read it, through views; nothing else does.
        no_shift: why its channels cannot be shifted, or None where they can.
    """

    norm: Norm
    linears: list[Linear]
    no_shift: str | None = None

    @property
    def channels(self) -> int:
        return constant(self.norm.scale).size


class _Refused(Exception):
    """The message says why."""


def norm_readers(lifted: Lifted, norm: Norm) -> NormReaders | str:
    """The linears that read a norm, or why its channels cannot be scaled."""
    try:
        return _readers(lifted, norm)
    except _Refused as reason:
        return str(reason)


def fold_norm_affine(lifted: Lifted, affine: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Report:
    """Make norms give (x - shift) / scale, in place; what the graph computes is equal up to rounding.

    Args:
        affine: name of a norm -> scale (above 0) and shift, each [channels]. One and zero change nothing.

    Raises:
        ValueError: there is no such norm, or numbers of another shape, or a scale that is none.
    """
    report = Report("norm affine")
    norms = {norm.name: norm for norm in lifted.norms}
    for name, (scale, shift) in affine.items():
        if name not in norms:
            raise ValueError(f"no norm {name}")
        scale, shift = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all() and (scale > 0).all()):
            raise ValueError(f"scales of {name} that are not above 0, or numbers that are not finite")
        if (scale == 1).all() and not shift.any():
            continue
        found = norm_readers(lifted, norms[name])
        if isinstance(found, str):
            report.refuse(name, found)
        elif shift.any() and found.no_shift is not None:
            report.refuse(name, found.no_shift)
        else:
            if not scale.shape == shift.shape == (found.channels,):
                raise ValueError(f"{scale.shape} scales and {shift.shape} shifts for {found.channels} channels")
            _fold(found, scale, shift)
            report.done.append(name)
    return report


def _fold(readers: NormReaders, scale: np.ndarray, shift: np.ndarray) -> None:
    norm = readers.norm
    weight = constant(norm.scale)
    replace_constant(norm.scale, weight / scale.reshape(weight.shape))
    if norm.bias is not None:
        bias = constant(norm.bias)
        replace_constant(norm.bias, (bias - shift.reshape(bias.shape)) / scale.reshape(bias.shape))
    into_readers(readers, scale, shift)


def into_readers(readers: NormReaders, scale: np.ndarray, shift: np.ndarray) -> None:
    """Let the linears behind a norm read scale * x + shift where they read x.

    Args:
        scale, shift: float64, a number for each channel; no shift where a linear has no bias.
    """
    for linear in readers.linears:
        matrix = constant(linear.weight).astype(np.float64)
        along = [1] * matrix.ndim
        along[1 - linear.out_axis] = -1
        if shift.any():
            assert linear.bias is not None
            moved = (matrix * shift.reshape(along)).sum(axis=tuple(set(range(matrix.ndim)) - {linear.out_axis}))
            replace_constant(linear.bias, constant(linear.bias) + moved)
        replace_constant(linear.weight, matrix * scale.reshape(along))


def _readers(lifted: Lifted, norm: Norm) -> NormReaders:
    held, shape = array_of(norm.scale), norm.output.shape
    if shape is None or held is None:
        raise _Refused("its shape is not known, or its weight is no constant")
    axis = norm.axis % len(shape)
    place = axis - (len(shape) - held.ndim)
    if place < 0 or not held.shape[place] == held.size == shape[axis]:
        raise _Refused("its weight is no vector of channels")
    readers = NormReaders(norm, [])
    by_node = {linear.node: linear for linear in lifted.linears}
    pending, padded = [(norm.output, axis, False)], []
    while pending:
        value, axis, zeros = pending.pop()
        if value.is_graph_output():
            raise _Refused("the model gives it out")
        for node, index in value.uses():
            if node.graph is not value.graph:
                raise _Refused("a subgraph reads it")
            if node.op_type == "Shape" and not node.domain:
                continue
            linear = by_node.get(node)
            if linear is not None and linear.x is value and index == 0:
                _check_linear(linear, axis, value)
                readers.linears.append(linear)
                if zeros or _pads(linear.node):
                    padded.append(linear.name)
                continue
            moved = axis_through(node, axis) if index == 0 else None
            if moved is None:
                raise _Refused(f"{node.op_type} {node.name} reads it too")
            pending += [(output, moved, zeros or (node.op_type == "Pad" and _zeros(node))) for output in node.outputs]
    if not readers.linears:
        raise _Refused("no linear reads it")
    for edited in (norm.scale, norm.bias, *(linear.weight for linear in readers.linears)):
        if edited is not None:
            _check_private(edited)
    if norm.bias is not None and constant(norm.bias).shape != held.shape:
        raise _Refused("its weight and bias are of different shapes")
    readers.linears.sort(key=lifted.linears.index)
    if norm.bias is None:
        readers.no_shift = "it has no bias"
    if padded:
        readers.no_shift = readers.no_shift or PADDED.format(padded[0])
    for linear in readers.linears:
        if linear.bias is None:
            readers.no_shift = readers.no_shift or f"{linear.name} has no bias"
        elif is_shared(linear.bias):
            readers.no_shift = readers.no_shift or f"{linear.bias.name} is shared with another node"
    return readers


def _check_private(value: ir.Value) -> None:
    """Refuse what is no constant of float32 that may be edited."""
    held = array_of(value)
    if held is None or held.dtype != np.float32:
        raise _Refused(f"{value.name} is no constant of float32")
    if is_shared(value):
        raise _Refused(f"{value.name} is shared with another node")


def _check_linear(linear: Linear, axis: int, x: ir.Value) -> None:
    convolves = linear.node.op_type == "Conv"
    assert x.shape is not None
    if axis != (1 if convolves else len(x.shape) - 1):
        raise _Refused(f"{linear.name} reads other axes of it")
    if convolves and _attribute(linear.node, "group", 1) != 1:
        raise _Refused(f"{linear.name} has several groups")


def _attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return found.as_int() if found is not None else default


def _pads(linear: ir.Node) -> bool:
    """Whether a convolution puts zeros around what it reads."""
    auto, pads = linear.attributes.get("auto_pad"), linear.attributes.get("pads")
    automatic = auto is not None and auto.as_string() not in ("NOTSET", "VALID")
    return automatic or (pads is not None and any(pads.as_ints()))


def _zeros(pad: ir.Node) -> bool:
    """Whether a Pad adds zeros, rather than values that are there."""
    mode, amounts = pad.attributes.get("mode"), array_of(pad.inputs[1])
    constants = mode is None or mode.as_string() == "constant"
    return constants and (amounts is None or bool((amounts > 0).any()))


def axis_through(node: ir.Node, axis: int) -> int | None:
    """The axis of a view's outputs where its input has ``axis``; None if it is no view, or not of whole channels."""
    x, made = node.inputs[0], node.outputs[0]
    if node.domain or x is None or x.shape is None or made.shape is None:
        return None
    kind, rank = node.op_type, len(x.shape)
    if kind == "Identity":
        return axis
    if kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return _reshaped(x.shape, made.shape, axis)
    if kind == "Transpose":
        given = node.attributes.get("perm")
        order = list(given.as_ints()) if given is not None else list(range(rank))[::-1]
        return order.index(axis)
    if kind == "Split":
        return axis if _attribute(node, "axis", 0) % rank != axis else None
    if kind == "Gather":
        along, indices = _attribute(node, "axis", 0) % rank, node.inputs[1]
        if along == axis or indices is None or indices.shape is None:
            return None
        return axis if axis < along else axis - 1 + len(indices.shape)
    if kind == "Slice":
        axes, starts = array_of(input_of(node, 3)), array_of(node.inputs[1])
        if input_of(node, 3) is None and starts is not None:
            axes = np.arange(starts.size)
        return axis if axes is not None and axis not in axes.ravel() % rank else None
    if kind == "Pad":
        return axis if _pads_rows(node, axis, rank) else None
    return None


def _reshaped(before: ir.Shape, after: ir.Shape, axis: int) -> int | None:
    """Where an axis is after its neighbours were joined or split, from how many values lie behind it."""
    size, behind = before[axis], _product(before[axis + 1 :])
    if not isinstance(size, int) or behind is None:
        return None
    places = (at for at in range(len(after)) if after[at] == size and _product(after[at + 1 :]) == behind)
    return next(places, None)


def _product(sizes: tuple[int | ir.SymbolicDim, ...]) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _pads_rows(pad: ir.Node, axis: int, rank: int) -> bool:
    """Whether a Pad leaves ``axis`` alone, and zero is what it adds if that is one number."""
    amounts, fill, given = array_of(pad.inputs[1]), input_of(pad, 2), input_of(pad, 3)
    axes = np.arange(rank) if given is None else array_of(given)
    if amounts is None or axes is None:
        return False
    if axis in axes.ravel()[np.abs(amounts).reshape(2, -1).max(axis=0) > 0] % rank:
        return False
    filled = array_of(fill)
    return not _zeros(pad) or fill is None or (filled is not None and not filled.any())
