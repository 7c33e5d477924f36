# SPDX-License-Identifier: Apache-2.0
"""Learning keeps to the minutes that are given, whatever else the machine does, and repeats what it had planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.errors import UserError
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import KeepBetter, LearnUnits, Reconstruct
from samq_onnx.plan_file import plan_to_json
from samq_onnx.reconstruct import affordable as affordable_module
from samq_onnx.reconstruct import effort, engine, trainer
from samq_onnx.reconstruct.affordable import affordable
from samq_onnx.reconstruct.effort import Effort
from samq_onnx.reconstruct.pace import Pace, Planned, TimePlan, UnitTime
from samq_onnx.reconstruct.recipe import Phase, Recipe
from samq_onnx.reconstruct.reconstruction import UnitLoss
from tests.reconstruct.test_engine import planned

MINUTES = 1.0
MANY = Recipe("module", (Phase(8000, rounding=True), Phase(2000, scales=True)), 10_000)


class FakeClock:
    """Seconds that pass when something is done; ``load`` says how much longer it takes, by the time of a run."""

    def __init__(self, patch: pytest.MonkeyPatch, load: Callable[[float], float] = lambda now: 1.0) -> None:
        self._now, self._load, self.done = 1000.0, load, 0
        patch.setattr(effort.time, "monotonic", lambda: self._now)
        self.bound = Effort.of(MINUTES)

    def spend(self, seconds: float) -> None:
        self._now += seconds * self._load(self.bound.clock.now())

    def slow(self, patch: pytest.MonkeyPatch, owner: type, name: str, seconds: Callable[[object], float]) -> None:
        """Let a method take so long, which depends on its object."""
        real = getattr(owner, name)

        def slowed(this: object, *arguments: object) -> object:
            self.spend(seconds(this))
            self.done += 1
            return real(this, *arguments)

        patch.setattr(owner, name, slowed)


def of_unit(learner: object) -> float:
    """An iteration of an attention takes twice as long as one of another unit."""
    return 0.4 if "attention" in learner.unit.kind else 0.2  # type: ignore[attr-defined]


def half_busy(now: float) -> float:
    return 2.5 if 20 < now < 50 else 1.0


@dataclasses.dataclass
class Memory:
    """What is kept, as a file would."""

    states: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def restore(self, statistic: Statistic) -> bool:
        if statistic.key in self.states:
            statistic.restore(self.states[statistic.key])
        return statistic.key in self.states

    def keep(self, statistic: Statistic) -> None:
        self.states[statistic.key] = {name: np.array(array) for name, array in statistic.state().items()}


def learned(work: Work, bound: Effort, kept: Memory | None = None, recipe: Recipe = MANY) -> list[UnitLoss]:
    return engine.reconstruct_units(
        work.lifted,
        work.plan,
        recipe,
        work.feeds,
        work.feeds,
        exact=work.exact,
        label="encoder",
        effort=bound,
        kept=kept,
    )


def test_the_time_of_a_part() -> None:
    bound = Effort.of(1.0)
    assert bound.left() == pytest.approx(60, abs=1) and bound.over is None
    assert bound.part(0.5, 20.0).left() == pytest.approx(20, abs=1)
    assert bound.part(0.5).part(0.5).clock is bound.clock
    assert Effort().part(0.5) == Effort() and Effort().over is None
    bound.clock.catch_up(61.0)
    assert bound.over == "what comes before learning took all of its share of 1 minutes; nothing is learned"
    bound.clock.catch_up(30.0)
    assert bound.left() == pytest.approx(-1, abs=1)


def test_every_unit_gets_as_many_iterations_as_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = FakeClock(monkeypatch).bound
    plan = TimePlan(bound, [("a", 1.0), ("b", 2.0), ("a", 3.0)], 1000)
    found = Planned("x")
    plan.decide(0, 0.1, 1.0, 2.0, found)  # 0.98 * 60 - 2 - 2 * 3 seconds for iterations of 0.1, 0.15 and 0.3
    assert found.iterations == int(50.8 / 0.55) and found.until == pytest.approx(50.8 / 5.5)
    plan.decide(2, 0.1, 1.0, 2.0, found)  # the last one has all that is left
    assert found.iterations == int(56.8 / 0.1)
    plan = TimePlan(bound, [("a", 1.0), ("b", 2.0), ("a", 3.0)], 1000)
    plan.decide(0, 0.1, 0.0, 0.0, found)
    plan.decide(1, 0.5, 0.0, 0.0, found)  # the third is of the first one's kind
    assert found.iterations == int(58.8 / (0.5 + 0.3))
    plan.decide(1, 1e3, 0.0, 0.0, found)
    assert found.iterations == 1
    plan.decide(1, 1e-6, 0.0, 0.0, found)
    assert found.iterations == 195  # of the third, too
    plan.most = 100
    plan.decide(1, 1e-6, 0.0, 0.0, found)
    assert found.iterations == 100
    unbound = UnitTime(TimePlan(Effort(), [("a", 1.0)], 7), 0, "x", None)
    assert unbound.iterations(lambda: 1.0, 1.0, 1.0) == 7 and unbound.pace(7) is None


@pytest.mark.parametrize(("factor", "iterations"), [(1.0, 160), (2.0, 80), (0.5, 320)])
def test_a_descent_ends_in_time(factor: float, iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tenth of 160 steps is walked as planned, the rest at the pace that is possible."""
    clock = FakeClock(monkeypatch)
    pace = Pace(clock.bound, 40.0, 1000, Planned("x"), None)
    position = 0.0
    while position < 160:
        clock.spend(factor * 40.0 / 160)
        position += pace.steps(position, 160)
    assert pace.done == pytest.approx(iterations, rel=0.04)
    assert clock.bound.clock.now() == pytest.approx(40, rel=0.04)


