# SPDX-License-Identifier: Apache-2.0
"""Learn scales of codes, and shifts and scales of groups of channels, from the output of the whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from samq_onnx.codes import WeightCodes
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.reconstruct import learn_whole, may_learn
from samq_onnx.passes.fold import fold_norm_affine, norm_readers
from samq_onnx.passes.report import Report

__all__ = ["LearnScales"]


class LearnScales(Step):
    """All step sizes together, and the groups behind norms, as PQ-SAM learns them; weights do not learn.

    Args:
        labels: name of a norm -> number of each channel's group; filled by a step before this one.
        iterations: as many. rate: of logarithms of scales, and of shifts in units of a group's deviation.
    """

    name = "learned scales"
    edits = True
    reads_plan = True

    def __init__(self, labels: Mapping[str, np.ndarray], iterations: int, rate: float) -> None:
        self.labels, self.iterations, self.rate = labels, iterations, rate

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        if not may_learn(work, report):
            return report
        from samq_onnx.reconstruct.grouped import GroupedAffine, attach
        from samq_onnx.reconstruct.simulate import Simulation, Twins
        from samq_onnx.reconstruct.trainer import Learns

        norms = {norm.name: norm for norm in work.lifted.norms}
        affine: dict[str, GroupedAffine] = {}
        for name, plan in work.plan.linears.items():
            work.plan.linears[name] = dataclasses.replace(plan, weight=_one_scale(plan.weight))

        def groups(simulation: Simulation, rate: float) -> tuple[list[list[Any]], list[float]]:
            for name, labels in self.labels.items():
                readers = norm_readers(work.lifted, norms[name])
                if isinstance(readers, str) or not all(map(simulation.holds, readers.linears)):
                    continue
                affine[name] = GroupedAffine(labels, shifts=readers.no_shift is None)
                attach(simulation, readers, affine[name])
            learning = [parameter for one in affine.values() for parameter in one.learning()]
            for weight in simulation.weights():
                weight.requires_grad_(False)
            return [learning, simulation.log_scales()], [self.rate, self.rate]

        first = tuple(node for name in self.labels for node, _ in norms[name].x.uses())

        def fold() -> None:
            folded = fold_norm_affine(work.lifted, {name: one.folded() for name, one in affine.items()})
            report.done, report.refused = folded.done, folded.refused

        learns = Learns(groups, Twins(free=False), self.iterations, first, self.name, fold)
        return learn_whole(work, report, learns)


def _one_scale(codes: WeightCodes) -> WeightCodes:
    """Codes of one scale for the whole tensor, where there is nearly one; as they are otherwise."""
    largest = max(codes.scale)
    same = all(scale > 0.999 * largest for scale in codes.scale)
    return dataclasses.replace(codes, scale=(largest,)) if same else codes
