# SPDX-License-Identifier: Apache-2.0
"""Pieces of a lifted graph that are reconstructed one after the other, found by topology.

A unit is what lies between values that are given to it and its outputs. By level, from small to large:

* ``layer``: a linear, with the GELU or ReLU behind it (AdaRound);
* ``module``: an attention with its projections, an MLP, a neck (PTQ4SAM, QDrop);
* ``block``: a block of an encoder with its residual sums, a two-way layer of a decoder (BRECQ, AHCQ-SAM);
* ``stage``: blocks of an encoder up to one with global attention, a two-way layer of a decoder (SAQ-SAM).

What no larger piece takes is a smaller one: every quantized linear is in just one unit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from samq_onnx.calibrate.blocks import crossings
from samq_onnx.passes.lift import Lifted, Linear
from samq_onnx.plan import QuantPlan

__all__ = ["LEVELS", "Unit", "between", "block_outputs", "entering", "find_units"]

ROWWISE = frozenset(
    {"MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Erf", "Gelu", "Relu", "Identity", "LayerNormalization"}
)
PRODUCTS = frozenset({"MatMul", "Gemm"})
BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div"})
UNKNOWN = 8  # of a size that is not known: tokens of a prompt
LEVELS = ("layer", "module", "block", "stage")


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of a graph.

    Attributes:
        name: of its last node that has one. kind: in words, for people.
        outputs: what it makes. nodes: its own, in graph order. inputs: values that enter.
    """

    name: str
    kind: str
    outputs: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]

    @property
    def rowwise(self) -> bool:
        """Whether each row of the outputs, along the last axis, depends on the same row of each input alone."""
        entered = set(self.inputs)
        for node in self.nodes:
            if node.domain or node.op_type not in ROWWISE:
                return False
            values = [value for value in node.inputs if value is not None]
            moving = [value for value in values if value.const_value is None]
            fixed = [value for value in values if value.const_value is not None]
            if node.op_type in PRODUCTS and not (len(moving) == 1 and moving[0] is values[0] and _rank(values[1]) <= 2):
                return False
            if node.op_type == "LayerNormalization" and not (
                _last_axis(node, values[0]) and all(len(value.shape or ()) == 1 for value in fixed)
            ):
                return False
            added = fixed if node.op_type in BROADCASTS else fixed[1:] if node.op_type == "Gemm" else []
            if any(_rank(value) > 1 for value in added):
                return False
            leading = {tuple(value.shape)[:-1] if value.shape is not None else None for value in moving}
            if len(leading) > 1 or None in leading:
                return False
        return bool(entered) and bool(self.nodes)

    @property
    def work(self) -> float:
        """Multiplications for one input, about; sizes that are not known count as few."""
        total = 0.0
        for node in self.nodes:
            made = _size(node.outputs[0])
            if node.domain:  # an attention: as many for the logits as for the output, and those of the tables
                total += 2 * made * _length(node.inputs[1])
            elif node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose") and node.inputs[1] is not None:
                weight = node.inputs[1]
                total += made * (_size(weight) / max(1, _channels(node.outputs[0], node.op_type)))
        return max(total, 1.0)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of ``inputs`` and then of ``outputs``."""
        return tuple(value.name or "" for value in (*self.inputs, *self.outputs))


def _rank(value: ir.Value) -> int:
    shape = value.shape
    return len(shape) if shape is not None and math.prod(d for d in shape if isinstance(d, int)) > 1 else 0


def _last_axis(norm: ir.Node, x: ir.Value) -> bool:
    axis = norm.attributes.get("axis")
    place = axis.as_int() if axis is not None else -1
    return place == -1 or (x.shape is not None and place == len(x.shape) - 1)


def _sizes(value: ir.Value | None) -> list[int]:
    shape = value.shape if value is not None else None
    return [size if isinstance(size, int) else UNKNOWN for size in shape or ()]


def _size(value: ir.Value | None) -> int:
    return math.prod(_sizes(value))


def _length(keys: ir.Value | None) -> int:
    return (_sizes(keys) or [1, 1])[-2]


def _channels(made: ir.Value, op_type: str) -> int:
    sizes = _sizes(made)
    return sizes[1 if op_type.startswith("Conv") and len(sizes) > 1 else -1] if sizes else 1


def between(
    graph: ir.Graph, first: Iterable[ir.Node], outputs: Iterable[ir.Value], given: Iterable[ir.Value] = ()
) -> list[ir.Node]:
    """Nodes on the ways from ``first`` to ``outputs`` that begin behind the values ``given``, in graph order."""
    reached = set(first)
    for node in graph:
        if any(before in reached for before in node.predecessors()):
            reached.add(node)
    cut, needed = set(given), set[ir.Node]()
    pending = [value for value in outputs if value not in cut]
    while pending:
        maker = pending.pop().producer()
        if maker is not None and maker in reached and maker not in needed:
            needed.add(maker)
            pending.extend(value for value in maker.inputs if value is not None and value not in cut)
    return [node for node in graph if node in needed]


def entering(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], given: Iterable[ir.Value] = ()) -> list[ir.Value]:
    """Values that nodes read and do not make, constants aside, and ``outputs`` that they do not make."""
    made = {value for node in nodes for value in node.outputs} - set(given)
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    read |= dict.fromkeys(outputs)
    return [value for value in read if value not in made and value.const_value is None]


def find_units(lifted: Lifted, plan: QuantPlan, level: str) -> list[Unit]:
    """Units of the quantized linears and attentions of a plan, in an order in which none depends on a later one."""
    finder = _Finder(lifted, plan)
    made = {
        "layer": finder.layers,
        "module": lambda: finder.attentions() + finder.mlps(),
        "block": lambda: finder.blocks(1) + finder.two_way(),
        "stage": lambda: finder.blocks(None) + finder.two_way(),
    }[level]()
    if level in ("block", "stage"):
        taken = {node for unit in made for node in unit.nodes}
        made += [unit for unit in finder.attentions() + finder.mlps() if taken.isdisjoint(unit.nodes)]
    made += finder.rest({node for unit in made for node in unit.nodes})
    return sorted(made, key=lambda unit: max(finder.place[node] for node in unit.nodes))


def block_outputs(lifted: Lifted, plan: QuantPlan) -> list[ir.Value]:
    """What blocks of an encoder and two-way layers of a decoder give to what is behind them."""
    finder = _Finder(lifted, plan)
    return list(dict.fromkeys(output for unit in finder.blocks(1) + finder.two_way() for output in unit.outputs))


class _Finder:
    def __init__(self, lifted: Lifted, plan: QuantPlan) -> None:
        self.graph = lifted.model.graph
        self.lifted = lifted
        self.linears = [linear for linear in lifted.linears if linear.name in plan.linears]
        self.sites = [site for site in lifted.attentions if site.name in plan.attentions]
        self.place = {node: index for index, node in enumerate(self.graph)}
        self._curves = {gelu.output: gelu.x for gelu in lifted.gelus}
        self._of_output = {linear.output: linear for linear in self.linears}

    def unit(self, kind: str, given: Iterable[ir.Value] | None, outputs: Iterable[ir.Value]) -> Unit:
        stops = None if given is None else tuple(dict.fromkeys(given))
        ends = tuple(dict.fromkeys(outputs))
        if stops is None:
            first = [linear.node for linear in self.linears] + [site.node for site in self.sites]
        else:
            first = [node for value in stops for node, _ in value.uses()]
        nodes = between(self.graph, first, ends, stops or ())
        name = next((node.name for node in reversed(nodes) if node.name), kind)
        return Unit(name, kind, ends, tuple(nodes), tuple(entering(nodes, ends, stops or ())))

    def layers(self) -> list[Unit]:
        behind = {x: output for output, x in self._curves.items()}
        found = []
        for linear in self.linears:
            output = behind.get(linear.output, linear.output)
            readers = [node for node, _ in linear.output.uses()]
            if len(readers) == 1 and readers[0].op_type == "Relu" and not readers[0].domain:
                output = readers[0].outputs[0]
            found.append(self.unit("layer", [linear.x], [output]))
        return found

    def attentions(self) -> list[Unit]:
        found = []
        for site in self.sites:
            given: list[ir.Value] = []
            for name, operand in zip("qkv", site.node.inputs[:3], strict=True):
                projection = getattr(site, name)
                mine = projection is not None and projection.linear in self.linears
                value = projection.linear.x if mine else operand
                assert value is not None
                given.append(value)
            out = site.out.linear if site.out is not None else None
            output = out.output if out is not None and out in self.linears else site.node.outputs[0]
            found.append(self.unit(f"attention ({site.kind.replace('_', ' ')})", given, [output]))
        return found

    def mlps(self) -> list[Unit]:
        found = []
        for linear in self.linears:
            before = self._before_curve(linear.x)
            first = self._of_output.get(before) if before is not None else None
            if first is not None and linear.node.op_type != "Conv":
                found.append(self.unit("MLP", [first.x], [linear.output]))
        return found

    def _before_curve(self, value: ir.Value) -> ir.Value | None:
        maker = value.producer()
        if maker is not None and maker.op_type == "Relu" and not maker.domain:
            return maker.inputs[0]
        return self._curves.get(value)

    def blocks(self, count: int | None) -> list[Unit]:
        """Of an encoder: so many blocks each, or as many as end with global attention."""
        halves = []
        ends = self._streams()
        for kind, unit in [("a", one) for one in self.attentions()] + [("m", one) for one in self.mlps()]:
            first, last = (pick(self.place[node] for node in unit.nodes) for pick in (min, max))
            start = max((index for index in ends if index < first), default=None)
            end = min((index for index in ends if index >= last), default=None)
            if start is not None and end is not None:
                halves.append((start, end, kind, unit))
        halves.sort(key=lambda half: half[0])
        whole_stages = {one.node for one in self.sites if one.kind == "encoder_global"}
        found: list[Unit] = []
        waiting: list[tuple[int, int, Unit]] = []
        blocks = 0
        for number, (start, end, kind, unit) in enumerate(halves):
            if kind == "m" and not waiting:
                continue  # an MLP that follows no attention
            waiting.append((start, end, unit))
            following = halves[number + 1] if number + 1 < len(halves) else None
            if following is not None and following[2] == "m" and following[0] == end:
                continue
            blocks += 1
            nodes = {node for _, _, one in waiting for node in one.nodes}
            if (count is None and whole_stages.isdisjoint(nodes) and following is not None) or (count or 0) > blocks:
                continue
            found.append(self.unit("block" if count else "stage", [ends[waiting[0][0]]], [ends[waiting[-1][1]]]))
            waiting, blocks = [], 0
        return found

    def _streams(self) -> dict[int, ir.Value]:
        """Index of a node -> the only activation that crosses behind it."""
        inputs = [value for value in self.graph.inputs if not value.is_initializer()]
        found = crossings(list(self.graph), inputs)
        return {self.place[maker]: value for value in found if value is not None and (maker := value.producer())}

    def two_way(self) -> list[Unit]:
        """Layers of a decoder: from tokens and image to both, where the image has read the tokens."""
        found: list[Unit] = []
        given: list[ir.Value] | None = None
        for site in self.sites:
            if site.kind != "decoder_image_to_token" or site.v is None or site.out is None:
                continue
            image = self._norm_behind(site.out.linear)
            if image is None:
                continue
            outputs = [site.v.linear.x, image]
            found.append(self.unit("two-way layer", given, outputs))
            given = outputs
        return found

    def _norm_behind(self, linear: Linear) -> ir.Value | None:
        """The norm of the residual sum that a linear's output goes into."""
        sums = {output for node, _ in linear.output.uses() if node.op_type == "Add" for output in node.outputs}
        return next((norm.output for norm in self.lifted.norms if norm.x in sums), None)

    def rest(self, taken: set[ir.Node]) -> list[Unit]:
        """Linears in no unit, and attentions whose projections are elsewhere; chains of linears alone are one."""
        found: list[tuple[ir.Value, ir.Value]] = []
        for linear in (one for one in self.linears if one.node not in taken):
            before = self._sources(linear.x)
            if found and before == {found[-1][1]}:
                found[-1] = found[-1][0], linear.output
            else:
                found.append((linear.x, linear.output))
        made = []
        for x, last in found:
            end = self._end(last)
            made.append(self.unit("linears" if end is last else "neck", [x], [end]))
        return made

    def _sources(self, value: ir.Value) -> set[ir.Value]:
        """Outputs of linears and attentions, and inputs of the graph, that a value is computed from directly."""
        ends = {*self._of_output, *(output for site in self.sites for output in site.node.outputs)}
        found, pending, seen = set[ir.Value](), [value], set[ir.Value]()
        while pending:
            current = pending.pop()
            if current in seen or current.const_value is not None:
                continue
            seen.add(current)
            maker = current.producer()
            if current in ends or maker is None:
                found.add(current)
            else:
                pending.extend(one for one in maker.inputs if one is not None)
        return found

    def _end(self, value: ir.Value) -> ir.Value:
        """The output of the graph where it is made of this value alone, nothing quantized between; else the value."""
        outputs = self.graph.outputs
        if len(outputs) == 1 and outputs[0] is not value and self._sources(outputs[0]) == {value}:
            return outputs[0]
        return value
