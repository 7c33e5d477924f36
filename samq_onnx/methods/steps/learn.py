# SPDX-License-Identifier: Apache-2.0
"""Learn a quantized model unit by unit."""

from __future__ import annotations

import numpy as np

from samq_onnx.families import Role
from samq_onnx.feeds import Selection
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.reconstruct import NO_TORCH, torch_is_there
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.recipe import Recipe
from samq_onnx.sampling import spread

__all__ = ["LearnUnits"]

IMAGES = 32
PROMPTS = 4  # of a decoder for each image


class LearnUnits(Step):
    """Reconstruct units as a recipe says (`samq_onnx.reconstruct.engine`), from the plan as it is so far.

    Args:
        recipe: what is learned, and how. images: that it learns from, evenly spread.
    """

    name = "reconstruction by units"
    reads_plan = True

    def __init__(self, recipe: Recipe, images: int = IMAGES) -> None:
        self.recipe, self.images = recipe, images

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        if not torch_is_there():
            report.refuse(work.label, NO_TORCH)
            return report
        from samq_onnx.reconstruct.engine import reconstruct_units

        count = self.images * (PROMPTS if work.part.role is Role.DECODER else 1)
        chosen = spread(len(work.feeds), count)
        feeds, exact_feeds = (Selection(whole, chosen) for whole in (work.feeds, work.float_feeds()))
        found = reconstruct_units(
            work.lifted, work.plan, self.recipe, exact_feeds, feeds,
            exact=work.exact, label=f"{work.label}: learning", effort=work.effort, kept=work.kept,
        )  # fmt: skip
        ratios = []
        for unit in found:
            if unit.refused:
                report.refuse(unit.name, unit.refused)
                continue
            report.done.append(f"{unit.kind} {unit.name}: loss {unit.before:.4g} -> {unit.after:.4g}")
            if unit.before > 0:
                ratios.append(max(unit.after / unit.before, 1e-9))
        if ratios:
            report.facts["loss of a unit, as a share of that before"] = float(np.exp(np.mean(np.log(ratios))))
        return report
