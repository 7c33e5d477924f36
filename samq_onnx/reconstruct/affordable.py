# SPDX-License-Identifier: Apache-2.0
"""How many inputs there is time to go through, from how long one takes: those of large models take minutes.

The number is kept, so that a run that was killed and goes on has the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.calibrate.statistics.statistic import State, taken
from samq_onnx.calibrate.stream import Feed, run
from samq_onnx.passes.lift import Lifted
from samq_onnx.plan import QuantPlan
from samq_onnx.progress import write_line
from samq_onnx.reconstruct.effort import Effort, Kept
from samq_onnx.reconstruct.learned import digest

__all__ = ["affordable"]


class _Count(Statistic):
    """The number, and a collector of what the model gives."""

    def __init__(self, key: str, outputs: tuple[str, ...]) -> None:
        self._key, self.tensors = key, outputs
        self.count = 0

    @property
    def key(self) -> str:
        return f"inputs that there is time for: {self._key}"

    def update(self, *arrays: np.ndarray) -> None:
        """Nothing of it is needed."""

    def state(self) -> State:
        return {"count": np.array(self.count, np.float64)}

    def restore(self, state: State) -> None:
        count = float(taken(state, "count"))
        if count < 1 or not count.is_integer():
            raise ValueError("a number of inputs that cannot be")
        self.count = int(count)


def affordable(
    lifted: Lifted,
    plan: QuantPlan,
    feeds: Sequence[Feed],
    most: int,
    least: int,
    *,
    passes: float,
    share: float,
    effort: Effort,
    kept: Kept | None,
    label: str,
    given: object = None,
) -> int:
    """Of at most ``most`` inputs as many as there is time for, but ``least``; all where no time is given.

    Args:
        lifted: model, which one and two of ``feeds`` go through: the second is what one more takes.
        passes: like that one, which an input takes. share: of the time that is left, for all passes.
        label: of what the inputs are for. plan, given: what that depends on beside the model, as JSON can hold.

    Raises:
        UserError: the model does not run.
    """
    most = min(most, len(feeds))
    if effort.minutes is None or most <= least:
        return most
    outputs = tuple(value.name or "" for value in lifted.model.graph.outputs if value.producer() is not None)
    found = _Count(digest(lifted, plan, label, most, effort.minutes, effort.place(), given), outputs)
    if kept is None or not kept.restore(found):
        took = []
        for inputs in (1, 2):
            found.inputs, started = inputs, effort.clock.now()
            run(lifted.model, feeds, [found], label=f"{label}: how long a pass takes")
            took.append(effort.clock.now() - started)
        seconds = max(took[1] - took[0], took[1] / 8, 1e-9)
        found.count = min(most, max(least, math.floor(share * effort.left() / (passes * seconds))))
        if kept is not None:
            kept.keep(found)
    if found.count < most:
        write_line(f"{label}: {found.count} of {most} inputs, there is no time for more")
    return found.count
