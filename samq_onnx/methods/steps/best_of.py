# SPDX-License-Identifier: Apache-2.0
"""Try alternatives on a few inputs, and take the one whose outputs are nearest to the float ones."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx.analysis.judge import OutputJudge
from samq_onnx.feeds import Selection
from samq_onnx.methods.step import Feeds, Step, Work
from samq_onnx.methods.steps.trial import losses_of, references_of
from samq_onnx.passes.graph import held_constants, put_back
from samq_onnx.passes.report import Report
from samq_onnx.sampling import spread

__all__ = ["BestOf"]


class BestOf(Step):
    """The steps, of several alternatives, after which the quantized model is nearest to the float one.

    Each is tried with the steps ``then`` behind it, which decide the rest of the plan, on few inputs: a model is
    lowered and run on others, and the error of its embedding counts, or how little its masks overlap the float ones. A
    tie is for the first one. Nothing of a trial stays; the best alternative is then done with all inputs, and ``then``
    is left to the steps that follow.

    Args:
        what: is chosen. alternatives: name -> steps. then: as above.
        inputs: that statistics of a trial see, and as many others that it is judged on.
    """

    edits = True

    def __init__(
        self, what: str, alternatives: Mapping[str, Sequence[Step]], then: Sequence[Step], inputs: int = 2
    ) -> None:
        self._what, self.alternatives, self.then, self.inputs = what, alternatives, then, inputs

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._what

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        seen, judged = _halves(work.observed, self.inputs)
        judge = OutputJudge(work.part)
        references = references_of(work.model, judge, judged, label=f"{work.label}: {self.name}")
        known: dict[tuple[str, ...], float] = {}  # by the steps that did something
        for name, steps in self.alternatives.items():
            report.facts[name] = self._loss(work, steps, seen, judged, judge, references, known)
        best = min(report.facts, key=lambda name: report.facts[name])
        work.run(self.alternatives[best], work)
        report.done.append(best)
        return report

    def _loss(
        self,
        work: Work,
        steps: Sequence[Step],
        seen: Feeds,
        judged: Feeds,
        judge: OutputJudge,
        references: Sequence[Mapping[str, np.ndarray]],
        known: dict[tuple[str, ...], float],
    ) -> float:
        """The mean error of the outputs after a trial."""
        trial = dataclasses.replace(
            work, plan=copy.deepcopy(work.plan), observed=seen, linears=list(work.linears), reports=[], statistics={}
        )
        with _restored(work.model):
            effective: tuple[str, ...] = ()
            for step in steps:
                before = len(trial.reports)
                work.run([step], trial)
                if any(report.done for report in trial.reports[before:]):
                    effective += (f"{type(step).__name__} {vars(step)}",)
            if effective in known:
                return known[effective]
            work.run(self.then, trial)
            model = work.model.clone()
        known[effective] = float(losses_of(model, trial.plan, judge, references, judged).mean())
        return known[effective]


@contextlib.contextmanager
def _restored(model: ir.Model) -> Iterator[None]:
    """Let constants hold afterwards what they hold now."""
    held = held_constants(model.graph)
    try:
        yield
    finally:
        put_back(model.graph, held)


def _halves(feeds: Feeds, count: int) -> tuple[Feeds, Feeds]:
    """Two lots of so many inputs, evenly spread, none in both if there are enough."""
    places = spread(len(feeds), 2 * count)
    return Selection(feeds, places[::2]), Selection(feeds, places[1::2] or places)
