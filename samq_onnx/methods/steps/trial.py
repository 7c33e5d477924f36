# SPDX-License-Identifier: Apache-2.0
"""What a plan costs at the outputs of the model, before it is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx.analysis.judge import OutputJudge
from samq_onnx.calibrate.stream import open_block, run
from samq_onnx.methods.step import Feeds
from samq_onnx.passes.lift import lift
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.plan import QuantPlan
from samq_onnx.runtime import run_session

__all__ = ["losses_of", "references_of"]


class _Outputs:
    """A collector that keeps tensors of all inputs."""

    inputs = None

    def __init__(self, tensors: tuple[str, ...]) -> None:
        self.tensors = tensors
        self.arrays: list[dict[str, np.ndarray]] = []

    def update(self, *arrays: np.ndarray) -> None:
        self.arrays.append(dict(zip(self.tensors, arrays, strict=True)))


def references_of(model: ir.Model, judge: OutputJudge, feeds: Feeds, *, label: str) -> list[dict[str, np.ndarray]]:
    """What a float model gives on each of ``feeds``, of what is judged; ``label`` is that of a progress bar."""
    outputs = _Outputs(judge.outputs)
    run(model, feeds, [outputs], label=label)
    return outputs.arrays


def losses_of(
    model: ir.Model, plan: QuantPlan, judge: OutputJudge, references: Sequence[Mapping[str, np.ndarray]], feeds: Feeds
) -> np.ndarray:
    """The cost of a lifted model on each input, float64 [inputs], once it is lowered, which is done in place.

    Args:
        references: outputs of the float model on each of ``feeds``.
    """
    TARGETS[plan.target].lower(lift(model), plan)
    session = open_block(model)
    losses = []
    for index, reference in enumerate(references):
        fed = {value.name or "": feeds[index][value.name or ""] for value in model.graph.inputs}
        outputs = run_session(session, fed, "a trial", judge.outputs)
        losses.append(judge(index, reference, dict(zip(judge.outputs, outputs, strict=True))).cost)
    return np.array(losses, np.float64)
