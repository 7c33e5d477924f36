# SPDX-License-Identifier: Apache-2.0
"""Let one Gather do what a chain of views does to codes, so that they are copied once.

    view(..view(codes)) -> Reshape(Gather(Reshape(codes, [-1, run]), picked))
    view(..view(codes)) -> Reshape(codes)                               where the order stays

Views only move elements, so a chain of them is a list of the elements that it picks and, where it keeps runs of them
together, a list of runs. Exact. A chain goes from a value that no view made, or that something besides views reads, to
the next value that something besides views reads; chains may share views, as behind a Split. Takes Reshape, Squeeze,
Unsqueeze, Flatten, Identity, Transpose, Slice, Split and Gather with constants, of codes in known shapes. Chains that
pick the same, as most blocks of an encoder do, share their list, of 4 bytes for each run.

From one value all chains that copy are replaced, or none, as what they share would stay. None, by measurement, where
each copies only once, since ONNX Runtime's Transpose takes 0.5 to 0.8 of the time of the Gather, so the output of
global attention keeps it; nor where one has runs shorter than `SHORTEST`. Floats are left to ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import array_of, input_of, is_constant, known_shape
from samq_onnx.passes.lower.build import Builder, take_place
from samq_onnx.passes.report import Report

__all__ = ["gather_views"]

KEEP_ORDER = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
COPY = frozenset({"Transpose", "Slice", "Split", "Gather"})
SHORTEST = 32  # elements of a run; from here on a Gather takes 0.2 to 0.7 of the time of several views


def _known(value: ir.Value | None) -> bool:
    shape = known_shape(value)
    return shape is not None and 0 not in shape


def _is_view(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether the node of this graph moves elements of its first input, and constants say where."""
    if node.domain or node.op_type not in KEEP_ORDER | COPY or node.graph is not graph:
        return False
    if any(value is not None and not is_constant(value) for value in node.inputs[1:]):
        return False
    return all(_known(value) for value in (node.inputs[0], *node.outputs))


