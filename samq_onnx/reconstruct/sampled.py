# SPDX-License-Identifier: Apache-2.0
"""Few windows, or few queries, of a unit with one attention, as an exact part of what it computes.

A window depends on its own tokens alone, and a query on all keys and no other query; what lies before the projections
and behind the attention, as norms, residual sums and the MLP of a block, takes each row by itself. So an iteration on
some of them is a true example at a fraction of the cost. Which row of a tensor becomes which is found by sending
numbers of places through the views of the graph: those between the linears and the attention, padding by a row of
biases among them, and those that put windows together again.
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
from samq_onnx.reconstruct.units import Unit, between, entering

__all__ = ["Choice", "Sampled", "sampled"]

LOGITS = 2**18  # of a head that an iteration sees, where queries of many keys are drawn


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an iteration sees.

    Attributes:
        windows: numbers of them [w]. queries: places of a window's queries [n].
        tokens: rows of the unit's input that are needed [t]. rows: of its output that are made [r].
        kept: which places of what the attention gives [w n] become these; the others are padding.
    """

    windows: torch.Tensor
    queries: torch.Tensor
    tokens: torch.Tensor
    rows: torch.Tensor
    kept: torch.Tensor


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


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A unit of one input, one output and one attention. Made by `sampled`.

    Attributes:
        operands: of the attention. out: the linear behind it.
        before, after: nodes that lead to the projections, and those behind ``merged``, what views make of ``out``.
        made: row of the unit's output of each place of a window [windows, places]; -1 where padding is cut off.
    """

    simulation: Simulation
    unit: Unit
    site: AttentionSite
    operands: Sequence[_Operand]
    out: Linear
    before: Sequence[ir.Node]
    after: Sequence[ir.Node]
    merged: ir.Value
    made: torch.Tensor

    def draw(self, random: np.random.Generator, rows: int) -> Choice | None:
        """Whole windows, or queries of the only one, with about so many rows; None if there are no more."""
        windows, places = self.made.shape
        if windows * places <= rows:
            return None
        if windows > 1:
            filled = (self.made >= 0).any(1).nonzero()[:, 0].numpy()
            chosen = np.sort(random.choice(filled, min(len(filled), max(1, rows // places)), replace=False))
            queries = np.arange(places)
        else:
            few = min(rows, max(1, LOGITS // places))
            chosen, queries = np.arange(1), np.sort(random.choice(places, few, replace=False))
        picked, asked = torch.from_numpy(chosen), torch.from_numpy(queries)
        made = self.made[picked][:, asked].flatten()
        kept = (made >= 0).nonzero()[:, 0]
        q, k, v = self.operands
        needed = [q.rows[picked][:, asked].flatten(), k.rows[picked].flatten(), v.rows[picked].flatten()]
        if self.after:  # whose rows lie as those of the input do
            needed.append(made[kept])
        tokens = torch.cat(needed).unique()
        return Choice(picked, asked, tokens[tokens < self._padding], made[kept], kept)

    @property
    def _padding(self) -> int:
        """The row that padding has, behind all tokens."""
        shape = known_shape(self.operands[0].linear.output)
        assert shape is not None
        return int(np.prod(shape[:-1]))

    def __call__(self, x: torch.Tensor, choice: Choice) -> torch.Tensor:
        """Rows ``choice.rows`` of the output [1, rows, channels] of the rows ``choice.tokens`` [1, t, ...] of x."""
        simulation, (given,) = self.simulation, self.unit.inputs
        place = torch.full((self._padding + 1,), len(choice.tokens), dtype=torch.int64)
        place[choice.tokens] = torch.arange(len(choice.tokens))
        read = self.operands[0].linear.x
        (rows,) = simulation.compute(self.before, {given: x}, [read])
        attended = self._attended(rows[0], choice, place)[choice.kept.to(x.device)][None]
        if not self.after:
            return attended
        mine = x[:, place[choice.rows].to(x.device)]
        (made,) = simulation.compute(self.after, {given: mine, self.merged: attended}, self.unit.outputs)
        return made

    def _attended(self, x: torch.Tensor, choice: Choice, place: torch.Tensor) -> torch.Tensor:
        """What the linear behind the attention makes [w n, channels]; rows x [t, channels] are at ``place``."""
        simulation, device = self.simulation, x.device
        products: dict[ir.Node, torch.Tensor] = {}
        found = []
        for operand, queries in zip(self.operands, (choice.queries, None, None), strict=True):
            linear = operand.linear
            if linear.node not in products:
                y = simulation.product(linear, x)
                products[linear.node] = torch.cat([y, simulation.padding(linear, y)[None]])
            rows = operand.rows[choice.windows]
            rows = place[rows if queries is None else rows[:, queries]].to(device)
            y = products[linear.node][rows]  # [windows, places, out]
            channels = operand.channels.to(device)
            found.append(y[..., channels].movedim(-2, 1))  # [windows, heads, places, d]
        made = simulation.attend(self.site, found[0], found[1], found[2], choice.queries.to(device))
        joined = made.movedim(1, -2).flatten(-2)  # [windows, queries, heads d]
        return simulation.product(self.out, joined.flatten(0, 1))


def sampled(lifted: Lifted, simulation: Simulation, unit: Unit) -> Sampled | None:
    """A unit with one attention whose places are known, and rows elsewhere depend on no other; None if it is none."""
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
    if not simulation.holds(out) or out.node.op_type == "Conv":
        return None
    assert site.q is not None
    read = site.q.linear.x
    operands = []
    groups: np.ndarray | None = None
    for projection, value in zip(projections, site.node.inputs[:3], strict=True):
        assert projection is not None and value is not None
        linear = projection.linear
        shape = known_shape(linear.output)
        if linear.node.op_type == "Conv" or linear.x is not read or shape is None:
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
    merged = _merged(out.output, inside)
    behind = None if made is None else _rows_behind(lifted, out, merged)
    if made is None or behind is None:
        return None
    around = _around(lifted, unit, read, merged)
    if around is None:
        return None
    return Sampled(simulation, unit, site, operands, out, *around, merged, behind[made])


def _around(lifted: Lifted, unit: Unit, read: ir.Value, merged: ir.Value) -> tuple[list[ir.Node], list[ir.Node]] | None:
    """Nodes that lead to ``read``, and those behind ``merged``; None unless they take rows of one layout one by one."""
    (given,), (made,) = unit.inputs, unit.outputs
    before, after = _rows_between(lifted, [given], read), _rows_between(lifted, [given, merged], made)
    if before is None or after is None:
        return None
    layouts = {tuple(value.shape or ())[:-1] for value in (given, read, *((merged, made) if after else ()))}
    return (before, after) if len(layouts) == 1 else None


def _rows_between(lifted: Lifted, given: Sequence[ir.Value], wanted: ir.Value) -> list[ir.Node] | None:
    """Nodes from ``given`` values to one; None if rows depend on each other there, or on anything else."""
    first = [node for value in given for node, _ in value.uses()]
    nodes = between(lifted.model.graph, first, [wanted], given)
    if not set(entering(nodes, [wanted], given)) <= set(given):
        return None
    return nodes if not nodes or Unit("", "", (wanted,), tuple(nodes), tuple(given)).rowwise else None


def _merged(value: ir.Value, inside: set[ir.Node]) -> ir.Value:
    """What the views behind a value make of it."""
    while True:
        readers = [node for node, _ in value.uses()]
        if len(readers) != 1 or readers[0] not in inside or not _moves(readers[0]) or len(readers[0].outputs) != 1:
            return value
        value = readers[0].outputs[0]


def _rows_behind(lifted: Lifted, out: Linear, merged: ir.Value) -> torch.Tensor | None:
    """The row of ``merged`` that each row of a linear's output becomes, -1 if none [rows]; None if rows are torn."""
    shape = known_shape(out.output)
    places = None if shape is None else _places(lifted, out.output, merged, shape, None)
    if shape is None or places is None:
        return None
    rows, channels = np.divmod(places.reshape(-1, places.shape[-1]), shape[-1])
    if (rows != rows[:, :1]).any() or (channels != np.arange(shape[-1])).any():
        return None
    found = np.full(int(np.prod(shape[:-1])), -1)
    found[rows[:, 0]] = np.arange(len(rows))
    return torch.from_numpy(found) if len(np.unique(rows[:, 0])) == len(rows) else None


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
                if value.const_value is None or value.const_value.dtype.is_floating_point():
                    return None  # rows of constants have no place
                known[value] = torch.tensor(value.const_value.numpy())
            inputs.append(known[value] if value is not None else None)
        if not _moves(node):
            return None
        try:
            made = OPERATORS[node.op_type](node, inputs)
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return None  # a use that has no torch version here
        for value, tensor in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True):
            known[value] = tensor
    return known[end].numpy() if end in known else None


def _moves(node: ir.Node) -> bool:
    return not node.domain and node.op_type in MOVES


MOVES = frozenset({"Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
