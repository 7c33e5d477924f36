# SPDX-License-Identifier: Apache-2.0
"""How many iterations there is time for, from how long they take: planned unit by unit, and corrected within a unit.

A plan gives all units the same number of iterations. What one takes is measured in a unit before it is learned; in
units that come later it is what one of their kind took for its work, or, of a new kind, between that and what others
took. So each unit corrects the plan. Where iterations take longer or shorter than they did when they were measured, a
unit still ends in time: each of them then stands for more or for less than one step of the schedule.

What was planned is kept before anything is learned by it. A run that is killed there and begun again repeats it, and
its clock goes on from there: the same iterations, so the same result to the bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.calibrate.statistics.statistic import State, taken
from samq_onnx.reconstruct.effort import Effort, Kept

__all__ = ["Pace", "Planned", "TimePlan", "UnitTime"]

USED = 0.98  # of the time that is left: the rest is for what cannot be foreseen
LOOKS = 16  # at the clock, in a descent
NEAR = 0.05  # a pace that is off by less stays


class Planned(Statistic):
    """What was decided about the iterations of a unit.

    Attributes:
        iterations: of its schedule. seconds: that one took when it was measured. others: that it needs beside them.
        at: when they were planned. until: when they have to be done. deadline: of all units. All by the run's clock.
        paces: (number of iterations, steps of the schedule that each one after these stands for), in order.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self.tensors = ()
        self.iterations = 0
        self.seconds = self.others = self.at = self.until = self.deadline = 0.0
        self.paces: list[tuple[int, float]] = []

    @property
    def key(self) -> str:
        return f"iterations of {self._key}"

    def update(self, *arrays: np.ndarray) -> None:
        raise NotImplementedError

    def state(self) -> State:
        numbers = [self.iterations, self.seconds, self.others, self.at, self.until, self.deadline]
        return {"numbers": np.array(numbers, np.float64), "paces": np.array(self.paces, np.float64).reshape(-1, 2)}

    def restore(self, state: State) -> None:
        numbers, paces = taken(state, "numbers", 6), taken(state, "paces", None, 2)
        if numbers[0] < 1 or numbers[1] <= 0 or (paces <= 0).any():
            raise ValueError("iterations that cannot be")
        iterations, self.seconds, self.others, self.at, self.until, self.deadline = numbers.tolist()
        self.iterations = int(iterations)
        self.paces = [(int(step), pace) for step, pace in paces.tolist()]


class TimePlan:
    """Iterations of units that are learned one after the other.

    Args:
        units: kind and work of each. most: iterations of a unit, where there is time for more.
    """

    def __init__(self, effort: Effort, units: Sequence[tuple[str, float]], most: int) -> None:
        self.effort, self.most = effort, most
        self._units = list(units)
        self._seconds: dict[int, float] = {}  # of an iteration, by number of the unit
        self._others: dict[int, float] = {}

    def take(self, number: int, planned: Planned) -> None:
        """Be where a run was that had planned so for a unit."""
        self.effort = dataclasses.replace(self.effort, deadline=planned.deadline)
        self.effort.clock.catch_up(planned.at)
        self._seconds[number], self._others[number] = planned.seconds, planned.others

    def decide(self, number: int, seconds: float, before: float, after: float, planned: Planned) -> None:
        """Plan a unit, whose iterations take ``seconds``; ``before`` and ``after`` were and will be needed for else."""
        self._seconds[number], self._others[number] = seconds, before + after
        later = range(number + 1, len(self._units))
        others = after + len(later) * float(np.mean(list(self._others.values())))
        left = max(0.0, USED * self.effort.left() - others)
        each = left / (seconds + sum(map(self._expected, later)))
        planned.iterations = max(1, min(self.most, math.floor(each)))
        planned.seconds, planned.others = seconds, before + after
        planned.at, planned.deadline = self.effort.clock.now(), self.effort.deadline
        planned.until = planned.at + each * seconds

    def _expected(self, number: int) -> float:
        """Seconds of an iteration of a unit that was not measured yet."""
        kind, work = self._units[number]
        rates = {done: seconds / self._units[done][1] for done, seconds in self._seconds.items()}
        alike = [rate for done, rate in rates.items() if self._units[done][0] == kind]
        if alike:
            return work * float(np.mean(alike))
        return float(np.mean([work * np.mean(list(rates.values())), np.mean(list(self._seconds.values()))]))


