# SPDX-License-Identifier: Apache-2.0
"""Each site gets the codes, of several ways to choose them, that cost least with the others in float."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import BestCodes, Ranges, Select, best_codes
from samq_onnx.passes.lift import lift
from samq_onnx.passes.lower.targets import TARGETS
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.plan import LinearPlan
from tests.calibrate.test_two_streams import chain, feeds
from tests.conftest import relative_error, run_model

DEPTH = 3
WAYS = {name: Ranges(activation=name, weight="mse", probabilities="uniform") for name in ("omse", "percentile")}


def _work(bits: int) -> Work:
    model = chain(DEPTH)
    prepared = Preparation(model, bits)
    work = begin(prepared, identify(model, "chain"), feeds(3), Scheme(Widths(bits, bits)), target="samq")
    work.run([Select()], work)
    return work


def _cost(bits: int, site: str, codes: LinearPlan) -> float:
    """Mean squared error of the output where this site alone is quantized."""
    work = _work(bits)
    plan = dataclasses.replace(work.plan, linears={site: codes})
    TARGETS["samq"].lower(work.lifted, plan)
    errors = []
    for feed in feeds(3):
        errors.append(relative_error(run_model(chain(DEPTH), feed), run_model(work.model, feed)) ** 2)
    return float(np.mean(errors))


@pytest.mark.parametrize("order", [("omse", "percentile"), ("percentile", "omse")])
def test_each_site_has_the_codes_that_cost_least(order: tuple[str, ...]) -> None:
    """At these widths neither way is best everywhere."""
    work, alone = _work(3), {}
    for name in order:
        other = _work(3)
        other.run([WAYS[name]], other)
        alone[name] = other.plan.linears
    work.run([BestCodes({name: WAYS[name] for name in order}, inputs=3)], work)
    report = work.reports[-1]
    chosen = dict(line.split(": ") for line in report.done)
    assert set(chosen) == set(alone["omse"]) and len(set(chosen.values())) == 2
    sites = {f"sites with {way}": list(chosen.values()).count(way) for way in set(chosen.values())}
    assert {name: value for name, value in report.facts.items() if name.startswith("sites")} == sites
    losses = [report.facts[f"loss with {way}"] for way in set(chosen.values())]
    assert 0 < report.facts["loss of the best of each"] < min(losses)  # each way is best somewhere
    for site, way in chosen.items():
        assert work.plan.linears[site] == alone[way][site]
        costs = {name: _cost(3, site, alone[name][site]) for name in order}
        assert costs[way] == min(costs.values()), (site, costs)


def test_a_way_for_all_sites_is_taken_where_these_cost_less_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole plans are judged as they run; here the outputs are said to be nearest with one of the ways alone."""
    work, real = _work(3), best_codes.losses_of
    work.run([BestCodes(WAYS, inputs=3)], work)
    facts = work.reports[-1].facts
    wholes = {name: facts[f"all sites, {name}"] for name in (best_codes.EACH, *WAYS)}
    assert min(wholes, key=lambda name: wholes[name]) == best_codes.EACH
    for name, way in WAYS.items():
        alone = _work(3)
        alone.run([way], alone)
        lowered = alone.model.clone()
        TARGETS["samq"].lower(lift(lowered), alone.plan)
        errors = [relative_error(run_model(chain(DEPTH), feed), run_model(lowered, feed)) ** 2 for feed in feeds(3)]
        assert wholes[name] == pytest.approx(np.mean(errors), rel=1e-3)
        monkeypatch.setattr(best_codes, "losses_of", lambda model, plan, *rest, w=alone.plan.linears: (
            np.zeros(1) if plan.linears == w else real(model, plan, *rest)
        ))  # fmt: skip
        again = _work(3)
        again.run([BestCodes(WAYS, inputs=3)], again)
        assert again.plan.linears == alone.plan.linears
        assert again.reports[-1].facts[f"sites with {name}"] == len(again.linears)


def test_the_first_way_wins_where_all_are_alike() -> None:
    work = _work(4)
    work.run([BestCodes({"one": WAYS["omse"], "two": WAYS["omse"]}, inputs=1)], work)
    facts = work.reports[-1].facts
    assert facts.pop("sites with one") == len(work.linears)
    assert set(facts.values()) == {0}  # nothing was tried
