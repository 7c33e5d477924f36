# SPDX-License-Identifier: Apache-2.0
"""Few windows, or few queries, of an attention with its projections, as an exact part of what it computes.

A window depends on its own tokens alone, and a query on all keys and no other query. So an iteration on some of them is
a true example at a fraction of the cost. Which row of a tensor becomes which is found by sending numbers of places
through the views of the graph: those between the linears and the attention, padding by a row of biases among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch

from samq_onnx.passes.graph import known_shape
from samq_onnx.passes.lift import AttentionSite, Lifted, Linear
from samq_onnx.reconstruct.simulate import Simulation
from samq_onnx.reconstruct.torch_ops import OPERATORS
from samq_onnx.reconstruct.units import Unit, between

__all__ = ["Choice", "SampledAttention", "sampled_attention"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an iteration sees.

    Attributes:
        windows: numbers of them [w]. queries: places of a window's queries [n].
        tokens: rows of the unit's input that are needed [t]. rows: of its output that are made [w n].
    """

    windows: torch.Tensor
    queries: torch.Tensor
    tokens: torch.Tensor
    rows: torch.Tensor


@dataclasses.dataclass(frozen=True)
class _Operand:
    """Where q, k or v comes from.

    Attributes:
        linear: that makes it. rows: of each place of a window [windows, places], the padding's behind the last.
        channels: of each head [heads, d].
    """

    linear: Linear
    rows: torch.Tensor
    channels: torch.Tensor


