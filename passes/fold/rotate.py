# SPDX-License-Identifier: Apache-2.0
"""Rotate the channels of the residual stream, so that no few channels decide the range of all.

With R orthogonal and R 1 = 1 (the vector of ones stays where it is), a layer norm without scale and shift commutes
with R: the mean over channels is the part along ones, which R keeps, and lengths stay. So with x the stream,

    patch embedding, position, proj, lin2:  y -> y R       W -> W R, b -> b R
    norm(x), without scale and shift:       n -> n R
    linears behind a norm, and the neck:    W -> R^T W

computes the same, scale and shift of the norms having gone into the linears behind them, W -> diag(w) W and
b -> b + beta W. One step size for all channels then shrinks with the largest channel over the mean one (QuaRot,
Ashkboos et al. 2024, there for norms that subtract no mean; folding SAM's means into linears instead would not be
exact, because its neck reads them). The stream itself stays float.

Takes streams of sums, views and norms over the last axis that linears alone write and read. Refuses, as a whole,
streams that the model gives out or that something else reads, shared constants, and shifts of norms that no bias of a
linear can take or that zeros are padded behind.

Heads are rotated alike, each by itself: q and k by one matrix, with the tables of relative position, which all heads
share, and v against the linear that reads the attention's output.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from scipy import linalg

from samq_onnx.passes.fold.edit import map_inputs, map_outputs, private_to_attention, reader_is_private
from samq_onnx.passes.fold.norm_affine import NormReaders, axis_through, into_readers, norm_readers
from samq_onnx.passes.graph import constant, is_constant, is_shared, replace_constant
from samq_onnx.passes.lift import AttentionSite, Lifted, Linear, Norm
from samq_onnx.passes.report import Report

__all__ = ["Stream", "find_stream", "rotate_heads", "rotate_stream", "rotation"]


@dataclasses.dataclass
class Stream:
    """A residual stream of so many ``channels``.

    Attributes:
        writers: linears whose output it is. added: constants that are added, with the axis of their channels.
        norms: that read it, with the linears behind them. readers: linears that read it as it is.
    """

    channels: int
    writers: list[Linear] = dataclasses.field(default_factory=list)
    added: list[tuple[ir.Value, int]] = dataclasses.field(default_factory=list)
    norms: list[NormReaders] = dataclasses.field(default_factory=list)
    readers: list[Linear] = dataclasses.field(default_factory=list)


class _Refusal(Exception):
    """Why a stream cannot be rotated."""


class _Walk:
    """Goes along a stream from one of its norms."""

    def __init__(self, lifted: Lifted, start: Norm) -> None:
        self._lifted = lifted
        self._outputs = {linear.output: linear for linear in lifted.linears}
        self._inputs: dict[ir.Node, Linear] = {linear.node: linear for linear in lifted.linears}
        self._norms = {norm.node: norm for norm in lifted.norms}
        shape = start.x.shape
        if shape is None or not isinstance(shape[-1], int):
            raise _Refusal("the shape of the stream is not known")
        self.stream = Stream(shape[-1])
        self._seen: set[ir.Value] = set()
        self._pending = [(start.x, len(shape) - 1)]
        while self._pending:
            value, axis = self._pending.pop()
            if value in self._seen:
                continue
            self._seen.add(value)
            if value.shape is None or value.shape[axis] != self.stream.channels:
                raise _Refusal(f"{value.name} has not its channels where the others have them")
            if value.is_graph_output():
                raise _Refusal(f"{value.name} is an output of the model")
            self._made(value, axis)
            for node, index in value.uses():
                self._read(node, index, value, axis)

    def _made(self, value: ir.Value, axis: int) -> None:
        """Go on from what makes the value."""
        node, linear = value.producer(), self._outputs.get(value)
        if linear is not None:
            self.stream.writers.append(linear)
        elif node is None or node.domain:
            raise _Refusal(f"{value.name} is made by no standard operator")
        elif node.op_type == "Add":
            for summand in node.inputs:
                self._summand(summand, value, axis)
        else:
            source = node.inputs[0]
            before = _before(node, axis)
            if source is None or before is None:
                raise _Refusal(f"{node.op_type} makes {value.name}")
            self._pending.append((source, before))

    def _summand(self, summand: ir.Value | None, total: ir.Value, axis: int) -> None:
        if summand is None or summand.shape is None or total.shape is None:
            raise _Refusal(f"the shape of a summand of {total.name} is not known")
        own = axis - (len(total.shape) - len(summand.shape))
        if own < 0 or summand.shape[own] != self.stream.channels:
            raise _Refusal(f"{summand.name} is added to all channels alike")
        if not is_constant(summand):
            self._pending.append((summand, own))
        elif is_shared(summand):
            raise _Refusal(f"{summand.name} is shared with another node")
        else:
            self.stream.added.append((summand, own))

    def _read(self, node: ir.Node, index: int, value: ir.Value, axis: int) -> None:
        """Go on to what a node makes of the value."""
        linear, norm = self._inputs.get(node), self._norms.get(node)
        if linear is not None and index == 0 and axis == (1 if node.op_type == "Conv" else len(value.shape or ()) - 1):
            if node.op_type == "Conv" and "group" in node.attributes and node.attributes["group"].as_int() != 1:
                raise _Refusal(f"{linear.name} treats channels apart")
            self.stream.readers.append(linear)
        elif norm is not None and index == 0 and node.op_type == "LayerNormalization":
            if norm.axis not in (-1, axis) or axis != len(value.shape or ()) - 1:
                raise _Refusal(f"norm {node.name} is over other axes")
            found = norm_readers(self._lifted, norm)
            if isinstance(found, str):
                raise _Refusal(f"norm {norm.name}: {found}")
            if norm.bias is not None and constant(norm.bias).any() and found.no_shift is not None:
                raise _Refusal(f"norm {norm.name}: {found.no_shift}")
            self.stream.norms.append(found)
        elif node.op_type == "Add" and not node.domain:
            self._pending.append((node.outputs[0], axis + len(node.outputs[0].shape or ()) - len(value.shape or ())))
        elif index == 0 and (after := axis_through(node, axis)) is not None:
            self._pending += [(output, after) for output in node.outputs]
        else:
            raise _Refusal(f"{node.op_type} {node.name} reads it")


def _before(view: ir.Node, axis: int) -> int | None:
    """Which axis of the input of a view becomes ``axis``; None if it is no view that keeps channels together."""
    source = view.inputs[0]
    if source is None or source.shape is None:
        return None
    return next((own for own in range(len(source.shape)) if axis_through(view, own) == axis), None)


def find_stream(lifted: Lifted) -> Stream | str:
    """The residual stream that the attentions of a model write to, or why there is none that can be rotated."""
    attended = {site.out.linear.node for site in lifted.attentions if site.out is not None}
    reasons = []
    for norm in lifted.norms:
        if norm.node.op_type != "LayerNormalization":
            continue
        try:
            stream = _Walk(lifted, norm).stream
            if not attended or any(linear.node in attended for linear in stream.writers):
                _check(stream)
                return stream
        except _Refusal as refusal:
            reasons.append(str(refusal))
    return reasons[0] if reasons else "it has no norm that a stream runs through"


def _check(stream: Stream) -> None:
    """Refuse constants that something else reads too."""
    for linear in (*stream.writers, *stream.readers):
        for value in (linear.weight, linear.bias):
            if value is not None and (is_shared(value) or not is_constant(value)):
                raise _Refusal(f"{value.name} is shared with another node")


def rotation(size: int, seed: int = 0) -> np.ndarray:
    """A random orthogonal matrix, float64 [size, size], that keeps the vector of ones.

    U diag(1, Q) U, where U is the reflection that exchanges the first axis and the direction of ones, and Q is drawn
    evenly from all orthogonal matrices.
    """
    random = np.random.default_rng(seed)
    inner, upper = linalg.qr(random.standard_normal((size - 1, size - 1)))
    inner = inner * np.sign(np.diag(upper))
    mirror = -np.full(size, 1 / np.sqrt(size))
    mirror[0] += 1
    mirror /= np.linalg.norm(mirror)
    turned: np.ndarray = linalg.block_diag(np.ones((1, 1)), inner)
    turned -= 2 * np.outer(mirror, mirror @ turned)
    turned -= 2 * np.outer(turned @ mirror, mirror)
    return turned


def rotate_stream(lifted: Lifted, matrix: np.ndarray | None = None) -> Report:
    """Rotate the residual stream of a model, in place; its norms have neither scale nor shift afterwards.

    Args:
        matrix: float64 [channels, channels], orthogonal, keeps the vector of ones; a random one if None.
    """
    report = Report("rotation of the stream")
    stream = find_stream(lifted)
    if isinstance(stream, str):
        report.refuse("the model", stream)
        return report
    matrix = rotation(stream.channels) if matrix is None else matrix
    channels = np.arange(stream.channels)[None]
    for linear in stream.writers:
        map_outputs(linear, channels, matrix[None])
    for value, axis in stream.added:
        held = np.moveaxis(constant(value).astype(np.float64), axis, -1) @ matrix
        replace_constant(value, np.moveaxis(held, -1, axis))
    for found in stream.norms:
        _absorb(found)
    behind = [linear for found in stream.norms for linear in found.linears]
    for linear in (*behind, *stream.readers):
        map_inputs(linear, channels, matrix.T[None])
    report.done = [found.norm.name for found in stream.norms]
    return report


def _absorb(found: NormReaders) -> None:
    """Put scale and shift of a norm into the linears behind it, whatever numbers they are."""
    norm = found.norm
    scale = constant(norm.scale).astype(np.float64)
    shift = constant(norm.bias).astype(np.float64) if norm.bias is not None else np.zeros_like(scale)
    into_readers(found, scale, shift)
    replace_constant(norm.scale, np.ones_like(scale))
    if norm.bias is not None:
        replace_constant(norm.bias, np.zeros_like(scale))


def _head_rotation(site: AttentionSite, seed: int) -> np.ndarray:
    """An orthogonal matrix for each head, float64 [heads, d, d]."""
    random = np.random.default_rng(seed)
    made = [linalg.qr(random.standard_normal((site.head_dim, site.head_dim)))[0] for _ in range(site.heads)]
    return np.stack(made)


def rotate_heads(lifted: Lifted, operands: str = "qkv", seed: int = 0) -> Report:
    """Rotate q and k of every attention by one matrix and v by another, in place; exact with any post-softmax codes.

    Args:
        operands: ``"qk"``, ``"v"`` or both.
    """
    report = Report("rotation of heads")
    for site in lifted.attentions:
        if "qk" in operands:
            reason = private_to_attention(lifted, site, "q", "k")
            if reason is None:
                assert site.q is not None and site.k is not None
                turn = _head_rotation(site, seed)
                if site.tables:  # that all heads share
                    turn = np.broadcast_to(turn[:1], turn.shape)
                map_outputs(site.q.linear, site.q.channels, turn)
                map_outputs(site.k.linear, site.k.channels, turn)
                for table in site.tables or ():
                    replace_constant(table, constant(table) @ turn[0])
                report.done.append(f"{site.name}: q, k")
            else:
                report.refuse(site.name, reason)
        if "v" in operands:
            reason = private_to_attention(lifted, site, "v") or reader_is_private(site)
            if reason is None:
                assert site.v is not None and site.out is not None
                turn = _head_rotation(site, seed + 1)
                map_outputs(site.v.linear, site.v.channels, turn)
                map_inputs(site.out.linear, site.out.channels, turn.transpose(0, 2, 1))
                report.done.append(f"{site.name}: v")
            else:
                report.refuse(site.name, reason)
    return report
