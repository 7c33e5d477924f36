# SPDX-License-Identifier: Apache-2.0
"""Run a float model and its quantized self side by side while the plan is still being made, block by block.

What a stage decides about the plan or about constants, the quantized stream computes with from there on: so a stage
sees its tensors as quantized predecessors make them, beside the float ones. Of each stream one tensor of each input
waits on disk for the next block, and one block is loaded at a time: memory grows neither with the number of inputs nor
with the depth of the model.

Within a block each stage runs the part of the block that leads to its tensors. The quantized stream is the block with
its linears lowered to QDQ and its attention to the integer nodes of domain samq, whatever the target of the plan: the
codes are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
from tqdm import tqdm

from samq_onnx import ops
from samq_onnx.calibrate.blocks import Block, cut, extract, reads
from samq_onnx.calibrate.stream import Feed, check_finite, open_block, resident_memory
from samq_onnx.errors import UserError
from samq_onnx.passes.graph import held_constants
from samq_onnx.passes.lift import lift
from samq_onnx.passes.lower.attention import lower_attention
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.linear import lower_linears
from samq_onnx.plan import QuantPlan
from samq_onnx.progress import progress_bar
from samq_onnx.runtime import run_session
from samq_onnx.scratch import Scratch

__all__ = ["Stage", "by_depth", "quantized_copy", "run_two_streams"]

EXACT, QUANTIZED = "float", "quantized"  # streams


class Stage(Protocol):
    """Something that is decided once it has seen its tensors in both streams.

    Attributes:
        tensors: their names. settled: whether it need not see them, as what it decides is known.
    """

    @property
    def tensors(self) -> tuple[str, ...]: ...

    @property
    def settled(self) -> bool: ...

    def update(self, exact: Sequence[np.ndarray], quantized: Sequence[np.ndarray]) -> None:
        """See ``tensors`` of one more input, in the float and in the quantized stream."""

    def decide(self) -> None:
        """Change the plan and the constants of the model; all inputs were seen."""


def by_depth(graph: ir.Graph, nodes: Iterable[ir.Node]) -> list[list[ir.Node]]:
    """Nodes in groups, in an order in which each reads only what groups before its own make, none of its own.

    The depth of a node is the largest number of ``nodes`` on a way that leads to it; a group is all of one depth.
    """
    chosen = set(nodes)
    depths: dict[ir.Value, int] = {}
    groups: dict[int, list[ir.Node]] = {}
    for node in graph:
        depth = max((depths.get(value, 0) for value in reads(node)), default=0)
        if node in chosen:
            groups.setdefault(depth, []).append(node)
            depth += 1
        depths.update(dict.fromkeys(node.outputs, depth))
    return [groups[depth] for depth in sorted(groups)]


def _hold(model: ir.Model, tensors: Mapping[str, ir.TensorProtocol | None]) -> None:
    """Let constants hold other tensors, those of their name."""
    for name, value in model.graph.initializers.items():
        if tensors.get(name) is not None:
            value.const_value = tensors[name]


def quantized_copy(block: ir.Model, plan: QuantPlan, constants: Mapping[str, ir.TensorProtocol | None]) -> ir.Model:
    """A part of a lifted model that computes with the codes of a plan; every float value keeps its name.

    Args:
        block: the part. constants: what its initializers hold, by name.
    """
    model = block.clone()
    _hold(model, constants)
    lifted, builder = lift(model), Builder(model.graph)
    lower_linears(lifted, builder, plan)
    lower_attention(lifted, builder, plan)
    common.RemoveUnusedNodesPass()(model)
    ops.add_functions(model)
    return model


def run_two_streams(
    model: ir.Model,
    plan: QuantPlan,
    stages: Sequence[Stage],
    exact_feeds: Sequence[Feed],
    feeds: Sequence[Feed],
    *,
    exact: Mapping[str, ir.TensorProtocol | None],
    label: str,
) -> None:
    """Feed inputs through both streams, and let stages decide.

    Args:
        model: lifted float model, whose constants ``stages`` may change. plan: which they may change too.
        stages: in an order in which each one's tensors depend on no later one's decision.
        exact_feeds: inputs of the float stream. feeds: the same ones as the quantized stream gets them.
        exact: what constants of the float stream hold, by name, where ``model`` holds something else by now.
        label: shown in front of the progress bar.

    Raises:
        UserError: there is no input, or the model does not run, or a tensor is not finite, or a block is too large for
            one ONNX file.
        ValueError: a stage wants a tensor that the model does not have.
    """
    if not len(feeds):
        raise UserError("there are no calibration inputs; give a folder with images")
    blocks = cut(model, [stage.tensors for stage in stages])
    for block in blocks:
        _hold(block.model, exact)
    passes = len(stages) + sum(block.carried_out is not None for block in blocks)
    bar = progress_bar(passes * len(feeds), label, "step")
    with bar, Scratch() as scratch:
        for number, block in enumerate(blocks, 1):
            bar.set_postfix_str(f"block {number} of {len(blocks)}, {resident_memory()}", refresh=False)
            streams = _Streams(block, {EXACT: exact_feeds, QUANTIZED: feeds}, scratch, bar)
            for stage in (stages[index] for index in block.groups):
                if not stage.settled:
                    for exact_arrays, arrays in streams.run(stage.tensors, plan, held_constants(model.graph)):
                        stage.update(exact_arrays, arrays)
                stage.decide()
            streams.carry_on(plan, held_constants(model.graph))


class _Streams:
    """Both streams at one block."""

    def __init__(self, block: Block, feeds: dict[str, Sequence[Feed]], scratch: Path, bar: tqdm) -> None:
        self._block, self._feeds, self._scratch, self._bar = block, feeds, scratch, bar
        self._made = {value.name for node in block.model.graph for value in node.outputs}

    def _carried(self, stream: str, index: int) -> Path:
        return self._scratch / f"{stream}-{index}.npy"

    def _given(self, stream: str, index: int) -> dict[str, np.ndarray]:
        """What enters the block."""
        tensors: dict[str, np.ndarray] = {}
        if self._block.feed_inputs:
            feed = self._feeds[stream][index]
            tensors = {name: feed[name] for name in self._block.feed_inputs}
        if self._block.carried_in is not None:
            tensors[self._block.carried_in] = np.load(self._carried(stream, index), allow_pickle=False)
        return tensors

    def run(
        self, wanted: Sequence[str], plan: QuantPlan, constants: Mapping[str, ir.TensorProtocol | None]
    ) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """Tensors of every input, in the float and in the quantized stream."""
        outputs = [name for name in dict.fromkeys(wanted) if name in self._made]
        sessions = {}
        if outputs:
            part = extract(self._block.model, list(self._block.model.graph.inputs), outputs)
            sessions = {
                EXACT: open_block(part),
                QUANTIZED: open_block(quantized_copy(part, plan, constants)),
            }
        for index in range(len(self._feeds[QUANTIZED])):
            exact, quantized = (
                self._tensors(wanted, outputs, stream, sessions.get(stream), index) for stream in (EXACT, QUANTIZED)
            )
            yield exact, quantized
            self._bar.update()

    def _tensors(
        self, wanted: Sequence[str], outputs: list[str], stream: str, session: ort.InferenceSession | None, index: int
    ) -> list[np.ndarray]:
        tensors = self._given(stream, index)
        if session is not None:
            made = run_session(session, tensors, f"the {stream} model on calibration input {index + 1}", outputs)
            tensors.update(zip(outputs, made, strict=True))
        for name in wanted:
            check_finite(name, tensors[name], index)
        return [tensors[name] for name in wanted]

    def carry_on(self, plan: QuantPlan, constants: Mapping[str, ir.TensorProtocol | None]) -> None:
        """Take both streams to the next block."""
        if self._block.carried_out is None:
            return
        for index, arrays in enumerate(self.run([self._block.carried_out], plan, constants)):
            for stream, (array,) in zip((EXACT, QUANTIZED), arrays, strict=True):
                np.save(self._carried(stream, index), array, allow_pickle=False)
