# SPDX-License-Identifier: Apache-2.0
"""GPTQ in sequence and the repair of outputs, as methods use them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import samq_onnx
from samq_onnx.families import Part, identify
from samq_onnx.methods import Method, Scheme, Widths
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import Gptq, GptqSettings, Ranges, RepairOutputs, RepairSettings
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import lift, simplify
from samq_onnx.pipeline import Outcome, lower_model, quantize_model
from samq_onnx.plan import QuantPlan
from samq_onnx.plan_file import read_plans, write_plans
from tests.calibrate.test_two_streams import chain, feeds
from tests.conftest import run_model

BITS = "w4a4"
RANGES = Ranges(activation="omse", weight="mse", probabilities="uniform")


class Steps(Method):
    """A method of the steps given."""

    name = "steps"

    def __init__(self, *steps: Step) -> None:
        self._steps = [RANGES, *steps]

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return self._steps


def _quantized(model: ir.Model, *steps: Step) -> Outcome:
    part = identify(model, "chain")
    return quantize_model(model, part, feeds(16), Steps(*steps), Scheme(Widths.parse(BITS)), target="samq")


def _error(made: ir.Model, depth: int) -> float:
    """Of the output on the calibration inputs, relative to its variance."""
    wanted = np.stack([run_model(chain(depth), feed)[0] for feed in feeds(16)])
    found = np.stack([run_model(made, feed)[0] for feed in feeds(16)])
    return float(np.mean((found - wanted) ** 2) / wanted.var())


def _codes(plan: QuantPlan, depth: int) -> list[np.ndarray]:
    """Weight codes of a plan for a chain."""
    model = chain(depth)
    simplify(model)
    found = []
    for linear in lift(model).linears:
        weight = plan.constants.get(linear.weight.name or "", constant(linear.weight))
        found.append(plan.linears[linear.name].weight.encode(weight, linear.out_axis))
    return found


def test_in_sequence_a_chain_loses_less() -> None:
    plain, sequential = (
        _error(_quantized(chain(6), Gptq(GptqSettings(sequential=one))).model, 6) for one in (False, True)
    )
    assert sequential < 0.9 * plain


@pytest.mark.parametrize("before", [[], [Gptq(GptqSettings())], [Gptq(GptqSettings(sequential=True))]])
def test_repair_keeps_codes_and_loses_less(before: list[Step]) -> None:
    without = _quantized(chain(2), *before)
    repaired = _quantized(chain(2), *before, RepairOutputs(RepairSettings()))
    for one, two in zip(_codes(without.plan, 2), _codes(repaired.plan, 2), strict=True):
        np.testing.assert_array_equal(one, two)
    assert _error(repaired.model, 2) < _error(without.model, 2)


def test_repair_as_part_of_gptq_is_repair_of_its_weights() -> None:
    once = _quantized(chain(1), Gptq(GptqSettings(sequential=True, repair=True)))
    after = _quantized(chain(1), Gptq(GptqSettings(sequential=True)), RepairOutputs(RepairSettings()))
    first = next(iter(once.plan.linears))  # the next one is rounded for what the first one gives by then
    assert once.plan.linears[first] == after.plan.linears[first]
    np.testing.assert_array_equal(once.plan.constants["mixing"], after.plan.constants["mixing"])


def test_repair_twice_is_repair_once() -> None:
    once = _quantized(chain(3), RepairOutputs(RepairSettings()))
    twice = _quantized(chain(3), RepairOutputs(RepairSettings()), RepairOutputs(RepairSettings()))
    for name, linear in once.plan.linears.items():
        np.testing.assert_allclose(linear.weight.scale, twice.plan.linears[name].weight.scale, rtol=1e-4)


def test_one_scale_for_all_channels_gets_offsets_alone() -> None:
    class OneScale(Step):
        name = "one scale"

        def apply(self, work):  # type: ignore[no-untyped-def]
            for name, linear in work.plan.linears.items():
                one = dataclasses.replace(linear.weight, scale=(max(linear.weight.scale),))
                work.plan.linears[name] = dataclasses.replace(linear, weight=one)
            return samq_onnx.passes.report.Report(self.name)

    outcome = _quantized(chain(2), OneScale(), RepairOutputs(RepairSettings()))
    without = _quantized(chain(2), OneScale())
    assert [linear.weight for linear in outcome.plan.linears.values()] == [
        linear.weight for linear in without.plan.linears.values()
    ]
    assert sum("share a scale" in line for report in outcome.reports for line in report.refused) == 3
    assert _error(outcome.model, 2) < _error(without.model, 2)


def test_a_plan_replays_byte_for_byte(tmp_path: Path) -> None:
    outcome = _quantized(chain(3), Gptq(GptqSettings(sequential=True, repair=True)))
    write_plans(tmp_path / "plan.json", {"model": outcome.plan})
    again = lower_model(chain(3), read_plans(tmp_path / "plan.json")["model"])
    assert ir.to_proto(again.model).SerializeToString(deterministic=True) == ir.to_proto(
        outcome.model
    ).SerializeToString(deterministic=True)


@pytest.mark.parametrize("method", ["gptq", "erq"])
def test_methods_quantize_both_parts(method: str, tiny_sam: Path, one_image: Path, tmp_path: Path) -> None:
    result = samq_onnx.quantize(tiny_sam, one_image, method=method, bits=BITS)
    for part in result.parts.values():
        (report,) = (report for report in part.reports if report.name == Gptq.name)
        assert report.done and not report.refused
    write_plans(tmp_path / "plan.json", result.plans)
    again = samq_onnx.lower(tiny_sam, read_plans(tmp_path / "plan.json"))
    for name, part in result.parts.items():
        one, two = (ir.to_proto(found.model).SerializeToString(deterministic=True) for found in (part, again.parts[name]))
        assert one == two