class SampledAttention:
    """An attention unit of one input. Made by `sampled_attention`."""

    def __init__(
        self, simulation: Simulation, site: AttentionSite, out: Linear, operands: Sequence[_Operand], made: torch.Tensor
    ) -> None:
        self._simulation, self._site, self._out = simulation, site, out
        self._q, self._k, self._v = operands
        self._made = made  # row of the output of each place of a window [windows, places]

    def draw(self, random: np.random.Generator, rows: int) -> Choice | None:
        """Whole windows, or queries of the only one, with about so many rows; None if there are no more."""
        windows, places = self._made.shape
        if windows * places <= rows:
            return None
        if windows > 1:
            chosen = np.sort(random.choice(windows, max(1, rows // places), replace=False))
            queries = np.arange(places)
        else:
            chosen, queries = np.arange(1), np.sort(random.choice(places, rows, replace=False))
        picked, asked = torch.from_numpy(chosen), torch.from_numpy(queries)
        needed = torch.cat([self._q.rows[picked][:, asked].flatten(), self._k.rows[picked].flatten()])
        tokens = needed.unique()
        tokens = tokens[tokens < self._padding]
        return Choice(picked, asked, tokens, self._made[picked][:, asked].flatten())

    @property
    def _padding(self) -> int:
        """The row that padding has, behind all tokens."""
        shape = known_shape(self._q.linear.output)
        assert shape is not None
        return int(np.prod(shape[:-1]))

    def __call__(self, x: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Rows ``choice.rows`` of the output [1, rows, channels] of the rows ``choice.tokens`` of the input."""
        simulation, device = self._simulation, x.device
        place = torch.full((self._padding + 1,), len(choice.tokens), dtype=torch.int64)
        place[choice.tokens] = torch.arange(len(choice.tokens))
        products: dict[ir.Node, torch.Tensor] = {}
        found = []
        for operand, queries in ((self._q, choice.queries), (self._k, None), (self._v, None)):
            linear = operand.linear
            if linear.node not in products:
                y = simulation.product(linear, x.reshape(len(choice.tokens), -1))
                products[linear.node] = torch.cat([y, simulation.padding(linear, y)[None]])
            rows = operand.rows[choice.windows]
            rows = place[rows if queries is None else rows[:, queries]].to(device)
            y = products[linear.node][rows]  # [windows, places, out]
            channels = operand.channels.to(device)
            found.append(y[..., channels].movedim(-2, 1))  # [windows, heads, places, d]
        made = simulation.attend(self._site, found[0], found[1], found[2], choice.queries.to(device))
        joined = made.movedim(1, -2).flatten(-2)  # [windows, queries, heads d]
        return simulation.product(self._out, joined.flatten(0, 1))[None]


def sampled_attention(lifted: Lifted, simulation: Simulation, unit: Unit) -> SampledAttention | None:
    """The attention of a unit that is nothing else, in which places are known; None if it is none."""
    inside = set(unit.nodes)
    sites = [site for site in lifted.attentions if site.node in inside]
    if len(sites) != 1 or len(unit.inputs) != 1 or len(unit.outputs) != 1:
        return None
    (site,) = sites
    projections = (site.q, site.k, site.v)
    if (
        site.bias is not None
        or site.out is None
        or any(one is None or one.pooled or not simulation.holds(one.linear) for one in projections)
    ):
        return None
    out = site.out.linear
    if not simulation.holds(out) or unit.outputs[0] is not out.output or out.node.op_type == "Conv":
        return None
    operands = []
    groups: np.ndarray | None = None
    for projection, value in zip(projections, site.node.inputs[:3], strict=True):
        assert projection is not None and value is not None
        linear = projection.linear
        shape = known_shape(linear.output)
        if linear.node.op_type == "Conv" or linear.x is not unit.inputs[0] or shape is None:
            return None
        places = _places(lifted, linear.output, value, shape, linear)
        if places is None:
            return None
        places = places.reshape(-1, *places.shape[-2:])  # [windows x heads, places, d]
        rows, channels = places // shape[-1], places % shape[-1]
        if (rows != rows[..., :1]).any() or (channels != channels[:, :1]).any():
            return None
        if groups is None:
            _, groups = np.unique(rows[..., 0], axis=0, return_inverse=True)
            groups = groups.reshape(-1)
        windows = int(groups.max()) + 1
        heads = len(groups) // windows
        order = np.argsort(groups, kind="stable").reshape(windows, heads)
        mine, of_heads = rows[..., 0][order], channels[:, 0][order]
        if len(groups) != windows * heads or (mine != mine[:, :1]).any() or (of_heads != of_heads[:1]).any():
            return None
        operands.append(_Operand(linear, torch.from_numpy(mine[:, 0]), torch.from_numpy(of_heads[0])))
    assert groups is not None
    order = np.argsort(groups, kind="stable")
    made = _rows_made(lifted, site, out, order, int(groups.max()) + 1)
    return None if made is None else SampledAttention(simulation, site, out, operands, made)


def _rows_made(
    lifted: Lifted, site: AttentionSite, out: Linear, order: np.ndarray, windows: int
) -> torch.Tensor | None:
    """The row of the linear behind the attention that each place of a window becomes [windows, places]."""
    shape = known_shape(site.node.outputs[0])
    if shape is None or len(shape) < 3:
        return None
    places = _places(lifted, site.node.outputs[0], out.x, shape, None)
    if places is None:
        return None
    heads, length, depth = len(order) // windows, shape[-2], shape[-1]
    places = places.reshape(-1, places.shape[-1])  # [rows, heads x d]
    batch, rest = np.divmod(places, length * depth)
    query, channel = np.divmod(rest, depth)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))  # of each batch entry: window x heads + head
    expected = np.tile(np.arange(depth), heads), np.repeat(np.arange(heads), depth)
    window, head = np.divmod(position[batch], heads)
    if (query != query[:, :1]).any() or (window != window[:, :1]).any():
        return None
    if places.shape[1] != heads * depth or (channel != expected[0]).any() or (head != expected[1]).any():
        return None
    made = np.full((windows, length), -1)
    made[window[:, 0], query[:, 0]] = np.arange(len(places))
    return torch.from_numpy(made) if (made >= 0).all() else None


def _places(
    lifted: Lifted, start: ir.Value, end: ir.Value, shape: Sequence[int], padded: Linear | None
) -> np.ndarray | None:
    """For each number of ``end`` its place in ``start``, counting on into the row that a linear is padded with."""
    known: dict[ir.Value, torch.Tensor] = {start: torch.arange(int(np.prod(shape))).reshape(*shape)}
    if padded is not None and padded.fill is not None:
        known[padded.fill] = int(np.prod(shape)) + torch.arange(shape[-1]).reshape(1, -1)
    if start is end:
        return known[start].numpy()
    first = [node for node, _ in start.uses()]
    for node in between(lifted.model.graph, first, [end], [start]):
        inputs = []
        for value in node.inputs:
            if value is not None and value not in known:
                if value.const_value is None:
                    return None
                known[value] = torch.tensor(value.const_value.numpy())
            inputs.append(known[value] if value is not None else None)
        if node.domain or node.op_type not in MOVES:
            return None
        made = OPERATORS[node.op_type](node, inputs)
        for value, tensor in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True):
            known[value] = tensor
    return known[end].numpy() if end in known else None


MOVES = frozenset({"Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