def _ends(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether something besides views reads the value."""
    return value.is_graph_output() or any(index > 0 or not _is_view(node, graph) for node, index in value.uses())


def _chains(source: ir.Value, graph: ir.Graph) -> Iterator[list[ir.Value]]:
    """All chains from ``source``: that, and the output of each view."""
    for node, index in source.uses():
        for output in node.outputs if index == 0 and _is_view(node, graph) else ():
            if _ends(output, graph):
                yield [source, output]
            else:
                yield from ([source, *chain] for chain in _chains(output, graph))


def _view(output: ir.Value) -> ir.Node:
    node = output.producer()
    assert node is not None
    return node


def _axis(view: ir.Node) -> int:
    axis = view.attributes.get("axis")
    return axis.as_int() if axis is not None else 0


def _constant(view: ir.Node, index: int) -> np.ndarray | None:
    return array_of(input_of(view, index))


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = known_shape(value)
    assert shape is not None
    return shape


def _copies(chain: list[ir.Value]) -> int:
    """How often the chain copies."""
    return sum(_view(output).op_type in COPY for output in chain[1:])


def _moved(x: np.ndarray, output: ir.Value) -> np.ndarray:
    """What the view that makes ``output`` makes of an array."""
    view = _view(output)
    if view.op_type == "Transpose":
        perm = view.attributes.get("perm")
        return x.transpose(None if perm is None else perm.as_ints())
    if view.op_type == "Split":
        ends = np.cumsum([_shape(part)[_axis(view)] for part in view.outputs])
        return np.split(x, ends[:-1], _axis(view))[view.outputs.index(output)]
    if view.op_type == "Gather":
        indices = _constant(view, 1)
        assert indices is not None
        return x.take(indices, _axis(view))
    if view.op_type == "Slice":
        starts, stops, axes, steps = (_constant(view, i) for i in range(1, 5))
        assert starts is not None and stops is not None
        slices = [slice(None)] * x.ndim
        for i, axis in enumerate(range(len(starts)) if axes is None else axes):
            step = 1 if steps is None else int(steps[i])
            # backwards ONNX starts within the axis, numpy also before it
            start = int(starts[i]) if step > 0 else max(int(starts[i]), -x.shape[axis])
            slices[axis] = slice(start, int(stops[i]), step)
        return x[tuple(slices)]
    return x.reshape(_shape(output))


def _picked(chains: list[list[ir.Value]]) -> list[np.ndarray]:
    """Which element of the source each element at the end of each chain is."""
    source = chains[0][0]
    known = {source: np.arange(math.prod(_shape(source)), dtype=np.int32).reshape(_shape(source))}
    for chain in chains:
        for x, output in pairwise(chain):
            if output not in known:
                known[output] = _moved(known[x], output)
    return [known[chain[-1]].ravel() for chain in chains]


def _run(picked: np.ndarray, size: int) -> int:
    """Into what longest pieces ``size`` elements can be cut so that all pieces picked are whole."""
    breaks = np.flatnonzero(np.diff(picked) != 1) + 1
    return int(np.gcd.reduce([size, picked.size, picked[0], *np.gcd.reduce([breaks, picked[breaks]], axis=1)]))


class _Maker:
    """Adds constants and views to a graph, equal ones once."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._constants: dict[tuple[type, bytes], ir.Value] = {}
        self._views: dict[tuple[ir.Value, ir.Value], ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        key = (array.dtype.type, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._builder.constant(name, array)
        return self._constants[key]

    def view(self, op_type: str, x: ir.Value, constant: ir.Value, name: str, shape: tuple[int, ...]) -> ir.Value:
        if (x, constant) not in self._views:
            made = ir.Value(name=name, type=x.type, shape=ir.Shape(shape))
            self._builder.node(op_type, [x, constant], made, x.producer())
            self._views[x, constant] = made
        return self._views[x, constant]

    def shape(self, shape: tuple[int, ...]) -> ir.Value:
        return self.constant("shape_" + "x".join(map(str, shape)), np.array(shape, np.int64))


def _put(builder: Builder, maker: _Maker, chain: list[ir.Value], picked: np.ndarray, run: int) -> None:
    """Let the end of the chain be what is picked of its source."""
    source, last = chain[0], chain[-1]
    x, size = source, math.prod(_shape(source))
    if run < size or picked.size > size:
        count = picked.size // run
        rows = maker.constant(f"runs_{count}_of_{run}", picked[::run] // run)
        cut = (size // run, run)
        x = maker.view("Reshape", source, maker.shape(cut), f"{source.name}_runs_of_{run}", cut)
        x = maker.view("Gather", x, rows, f"{last.name}_runs", (count, run))
    elif last.shape == source.shape and not last.is_graph_output():
        return ir.convenience.replace_all_uses_with(last, source)
    made = ir.Value(name=last.name, type=source.type, shape=last.shape)
    builder.node("Reshape", [x, maker.shape(_shape(last))], made, x.producer())
    take_place(builder.graph, last, made, [])


def _gather(builder: Builder, maker: _Maker, source: ir.Value) -> list[str]:
    """Replace the chains from ``source``, if that is faster; the names of their ends."""
    chains = [chain for chain in _chains(source, builder.graph) if _copies(chain)]
    if max(map(_copies, chains), default=0) < 2:
        return []
    picked = _picked(chains)
    runs = [_run(elements, math.prod(_shape(source))) for elements in picked]
    if min(runs) < SHORTEST:
        return []
    ends = [chain[-1].name or "" for chain in chains]
    for chain, elements, run in zip(chains, picked, runs, strict=True):
        _put(builder, maker, chain, elements, run)
    for view in reversed(dict.fromkeys(_view(output) for chain in chains for output in chain[1:])):
        if not any(output.uses() or output.is_graph_output() for output in view.outputs):
            builder.graph.remove(view, safe=True)
    return ends


def gather_views(builder: Builder) -> Report:
    """Replace chains of views by a Gather each, in place."""
    report, graph, maker = Report("chains of views"), builder.graph, _Maker(builder)
    made = [output for node in graph for output in node.outputs]
    for value in reversed([*graph.inputs, *made]):  # a chain's end, where others begin, is replaced after them
        node = value.producer()
        if value.dtype == builder.code_type.dtype and (
            node is None or not _is_view(node, graph) or _ends(value, graph)
        ):
            report.done += _gather(builder, maker, value)
    return report
