# SPDX-License-Identifier: Apache-2.0
"""Choose the observer of each site by what the site alone costs at the model's output, or one for all sites."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from samq_onnx.analysis.judge import OutputJudge
from samq_onnx.analysis.sensitivity import Trial, sensitivity
from samq_onnx.analysis.sites import site_runs
from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.feeds import Selection
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps.ranges import Ranges
from samq_onnx.methods.steps.trial import losses_of, references_of
from samq_onnx.passes.report import Report
from samq_onnx.plan import AttentionPlan, LinearPlan
from samq_onnx.sampling import spread

__all__ = ["BestCodes"]

EACH = "each its best"

Tables: TypeAlias = tuple[dict[str, LinearPlan], dict[str, AttentionPlan]]


class BestCodes(Step):
    """The plan, site by site, of several ways to choose ranges: that with which the site, quantized alone, costs least.

    Errors of many sites add up otherwise than alone, the more so the larger they are. Therefore this plan and that of
    each way for all sites are tried as a whole too, and the one whose outputs are nearest to the float ones stays.

    Args:
        ways: name -> ranges. The first one wins where nothing is better. inputs: that sites are tried on; whole plans
            on twice as many.
    """

    name = "ranges of each site"

    def __init__(self, ways: dict[str, Ranges], inputs: int) -> None:
        self.ways, self.inputs = ways, inputs

    def wants(self, work: Work) -> Sequence[Statistic]:
        wanted = {one.key: one for way in self.ways.values() for one in way.wants(work)}
        return list(wanted.values())

    def apply(self, work: Work) -> Report:
        report = Report(self.name)
        plans = {}
        for name, way in self.ways.items():
            way.apply(work)
            plans[name] = copy.copy(work.plan.linears), copy.copy(work.plan.attentions)
        runs = site_runs(work.lifted, work.plan, {})
        trials: dict[str, list[Trial]] = {}
        trial_of: dict[str, dict[str, str]] = {}  # site -> name of a way -> of the trial with its codes
        for site in runs:
            found = {name: linears.get(site) or attentions[site] for name, (linears, attentions) in plans.items()}
            different = {codes: name for name, codes in reversed(found.items())}
            trials[site] = [Trial(name, codes) for codes, name in reversed(different.items())]
            trial_of[site] = {name: different[codes] for name, codes in found.items()}
        places = spread(len(work.observed), self.inputs)
        open_sites = {site: tried for site, tried in trials.items() if len(tried) > 1}
        seen, judge = Selection(work.observed, places), OutputJudge(work.part)
        losses = sensitivity(work.lifted, runs, open_sites, seen, judge, label=work.label, seconds=math.inf).losses
        best = {}
        for site, tried in trials.items():
            costs = {one.name: losses[site][one.name].cost for one in tried} if site in losses else {}
            best[site] = min(costs, key=lambda name: costs[name]) if costs else tried[0].name
        alternatives = {EACH: best, **{name: dict.fromkeys(best, name) for name in self.ways}}
        if open_sites:
            whole = self._whole(work, plans, alternatives, judge)
            report.facts |= {f"all sites, {name}": loss for name, loss in whole.items()}
            best = alternatives[min(whole, key=lambda name: whole[name])]
        _take(work, plans, best)
        report.done += [f"{site}: {name}" for site, name in best.items()]
        report.facts |= {f"sites with {name}": float(count) for name, count in Counter(best.values()).items()}
        for name in self.ways:
            report.facts[f"loss with {name}"] = sum(loss[trial_of[site][name]].cost for site, loss in losses.items())
        report.facts["loss of the best of each"] = sum(
            min(one.cost for one in loss.values()) for loss in losses.values()
        )
        return report

    def _whole(
        self, work: Work, plans: Mapping[str, Tables], alternatives: Mapping[str, Mapping[str, str]], judge: OutputJudge
    ) -> dict[str, float]:
        """Mean loss of the model with each alternative, site -> way."""
        seen = Selection(work.observed, spread(len(work.observed), 2 * self.inputs))
        references = references_of(work.model, judge, seen, label=f"{work.label}: {self.name}")
        found = {}
        for name, ways in alternatives.items():
            _take(work, plans, ways)
            loss = float(losses_of(work.model.clone(), work.plan, judge, references, seen).mean())
            found[name] = loss if math.isfinite(loss) else math.inf
        return found


def _take(work: Work, plans: Mapping[str, Tables], ways: Mapping[str, str]) -> None:
    """Let each site have the codes of its way."""
    for site, name in ways.items():
        linears, attentions = plans[name]
        if site in linears:
            work.plan.linears[site] = linears[site]
        else:
            work.plan.attentions[site] = attentions[site]