class UnitTime:
    """The time of one unit of a plan: as many iterations as the recipe has where no minutes are given.

    Args:
        key: names the unit, and all that it is learned from. kept: where what is planned waits for a run that goes on.
    """

    def __init__(self, plan: TimePlan, number: int, key: str, kept: Kept | None) -> None:
        self._plan, self._number, self._kept = plan, number, kept
        self._planned = Planned(key)
        self._known = self._bound and kept is not None and kept.restore(self._planned)

    @property
    def _bound(self) -> bool:
        return self._plan.effort.minutes is not None

    def resume(self) -> None:
        """Go on where a run was killed, if one was."""
        if self._known:
            self._plan.take(self._number, self._planned)

    def iterations(self, measure: Callable[[], float], before: float, after: float) -> int:
        """How many there are; ``measure`` gives the seconds of one, the others as `TimePlan.decide`."""
        if not self._bound:
            return self._plan.most
        if not self._known:
            clock = self._plan.effort.clock
            began = clock.now()
            seconds = max(measure(), 1e-9)
            self._plan.decide(self._number, seconds, before + clock.now() - began, after, self._planned)
            if self._kept is not None:
                self._kept.keep(self._planned)
        return self._planned.iterations

    def pace(self, steps: int, others: int = 0, begun: int = 0) -> Pace | None:
        """Of a descent of so many steps, before ``others`` of the unit; ``begun`` iterations of it are done."""
        if not self._bound:
            return None
        now = self._plan.effort.clock.now()
        until = now + (self._planned.until - now) * steps / (steps + others)
        most = max(steps, round(self._plan.most * steps / self._planned.iterations))
        return Pace(self._plan.effort, until, most, self._planned, self._kept, begun)


class Pace:
    """How many steps of a schedule each iteration of a descent stands for.

    Args:
        until: when the descent has to be done, by the clock. most: iterations of it.
        planned: of its unit, where changes are noted, and kept in ``kept``. begun: iterations of the unit before it.
    """

    def __init__(
        self, effort: Effort, until: float, most: int, planned: Planned, kept: Kept | None, begun: int = 0
    ) -> None:
        self._clock, self._until, self._most = effort.clock, until, most
        self._planned, self._kept, self._begun = planned, kept, begun
        self._known = {iteration - begun: pace for iteration, pace in planned.paces if iteration >= begun}
        self._now, self.done = 1.0, 0
        self._looked = 0, self._clock.now()

    def steps(self, position: float, total: int) -> float:
        """Of the iteration just done; ``position`` of ``total`` steps were behind it."""
        self.done += 1
        steps = self._now
        if self.done in self._known:
            self._now = self._known[self.done]
        elif self.done > max(self._known, default=0) and self.done % max(1, total // LOOKS) == 0:
            self._look(total - position - steps)
        return steps

    def _look(self, open_steps: float) -> None:
        done, since = self._looked
        self._looked = self.done, self._clock.now()
        seconds = max((self._looked[1] - since) / (self.done - done), 1e-9)
        iterations = min((self._until - self._looked[1]) / seconds, self._most - self.done)
        wanted = open_steps / max(1.0, iterations)
        if wanted > 0 and abs(wanted / self._now - 1) > NEAR:
            self._now = wanted
            self._planned.paces.append((self._begun + self.done, wanted))
            if self._kept is not None:
                self._kept.keep(self._planned)
