# SPDX-License-Identifier: Apache-2.0
"""Learn in several ways, and keep what is best on inputs that nothing was learned from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from samq_onnx.analysis.judge import OutputJudge
from samq_onnx.families import Role
from samq_onnx.feeds import Selection, places_of
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.reconstruct import may_learn
from samq_onnx.methods.steps.trial import losses_of, references_of
from samq_onnx.passes.graph import held_constants, put_back
from samq_onnx.passes.report import Report
from samq_onnx.plan import QuantPlan
from samq_onnx.reconstruct.affordable import affordable
from samq_onnx.sampling import spread

__all__ = ["KeepBetter"]

EVERY = 4  # of so many images one is held out
IMAGES, PROMPTS = 8, 48  # that are judged, at most
FEWEST = 1 / 2  # of these, where time is short
JUDGING = 5.0  # passes through the float model that an input takes, before and after
OF_TIME = 0.15  # for these
AS_IT_IS = "as it is"

State = tuple[QuantPlan, dict[str, ir.TensorProtocol | None]]


class KeepBetter(Step):
    """The plan and the weights after that list of steps, of several, whose outputs are nearest to the float ones.

    Every fourth image is held out: steps do not see it, and alternatives are judged on these alone, by the error of the
    embedding or by how little masks overlap the float ones, never by labels. What was there before competes too, and
    stays where the gain is not larger than its standard error over these images: they are few, and what is learned may
    be better on them by chance. The time that is left is shared evenly; where no time is given, nothing is learned.

    Args:
        alternatives: name -> steps that change the plan and weights, and no tensor of the float model.
    """

    name = "learning"
    reads_plan = True

    def __init__(self, alternatives: Mapping[str, Sequence[Step]]) -> None:
        self.alternatives = alternatives

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        if work.effort.minutes is None or not may_learn(work, report):
            return report
        seen, held_out = _halves(work)
        if not seen or not held_out:
            report.refuse(work.label, "there are too few images to hold some out")
            return report
        judge = OutputJudge(work.part)
        model = work.model.clone()
        put_back(model.graph, work.exact)
        exact_feeds = work.float_feeds()
        most = PROMPTS if work.part.role is Role.DECODER else IMAGES
        count = affordable(
            work.lifted, work.plan, Selection(exact_feeds, held_out), most, round(FEWEST * most),
            passes=JUDGING, share=OF_TIME, effort=work.effort, kept=work.kept, label=f"{work.label}: held out",
            given=list(self.alternatives),
        )  # fmt: skip
        held_out = [held_out[place] for place in spread(len(held_out), count)]
        floats = references_of(model, judge, Selection(exact_feeds, held_out), label=f"{work.label}: held out")
        fed = Selection(work.feeds, held_out)
        states = {AS_IT_IS: _state(work)}
        started = work.effort.clock.now()
        losses = {AS_IT_IS: losses_of(work.model.clone(), work.plan, judge, floats, fed)}
        judged = work.effort.clock.now() - started
        for number, (name, steps) in enumerate(self.alternatives.items()):
            _restore(work, states[AS_IT_IS])
            left = len(self.alternatives) - number
            trial = dataclasses.replace(
                work,
                feeds=Selection(work.feeds, seen),
                float_feeds=lambda: Selection(exact_feeds, seen),
                effort=work.effort.part(1 / left, left * judged),
                linears=list(work.linears),
            )
            work.run(steps, trial)
            states[name] = _state(work)
            losses[name] = losses_of(work.model.clone(), work.plan, judge, floats, fed)
        report.facts = {name: float(each.mean()) for name, each in losses.items()}
        best = min(report.facts, key=lambda name: report.facts[name])
        if not _surely_positive(losses[AS_IT_IS] - losses[best], np.array(places_of(work.feeds))[held_out]):
            best = AS_IT_IS
        _restore(work, states[best])
        report.done.append(best)
        return report


def _surely_positive(gains: np.ndarray, images: np.ndarray) -> bool:
    """Whether gains [inputs] are larger than their standard error, over ``images`` [inputs]; of one there is none."""
    means = np.array([gains[images == image].mean() for image in np.unique(images)])
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else 0.0
    return bool(means.mean() > error)


def _halves(work: Work) -> tuple[list[int], list[int]]:
    """Indices of inputs that are learned from, and of those that are judged; none of one image in both."""
    places = places_of(work.feeds)
    held = [index for index, place in enumerate(places) if place % EVERY == EVERY - 1]
    seen = [index for index, place in enumerate(places) if place % EVERY != EVERY - 1]
    return seen, held


def _state(work: Work) -> State:
    return copy.deepcopy(work.plan), held_constants(work.model.graph)


def _restore(work: Work, state: State) -> None:
    plan, constants = copy.deepcopy(state[0]), state[1]
    work.plan.linears, work.plan.attentions = plan.linears, plan.attentions
    put_back(work.model.graph, constants)
