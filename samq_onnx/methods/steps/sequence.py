# SPDX-License-Identifier: Apache-2.0
"""Linears one after the other, each with the moments of its input as its quantized predecessors make it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from samq_onnx.calibrate.two_streams import by_depth, run_two_streams
from samq_onnx.families import Role
from samq_onnx.feeds import Selection
from samq_onnx.methods.step import Work
from samq_onnx.passes.graph import is_shared
from samq_onnx.passes.lift import Linear
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.moments import InputMoments
from samq_onnx.sampling import spread

__all__ = ["INPUTS", "in_sequence", "products"]

INPUTS = 16  # evenly spread images; rows of a few are many times as many as a linear has input channels
PROMPTS = 8  # of a decoder for each image

Settle = Callable[[Linear, InputMoments], None]


def products(work: Work, report: Report | None) -> list[Linear]:
    """The quantized matrix products whose constants are their own; a report says of the others why they are left."""
    found = []
    for linear in work.linears:
        if linear.node.op_type == "Conv":
            continue
        if any(value is not None and is_shared(value) for value in (linear.weight, linear.bias)):
            if report is not None:
                report.refuse(linear.name, "its weight or bias is shared with another node")
            continue
        found.append(linear)
    return found


class _Linears:
    """Linears that do not depend on each other, as a stage of two streams."""

    settled = False

    def __init__(self, work: Work, linears: Sequence[Linear], settle: Settle) -> None:
        self._settle = settle
        self._moments: dict[str, InputMoments] = {}
        self._linears: list[tuple[Linear, InputMoments]] = []
        for linear in linears:
            codes = work.plan.linears[linear.name].input
            moments = InputMoments(linear.x.name or "", codes, width=linear.in_features)
            self._linears.append((linear, self._moments.setdefault(moments.key, moments)))
        self.tensors = tuple(dict.fromkeys(linear.x.name or "" for linear in linears))

    def update(self, exact: Sequence[np.ndarray], quantized: Sequence[np.ndarray]) -> None:
        seen = dict(zip(self.tensors, zip(exact, quantized, strict=True), strict=True))
        for moments in self._moments.values():
            moments.add(*seen[moments.tensors[0]])

    def decide(self) -> None:
        for linear, moments in self._linears:
            self._settle(linear, moments)


def in_sequence(work: Work, linears: Sequence[Linear], inputs: int, settle: Settle, label: str) -> None:
    """Let ``settle`` change the plan and the constants of linears, in the order of the graph.

    Args:
        linears: matrix products of the plan. inputs: of so many images, evenly spread.
        settle: is given a linear and the moments of its input: x from the float model, x^ from the quantized one, in
            which all linears before it are settled.
    """
    of_node = {linear.node: linear for linear in linears}
    groups = by_depth(work.model.graph, of_node)
    stages = [_Linears(work, [of_node[node] for node in group], settle) for group in groups]
    count = max(1, inputs) * (PROMPTS if work.part.role is Role.DECODER else 1)
    chosen = spread(len(work.feeds), count)
    feeds, exact_feeds = (Selection(whole, chosen) for whole in (work.feeds, work.float_feeds()))
    run_two_streams(work.model, work.plan, stages, exact_feeds, feeds, exact=work.exact, label=f"{work.label}: {label}")
