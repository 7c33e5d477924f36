# SPDX-License-Identifier: Apache-2.0
"""Of several alternatives the one that measures best is taken, and nothing of the trials stays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps import BestOf, Ranges, Select
from samq_onnx.methods.steps.best_of import _halves
from samq_onnx.passes.graph import constant, replace_constant
from samq_onnx.passes.report import Report
from samq_onnx.pipeline import Preparation, begin
from tests.calibrate.test_two_streams import chain, feeds

RANGES = Ranges(activation="omse", weight="mse", probabilities="uniform")


class Grow(Step):
    """Multiply the first weight, which no fold would."""

    name = "grow"
    edits = True

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self.seen: list[int] = []

    def apply(self, work: Work) -> Report:
        weight = work.lifted.linears[0].weight
        replace_constant(weight, constant(weight) * self._factor)
        self.seen.append(len(work.observed))
        return Report(self.name, [str(self._factor)])


@dataclasses.dataclass
class State:
    """What a step may change."""

    constants: dict[str, np.ndarray]
    plan: str
    statistics: set[str]
    linears: list[str]

    @classmethod
    def of(cls, work: Work) -> State:
        initializers = work.model.graph.initializers.items()
        return cls(
            {name: np.array(value.const_value.numpy()) for name, value in initializers if value.const_value},
            repr(work.plan),
            {repr(key) for key in work.statistics},
            [linear.name for linear in work.linears],
        )


def _work(count: int = 12) -> Work:
    model = chain(2)
    prepared = Preparation(model, 4)
    work = begin(prepared, identify(model, "chain"), feeds(count), Scheme(Widths(4, 4)), target="samq")
    work.run([Select()], work)
    return work


@pytest.mark.parametrize("places", [(0, 1, 2), (2, 1, 0)])
def test_the_best_is_taken_and_done_with_all_inputs(places: tuple[int, ...]) -> None:
    work = _work()
    steps = [Grow(4.0), Grow(1.1), Grow(2.0)]
    before = constant(work.lifted.linears[0].weight).copy()
    best = BestOf("factors", {f"number {n}": [steps[n]] for n in places}, [RANGES])
    work.run([best], work)
    report = work.reports[-1]
    assert report.name == "factors" and report.done == ["number 1"] and not report.refused
    assert list(report.facts) == [f"number {n}" for n in places]
    assert report.facts["number 0"] > 2 * report.facts["number 2"] > 4 * report.facts["number 1"] > 0
    np.testing.assert_array_equal(constant(work.lifted.linears[0].weight), before * np.float32(1.1))
    assert steps[1].seen == [2, 12] and steps[0].seen == steps[2].seen == [2]
    assert [one.name for one in work.reports[-2:]] == ["grow", "factors"]
    assert not work.plan.linears  # which is left to the steps behind it


def test_nothing_of_trials_stays() -> None:
    work, other = _work(), _work()
    for one in (work, other):
        one.run([RANGES], one)
    before, objects = State.of(work), {n: v.const_value for n, v in work.model.graph.initializers.items()}
    nodes = [node.name for node in work.model.graph]
    minmax = dataclasses.replace(RANGES, activation="minmax")
    work.run([BestOf("nothing", {"as it is": [], "grown": [Grow(4.0), minmax]}, [RANGES])], work)
    after = State.of(work)
    assert work.reports[-1].done == ["as it is"]
    assert after.plan == before.plan and after.linears == before.linears and not after.statistics
    assert all(value.const_value is objects[name] for name, value in work.model.graph.initializers.items())
    assert [node.name for node in work.model.graph] == nodes
    assert [report.name for report in work.reports] == [*(report.name for report in other.reports), "nothing"]


def test_a_tie_is_for_the_first() -> None:
    work = _work()
    work.run([BestOf("ties", {"one": [], "two": [Grow(1.0)], "three": []}, [RANGES])], work)
    report = work.reports[-1]
    assert report.done == ["one"] and len(set(report.facts.values())) == 1


def test_alternatives_may_be_about_the_plan_alone() -> None:
    work = _work()
    wide = Ranges(activation="minmax", weight="minmax", probabilities="uniform")
    work.run([BestOf("ranges", {"wide": [wide], "fitting": [RANGES]}, [])], work)
    other = _work()
    other.run([RANGES], other)
    assert work.reports[-1].done == ["fitting"] and work.plan == other.plan


def test_one_may_lie_inside_another() -> None:
    work = _work()
    inner = BestOf("inner", {"bad": [Grow(3.0)], "good": []}, [RANGES])
    before = constant(work.lifted.linears[0].weight).copy()
    work.run([BestOf("outer", {"worse": [Grow(2.0), inner], "better": [inner]}, [RANGES])], work)
    assert [(one.name, one.done) for one in work.reports[-2:]] == [("inner", ["good"]), ("outer", ["better"])]
    np.testing.assert_array_equal(constant(work.lifted.linears[0].weight), before)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 40])
def test_inputs_that_are_seen_are_not_judged(count: int) -> None:
    inputs = [{"x": np.array(n)} for n in range(count)]
    seen, judged = ({int(feed["x"]) for feed in half} for half in _halves(inputs, 2))
    assert seen and judged and max(len(seen), len(judged)) <= 2
    assert not seen & judged if count > 1 else seen == judged
    if count >= 4:
        assert len(seen) == len(judged) == 2 and {0, count - 1} <= seen | judged
