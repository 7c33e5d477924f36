# SPDX-License-Identifier: Apache-2.0
"""Cut a model into blocks where a single activation crosses, so that one block at a time can be run.

In graph order, a cut is possible behind a node if just one activation made so far is read later. Inputs of the graph
do not count: they are at hand in every block. A SAM encoder falls apart at each residual sum; a decoder, whose tokens
and image run side by side, stays whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import onnx_ir as ir

__all__ = ["Block", "cut"]

SMALLEST = 8  # nodes; a block of fewer joins the next one


@dataclasses.dataclass
class Block:
    """A piece of a model as a model of its own.

    Attributes:
        model: reads ``feed_inputs`` and, but for the first block, ``carried_in``.
        taps: names of requested tensors among its outputs.
        carried_in, carried_out: the crossing tensors at its two ends, None at the ends of the model.
    """

    model: ir.Model
    feed_inputs: list[str]
    taps: list[str]
    carried_in: str | None
    carried_out: str | None


def _crossings(nodes: Sequence[ir.Node]) -> list[ir.Value | None]:
    """For each node the activation that crosses behind it, if it is the only one."""
    position = {node: index for index, node in enumerate(nodes)}
    last_use: dict[ir.Value, int] = {}
    for node in nodes:
        for value in node.outputs:
            uses = [position[user] for user, _ in value.uses() if user in position]
            if uses:
                last_use[value] = max(uses)
    alive: set[ir.Value] = set()
    found: list[ir.Value | None] = []
    for index, node in enumerate(nodes):
        alive |= {value for value in node.outputs if last_use.get(value, -1) > index}
        alive = {value for value in alive if last_use[value] > index}
        found.append(next(iter(alive)) if len(alive) == 1 else None)
    return found


def cut(model: ir.Model, groups: Iterable[Sequence[str]]) -> list[Block]:
    """Blocks of ``model`` in order, up to the last requested tensor.

    Args:
        groups: names of tensors wanted; those of one group come out of the same block.
    """
    nodes = list(model.graph)
    place = {value.name: index for index, node in enumerate(nodes) for value in node.outputs}
    spans = [[place[name] for name in group if name in place] for group in groups]
    wanted = {name for group in groups for name in group}
    last = max((max(span) for span in spans if span), default=0)
    joined = {index for span in spans if span for index in range(min(span), max(span))}
    crossings = _crossings(nodes)
    ends = []
    start = 0
    for index in range(last):
        if crossings[index] is not None and index not in joined and index + 1 - start >= SMALLEST:
            ends.append(index)
            start = index + 1
    blocks = []
    start, carried = 0, None
    inputs = {value.name: value for value in model.graph.inputs}
    for end in [*ends, last]:
        crossing = crossings[end] if end != last else None
        made = [value for node in nodes[start : end + 1] for value in node.outputs]
        taps = [value for value in made if value.name in wanted]
        if start == 0:
            taps = [value for name, value in inputs.items() if name in wanted] + taps
        outputs = [value for value in taps if value.name not in inputs]
        if crossing is not None and crossing not in outputs:
            outputs.append(crossing)
        sources = [carried] if carried is not None else []
        read = {value for node in nodes[start : end + 1] for value in node.inputs if value in model.graph.inputs}
        feed_inputs = [value for value in model.graph.inputs if value in read]
        graph = ir.convenience.extract(model.graph, [*sources, *feed_inputs], outputs)
        for value in graph.outputs:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        graph.opset_imports.update(model.opset_imports)
        piece = ir.Model(graph, ir_version=model.ir_version, functions=[f.clone() for f in model.functions.values()])
        blocks.append(
            Block(
                piece,
                [value.name or "" for value in feed_inputs],
                [value.name or "" for value in taps],
                carried.name if carried is not None else None,
                crossing.name if crossing is not None else None,
            )
        )
        start, carried = end + 1, crossing
    return blocks
