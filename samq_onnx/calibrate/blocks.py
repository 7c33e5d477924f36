# SPDX-License-Identifier: Apache-2.0
"""Cut a model into blocks where a single activation crosses, so that one block at a time can be run.

In graph order, a cut is possible behind a node if just one activation is read later: inputs of the graph count, so
that each is fetched once; what is computed from constants alone does not, it is computed again. A SAM encoder falls
apart at each residual sum, into attention halves and MLP halves; a decoder, whose tokens and image run side by side,
stays whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir as ir

__all__ = ["Block", "crossings", "cut", "extract", "reads"]

SMALLEST = 6  # nodes; fewer join the next block. The MLP half of a transformer block has seven


@dataclasses.dataclass
class Block:
    """A piece of a model as a model of its own.

    Attributes:
        model: reads ``feed_inputs`` and, but for the first block, ``carried_in``; gives all else that is wanted of it.
        groups: which of the requested groups of tensors are complete here, each in one block only.
        feed_inputs: graph inputs that the block reads or that its groups hold.
        carried_in, carried_out: the crossing tensors at its two ends, None at the ends of the model.
    """

    model: ir.Model
    groups: list[int]
    feed_inputs: list[str]
    carried_in: str | None
    carried_out: str | None


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs of a node, and what its subgraphs read."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (value for value in inner.inputs if value is not None)


def _activations(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value]) -> set[ir.Value]:
    """Inputs of the graph and all that is made from them."""
    active = set(inputs)
    for node in nodes:
        if any(value in active for value in reads(node)):
            active.update(node.outputs)
    return active


def crossings(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value]) -> list[ir.Value | None]:
    """For each node the activation that crosses behind it, if there is exactly one, a node made it, and its type is
    known, as an input of the next block must have one."""
    activations = _activations(nodes, inputs)
    last_read: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in reads(node):
            if value in activations:
                last_read[value] = index
    alive = {value for value in inputs if value in last_read}
    found: list[ir.Value | None] = []
    for index, node in enumerate(nodes):
        alive.update(value for value in node.outputs if value in last_read)
        alive = {value for value in alive if last_read[value] > index}
        crossing = next(iter(alive)) if len(alive) == 1 else None
        fits = crossing is not None and crossing.producer() is not None and crossing.type is not None
        found.append(crossing if fits else None)
    return found


def _ends(crossings: Sequence[ir.Value | None], spans: Sequence[tuple[int, int]], last: int) -> list[int]:
    """Indices of the last nodes of the blocks; no cut falls within a span."""
    within = {index for first, final in spans for index in range(first, final)}
    ends = []
    start = 0
    for index in range(last):
        long_enough = index + 1 - start >= SMALLEST and last - index >= SMALLEST
        if crossings[index] is not None and index not in within and long_enough:
            ends.append(index)
            start = index + 1
    return [*ends, last]


def _span(places: Sequence[int], ends_at: Sequence[ir.Value | None], group: Sequence[str]) -> tuple[int, int]:
    """First and last node that make the tensors of a group; what crosses a cut is there behind it too."""
    first, last = min(places), max(places)
    crossing = ends_at[first]
    if first < last and crossing is not None and crossing.name in group:
        return first + 1, last
    return first, last


def cut(model: ir.Model, groups: Sequence[Sequence[str]]) -> list[Block]:
    """Blocks of ``model`` in order, up to the last requested tensor.

    Args:
        groups: names of tensors wanted; those of one group come out of the same block.

    Raises:
        ValueError: the model has no such tensor.
    """
    nodes = list(model.graph)
    inputs = {value.name: value for value in model.graph.inputs if not value.is_initializer()}
    made = {value.name: (index, value) for index, node in enumerate(nodes) for value in node.outputs}
    for group in groups:
        for name in group:
            if name not in made and name not in inputs:
                raise ValueError(f"the model has no tensor {name}")
    places = [[made[name][0] for name in group if name in made] or [0] for group in groups]
    ends_at = crossings(nodes, list(inputs.values()))
    spans = [_span(place, ends_at, group) for place, group in zip(places, groups, strict=True)]
    ends = _ends(ends_at, spans, max((final for _, final in spans), default=0))
    blocks: list[Block] = []
    start, carried = 0, None
    for end in ends:
        crossing = ends_at[end] if end != ends[-1] else None
        mine = [index for index, (first, _) in enumerate(spans) if start <= first <= end]
        wanted = {name for index in mine for name in groups[index]}
        outputs = [made[name][1] for name in sorted(wanted & made.keys()) if made[name][1] is not carried]
        if crossing is not None and crossing not in outputs:
            outputs.append(crossing)
        if not outputs:  # only inputs of the graph are wanted
            outputs = [nodes[end].outputs[0]]
        read = {value for node in nodes[start : end + 1] for value in reads(node)}
        feed_inputs = [value for value in inputs.values() if value in read or value.name in wanted]
        blocks.append(
            Block(
                extract(model, [*([carried] if carried is not None else []), *feed_inputs], outputs),
                mine,
                [value.name or "" for value in feed_inputs],
                carried.name if carried is not None else None,
                crossing.name if crossing is not None else None,
            )
        )
        start, carried = end + 1, crossing
    return blocks


def extract(model: ir.Model, inputs: Sequence[ir.Value | str], outputs: Sequence[ir.Value | str]) -> ir.Model:
    """The part of a model between inputs and outputs, as a model of its own that shares the tensors of constants."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    graph.opset_imports.update(model.opset_imports)
    return ir.Model(graph, ir_version=model.ir_version, functions=[f.clone() for f in model.functions.values()])
