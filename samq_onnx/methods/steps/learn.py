# SPDX-License-Identifier: Apache-2.0
"""Learn a quantized model unit by unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samq_onnx.families import Role
from samq_onnx.feeds import Selection
from samq_onnx.methods.step import Feeds, Step, Work
from samq_onnx.methods.steps.reconstruct import may_learn
from samq_onnx.passes.report import Report
from samq_onnx.reconstruct.affordable import affordable
from samq_onnx.reconstruct.recipe import Recipe
from samq_onnx.reconstruct.reconstruction import NotReconstructable, UnitLoss
from samq_onnx.reconstruct.units import find_units
from samq_onnx.sampling import spread

__all__ = ["LearnUnits"]

IMAGES, FEWEST_IMAGES = 32, 4
PROMPTS = 4  # of a decoder for each image
STREAMS = 4.0  # passes through the float model that an input takes in both streams
OF_TIME = 1 / 3  # for these, so that most is left for iterations


def _fisher(work: Work, recipe: Recipe, exact_feeds: Feeds, feeds: Feeds, chosen: Sequence[int], folder: Path) -> Any:
    from samq_onnx.reconstruct.fisher import Fisher

    units = find_units(work.lifted, work.plan, recipe.level)
    return Fisher(work.lifted, work.plan, work.part, units, exact_feeds, feeds, folder)


def _response(work: Work, recipe: Recipe, exact_feeds: Feeds, feeds: Feeds, chosen: Sequence[int], folder: Path) -> Any:
    from samq_onnx.reconstruct.response import decoder_response, encoder_response

    if work.part.role is Role.DECODER:
        return decoder_response(work.lifted, work.plan, exact_feeds, feeds, folder)
    samples = getattr(work.feeds, "samples", None)
    if work.reader is None or samples is None:
        raise NotReconstructable("no decoder that reads the embedding is given; give a folder of both")
    return encoder_response(work.lifted, work.part, work.reader, [samples[index] for index in chosen], folder)


OBJECTIVES: dict[str, Callable[..., Any]] = {"fisher": _fisher, "response": _response}


class LearnUnits(Step):
    """Reconstruct units as a recipe says (`samq_onnx.reconstruct.engine`), from the plan as it is so far.

    Args:
        recipe: what is learned, and how. images: that it learns from, evenly spread; fewer where time is short.
    """

    name = "reconstruction by units"
    reads_plan = True

    def __init__(self, recipe: Recipe, images: int = IMAGES) -> None:
        self.recipe, self.images = recipe, images

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        if not may_learn(work, report):
            return report
        from samq_onnx.reconstruct.engine import reconstruct_units

        each, float_feeds = PROMPTS if work.part.role is Role.DECODER else 1, work.float_feeds()
        count = affordable(
            work.lifted, work.plan, float_feeds, self.images * each, FEWEST_IMAGES * each,
            passes=STREAMS, share=OF_TIME, effort=work.effort, kept=work.kept, label=f"{work.label}: learning",
            given=dataclasses.asdict(self.recipe),
        )  # fmt: skip
        chosen = spread(len(work.feeds), count)
        feeds, exact_feeds = (Selection(whole, chosen) for whole in (work.feeds, float_feeds))
        make = None
        if self.recipe.objective != "plain":

            def make(folder: Path) -> Any:
                return OBJECTIVES[self.recipe.objective](work, self.recipe, exact_feeds, feeds, chosen, folder)

        def learned(objective: Callable[[Path], Any] | None) -> list[UnitLoss]:
            return reconstruct_units(
                work.lifted, work.plan, self.recipe, exact_feeds, feeds,
                exact=work.exact, label=f"{work.label}: learning", effort=work.effort, objective=objective,
                kept=work.kept,
            )  # fmt: skip

        try:
            found = learned(make)
        except NotReconstructable as reason:
            report.refuse(work.label, f"{self.recipe.objective}: {reason}; the outputs of units count instead")
            found = learned(None)
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