def test_a_pace_has_no_more_iterations_than_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    pace = Pace(clock.bound, 40.0, 200, Planned("x"), None)
    position = 0.0
    while position < 160:
        clock.spend(0.01)
        position += pace.steps(position, 160)
    assert pace.done == pytest.approx(200, abs=2)


@pytest.mark.parametrize("load", [lambda now: 1.0, half_busy], ids=["quiet", "half busy"])
def test_units_take_the_minutes_that_are_given(
    load: Callable[[float], float], tiny_sam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(monkeypatch, load)
    clock.slow(monkeypatch, engine._Learner, "_backward", of_unit)
    clock.slow(monkeypatch, engine._Learner, "_judge", lambda _: 1.0)
    found = learned(planned(tiny_sam), clock.bound)
    assert 0.9 * 60 <= clock.bound.clock.now() <= 60.01
    counts = [unit.iterations for unit in found]
    assert len(counts) == 3 and min(counts) > (0.6 if load is not half_busy else 0.2) * max(counts)


def test_units_that_there_is_no_time_for_stay_as_they_are(tiny_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    clock.slow(monkeypatch, engine._Learner, "_judge", lambda _: 30.0)
    work = planned(tiny_sam)
    before = plan_to_json(work.plan)["linears"]
    found = learned(work, clock.bound)
    assert [unit.refused for unit in found] == ["", "there was no time left for it", "there was no time left for it"]
    after = plan_to_json(work.plan)["linears"]
    last = work.linears[-1].name
    assert after[last] == before[last] and len(found) == 3


def test_a_whole_model_takes_them_too(tiny_sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, half_busy)
    clock.slow(monkeypatch, trainer._Training, "backward", lambda _: 1.6)
    work = planned(tiny_sam)
    work.effort = clock.bound
    work.run([Reconstruct()], work)
    assert 0.9 * 60 <= clock.bound.clock.now() <= 1.02 * 60


def test_alternatives_share_the_time_and_leave_some_to_judge_them(
    tiny_sam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(monkeypatch)
    clock.slow(monkeypatch, engine._Learner, "_backward", of_unit)
    losses_of = KeepBetter.apply.__globals__["losses_of"]

    def slow(*arguments: object) -> np.ndarray:
        clock.spend(6.0)
        return losses_of(*arguments)  # type: ignore[no-any-return]

    monkeypatch.setitem(KeepBetter.apply.__globals__, "losses_of", slow)
    work = planned(tiny_sam, images=8)
    work.effort = clock.bound
    learn = [LearnUnits(MANY)]
    work.run([KeepBetter({"one": learn, "two": learn})], work)
    assert set(work.reports[-1].facts) == {"as it is", "one", "two"}
    assert 0.9 * 60 <= clock.bound.clock.now() <= 60.01


def test_without_time_nothing_is_learned(tiny_sam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (LearnUnits(MANY), Reconstruct(), KeepBetter({"none": []})):
        work = planned(tiny_sam)
        work.effort = Effort.of(MINUTES)
        work.effort.clock.catch_up(70.0)
        before = plan_to_json(work.plan)
        work.run([step], work)
        assert (
            work.reports[-1].refused[0].endswith(f"encoder: {work.effort.over}") and plan_to_json(work.plan) == before
        )
        assert capsys.readouterr().err == f"encoder: {work.effort.over}\n"


class Killed(Exception):
    pass


@pytest.mark.parametrize("last", [30, 100, 190])
def test_a_run_that_goes_on_learns_what_the_whole_one_does(
    last: int, tiny_sam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in any unit, on a machine whose load changed before: the same iterations, and the same bits."""
    outcomes, real = [], engine._Learner._backward
    for killed in (None, last):
        with monkeypatch.context() as patch:
            clock, kept = FakeClock(patch, lambda now: 2.0 if 5 < now < 25 else 1.0), Memory()

            def or_die(this: engine._Learner, *arguments: object) -> float:
                if clock.done == killed:  # noqa: B023
                    raise Killed
                return real(this, *arguments)  # type: ignore[arg-type]

            patch.setattr(engine._Learner, "_backward", or_die)
            clock.slow(patch, engine._Learner, "_backward", of_unit)
            if killed is not None:
                with pytest.raises(Killed):
                    learned(planned(tiny_sam), clock.bound, kept)
                clock.bound = Effort.of(MINUTES)
            work = planned(tiny_sam)
            outcomes.append((learned(work, clock.bound, kept), plan_to_json(work.plan)))
    assert outcomes[0] == outcomes[1]


def test_what_is_kept_must_be_what_was_planned() -> None:
    found, again = Planned("x"), Planned("x")
    found.iterations, found.seconds, found.until, found.paces = 5, 0.25, 7.5, [(3, 1.5), (4, 0.1)]
    again.restore(found.state())
    assert vars(again) == vars(found)
    for name, array in (("numbers", np.zeros(6)), ("paces", np.zeros((1, 2))), ("numbers", np.ones(5))):
        with pytest.raises(ValueError, match=r"cannot be|numbers"):
            again.restore({**found.state(), name: array})


def test_a_gpu_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "_has_cuda", lambda: False)
    with pytest.raises(UserError, match="no GPU that torch can use"):
        Effort.of(None, device="cuda")
    assert Effort.of(None).place() == "cpu"


@pytest.mark.parametrize(("share", "count"), [(0.5, 6), (1.0, 10), (0.01, 3)])
def test_as_many_inputs_as_there_is_time_for(
    share: float, count: int, tiny_sam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass takes a second of 60, and opening the model three; an input takes four passes, of ten at most."""
    work, clock, kept, passes = planned(tiny_sam), FakeClock(monkeypatch), Memory(), []

    def slow(model: object, feeds: object, collectors: Sequence[Statistic], **more: object) -> None:
        inputs = collectors[0].inputs
        assert inputs is not None
        passes.append(clock.spend(3.0 + inputs))

    monkeypatch.setattr(affordable_module, "run", slow)
    feeds = list(work.feeds) * 20

    def found(bound: Effort, kept: Memory | None) -> int:
        return affordable(
            work.lifted, work.plan, feeds, 10, 3, passes=4.0, share=share, effort=bound, kept=kept, label="encoder"
        )  # fmt: skip

    assert found(clock.bound, kept) == count and len(passes) == 2
    clock.spend(50.0)
    assert found(clock.bound, kept) == count and len(passes) == 2  # one that goes on has the same
    assert found(Effort(), None) == 10 and len(passes) == 2
    assert affordable(
        work.lifted, work.plan, feeds[:3], 10, 3, passes=4.0, share=share, effort=clock.bound, kept=None, label="x"
    ) == 3  # fmt: skip


def test_a_number_of_inputs_that_cannot_be_is_refused() -> None:
    for count in (0.0, 2.5, -1.0):
        with pytest.raises(ValueError, match="cannot be"):
            affordable_module._Count("x", ("y",)).restore({"count": np.array(count)})
