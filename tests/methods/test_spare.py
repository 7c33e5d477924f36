# SPDX-License-Identifier: Apache-2.0
"""The sites that cost most stay float, no more of them than may, and the plan says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.families import Part, identify
from samq_onnx.methods import Method, Scheme, Widths, configured
from samq_onnx.methods.step import Feeds, Step, Work
from samq_onnx.methods.steps import Ranges, Spare
from samq_onnx.models import load_model
from samq_onnx.passes.lift import lift, simplify
from samq_onnx.passes.report import Report
from samq_onnx.pipeline import Outcome, lower_model, quantize_model
from samq_onnx.plan_file import read_plans, write_plans
from tests.calibrate.test_two_streams import chain, feeds
from tests.conftest import Feed, relative_error, run_model
from tests.fuzz import tiny

DEPTH = 4  # of the chain, which has one linear more, all alike
DEAR = 2  # the place of the one that has few bits
EIGHT = Scheme(Widths(8, 8))
RANGES = Ranges(activation="omse", weight="mse", probabilities="uniform")


class Uneven(Step):
    """Ranges, one site of which has two bits, as no user asks for."""

    name = "uneven ranges"

    def __init__(self, dear: str) -> None:
        self._sites = {dear: {"weight": 2, "input": 2}}

    def wants(self, work: Work) -> Sequence[Statistic]:
        return RANGES.wants(work)

    def apply(self, work: Work) -> Report:
        return RANGES.apply(dataclasses.replace(work, scheme=Scheme(Widths(8, 8), sites=self._sites)))


class Steps(Method):
    """Ranges, and sites that stay float."""

    name = "steps"

    def __init__(self, ranges: Step, spare: Spare) -> None:
        self._steps = [ranges, spare]

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return self._steps


def _quantized(
    model: ir.Model, inputs: Feeds, spare: Spare, scheme: Scheme, ranges: Step = RANGES
) -> tuple[Outcome, Report]:
    outcome = quantize_model(model, identify(model, "model"), inputs, Steps(ranges, spare), scheme, target="samq")
    (report,) = (report for report in outcome.reports if report.name == Spare.name)
    return outcome, report


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The linears of a chain, in order."""
    model = chain(DEPTH)
    simplify(model)
    return [linear.name for linear in lift(model).linears]


def test_the_dearest_stays_float_and_the_plan_says_why(names: list[str]) -> None:
    outcome, report = _quantized(chain(DEPTH), feeds(4), Spare(0.99, inputs=2), EIGHT, Uneven(names[DEAR]))
    assert report.done == [names[DEAR]]  # though others might
    assert report.facts["share of products in float"] == pytest.approx(1 / len(names))
    assert report.facts[names[DEAR]] > 0.9 * report.facts["loss of all, one by one"]
    assert set(outcome.plan.linears) == set(names) - {names[DEAR]}
    assert list(outcome.plan.kept_float) == [names[DEAR]]
    assert "quantized alone it costs" in outcome.plan.kept_float[names[DEAR]]
    assert "saves 20.0% of the products" in outcome.plan.kept_float[names[DEAR]]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.19, 0), (0.21, 1), (0.59, 2), (0.61, 3), (0.99, 4)])
def test_no_more_than_the_share(names: list[str], share: float, count: int) -> None:
    outcome, report = _quantized(chain(DEPTH), feeds(2), Spare(share, inputs=1), Scheme(Widths(3, 3)))
    assert len(report.done) == count and set(outcome.plan.linears) == set(names) - set(report.done)
    assert report.facts["share of products in float"] == pytest.approx(count / len(names))
    assert report.facts["share of products in float"] <= share
    losses = [report.facts[name] for name in report.done]
    assert losses == sorted(losses, reverse=True)


def test_a_width_that_was_asked_for_is_kept(names: list[str]) -> None:
    asked = Scheme(Widths(8, 8), sites={names[DEAR]: {"weight": 2, "input": 2}})
    _, report = _quantized(chain(DEPTH), feeds(2), Spare(0.99, inputs=1), asked)
    assert report.done and names[DEAR] not in report.done


def test_what_stays_float_helps(names: list[str]) -> None:
    def error(share: float) -> float:
        outcome, _ = _quantized(chain(DEPTH), feeds(4), Spare(share, inputs=2), EIGHT, Uneven(names[DEAR]))
        wanted, found = ([run_model(model, feed)[0] for feed in feeds(4)] for model in (chain(DEPTH), outcome.model))
        return relative_error(wanted, found)

    assert error(0.3) < 0.2 * error(0.0)


def _encoder() -> ir.Model:
    return ir.from_proto(tiny.encoder())


def _images() -> list[Feed]:
    random = np.random.default_rng(0)
    return [{"image": random.normal(size=(1, 3, tiny.SIDE, tiny.SIDE)).astype(np.float32)} for _ in range(2)]


def test_attention_stays_float_too() -> None:
    outcome, report = _quantized(_encoder(), _images(), Spare(0.5, inputs=2), Scheme(Widths(4, 4)))
    (attention,) = (node.name for node in outcome.model.graph if node.op_type.startswith("Attention"))
    assert attention in report.done and not outcome.plan.attentions
    assert outcome.plan.linears and not set(report.done) & set(outcome.plan.linears)


def test_convolutions_alone() -> None:
    outcome, report = _quantized(_encoder(), _images(), Spare(0.5, inputs=2, convolutions=True), Scheme(Widths(4, 4)))
    kinds = {node.name: node.op_type for node in outcome.model.graph}
    assert [kinds[name] for name in report.done] == ["Conv"] and len(outcome.plan.attentions) == 1


def test_a_plan_replays_byte_for_byte(tmp_path: Path) -> None:
    outcome, report = _quantized(_encoder(), _images(), Spare(0.5, inputs=2), Scheme(Widths(4, 4)))
    assert report.done
    write_plans(tmp_path / "plan.json", {"model": outcome.plan})
    again = lower_model(_encoder(), read_plans(tmp_path / "plan.json")["model"])
    one, two = (ir.to_proto(made.model).SerializeToString(deterministic=True) for made in (outcome, again))
    assert one == two


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_strict_schemes_leave_nothing_in_float(part: str, tiny_sam: Path) -> None:
    found = identify(load_model(tiny_sam / f"{part}.onnx"), part)
    widths = Widths(6, 6)
    for strict in (False, True):
        steps = configured("auto").steps(found, Scheme(widths, strict=strict))
        assert any(isinstance(step, Spare) for step in steps) != strict
