# SPDX-License-Identifier: Apache-2.0
"""Reconstruct a quantized model: learn its weights and codes by gradients from its float self, without labels.

The quantized part of the graph runs in torch with simulated codes and comes near what the float model gives on the
calibration inputs, as `samq_onnx.reconstruct.objectives` measures it. The inputs of a decoder may come from a quantized
encoder while the targets come from the float one: then it also learns to live with the encoder's error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from samq_onnx.calibrate.stream import run
from samq_onnx.families import Part
from samq_onnx.passes.lift import Lifted
from samq_onnx.plan import QuantPlan
from samq_onnx.progress import write_line
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.descent import descend
from samq_onnx.reconstruct.effort import Effort, Kept
from samq_onnx.reconstruct.learned import Learned, digest
from samq_onnx.reconstruct.objectives import Objective, objective_of, relative_error
from samq_onnx.reconstruct.pace import TimePlan, UnitTime
from samq_onnx.reconstruct.reconstruction import NotReconstructable, Reconstruction, UnitLoss
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit, block_outputs
from samq_onnx.sampling import spread
from samq_onnx.scratch import Scratch

__all__ = ["Learns", "everything", "reconstruct"]

SCALE_RATE = 5.0  # of the logarithm, times that of the weights
ZERO_RATE = 50.0  # of a code, times that of the weights
WARM_UP = 0.1
LARGEST_GRADIENT = 1.0
JUDGED = 16  # inputs that the model is judged on, before and after
LONGER = 25  # times as often inputs are seen, where a user gives the time
TOGETHER = {"cpu": 2e9, "cuda": 20e9}  # MACs of an input, up to which the inputs of a step are computed at once
WIDER = 4  # times as many inputs of a step, where they are computed at once on a GPU, which costs it little
LARGEST_WORK = 50e9  # MACs of one input; what is larger takes many hours and tens of GB without a GPU

Feed = Mapping[str, np.ndarray]


def everything(simulation: Simulation, rate: float) -> tuple[list[list[torch.nn.Parameter]], list[float]]:
    """Weights, scales and zero points, and their rates, where that of weights is ``rate``."""
    groups = [simulation.weights(), simulation.log_scales(), simulation.zeros()]
    return groups, [rate, SCALE_RATE * rate, ZERO_RATE * rate]


@dataclasses.dataclass(frozen=True)
class Learns:
    """What is learned of a whole model.

    Attributes:
        groups: of parameters, with a rate each, of a simulation and the objective's rate. twins: of codes.
        iterations: as many; None where the objective's epochs decide. also: nodes before the first quantized ones.
        name: of all that. settle: is called once it is learned and in the graph, and may change constants.
    """

    groups: Callable[[Simulation, float], tuple[list[list[torch.nn.Parameter]], list[float]]] = everything
    twins: Twins | None = None
    iterations: int | None = None
    also: tuple[ir.Node, ...] = ()
    name: str = "everything"
    settle: Callable[[], None] = lambda: None


def reconstruct(
    lifted: Lifted,
    plan: QuantPlan,
    part: Part,
    feeds: Sequence[Feed],
    targets: Sequence[Feed],
    *,
    label: str,
    learns: Learns | None = None,
    effort: Effort | None = None,
    kept: Kept | None = None,
) -> Reconstruction:
    """Learn the plan and the constants of a lifted float model, in place, if that makes it better.

    Args:
        feeds: inputs of the quantized model. targets: the same inputs as the float model sees them.
        learns: what, if not everything. effort: bounds of it. kept: what a run that was killed had learned.

    Raises:
        NotReconstructable: hybrid codes, no objective for these outputs, an operator without a gradient, too much work
            for this machine, or numbers that float32 does not hold on the way; nothing was changed.
    """
    if hybrid := [name for name, codes in plan.linears.items() if codes.hybrid is not None]:
        raise NotReconstructable(f"hybrid codes have no gradient here ({hybrid[0]})")
    model, learns, effort = lifted.model, learns or Learns(), effort or Effort()
    objective = objective_of(part, model)
    outputs = {value.name: value for value in model.graph.outputs}
    ends = [outputs[name] for name in objective.outputs]
    inside = [value for value in block_outputs(lifted, plan) if value not in ends] if objective.inside else []
    simulation = Simulation(lifted, plan, [*ends, *inside], twins=learns.twins, also=learns.also)
    if simulation.unknown:
        raise NotReconstructable(f"no gradient for {', '.join(simulation.unknown)}")
    made = {value for node in simulation.nodes for value in node.outputs}
    simulation.outputs = [*ends, *(value for value in inside if value in made)]
    if unreached := [value.name or "" for value in ends if value not in made]:
        raise NotReconstructable(f"nothing quantized leads to {', '.join(unreached)}")
    device = effort.place()
    if simulation.work > LARGEST_WORK and device == "cpu":
        raise NotReconstructable(
            f"one input takes {simulation.work / 1e9:.0f} GMAC, gradients are affordable up to {LARGEST_WORK / 1e9:.0f}"
        )
    epochs = objective.epochs * (1 if effort.minutes is None else LONGER)
    steps = learns.iterations or max(1, epochs * len(feeds) // objective.batch)
    if device == "cuda" and simulation.work <= TOGETHER[device]:
        objective = dataclasses.replace(objective, batch=min(WIDER * objective.batch, max(objective.batch, len(feeds))))
    unit = Unit(label, "model", tuple(simulation.outputs), tuple(simulation.nodes), tuple(simulation.inputs))
    key = digest(lifted, plan, label, learns.name, steps, len(feeds), effort.minutes)
    learned = Learned(key, unit, plan, lifted)
    if kept is not None and kept.restore(learned):
        learned.write(plan, lifted)
        return Reconstruction(len(feeds), learned.loss.before, learned.loss.after)
    time = UnitTime(TimePlan(effort, [(unit.kind, 1.0)], steps), 0, key, kept)
    time.resume()
    with Scratch() as scratch:
        wanted = ActivationCache([value.name or "" for value in simulation.outputs], scratch)
        run(model, targets, [wanted], label=f"{label}: targets")
        given = ActivationCache([value.name or "" for value in simulation.inputs], scratch)
        run(model, feeds, [given], label=f"{label}: inputs")
        groups, rates = learns.groups(simulation, objective.rate)
        simulation.to(device)
        training = _Training(simulation, objective, given, wanted, device, effort)
        found = training.train(label, groups, rates, steps, time)
    if found.better:
        simulation.write_back(plan)
        learns.settle()
    if kept is not None:
        learned.take(plan, lifted, UnitLoss(label, unit.kind, steps, found.loss_before, found.loss_after))
        kept.keep(learned)
    return found


@dataclasses.dataclass
class _Training:
    """A simulation, what enters it, and what is to come out."""

    simulation: Simulation
    objective: Objective
    given: ActivationCache
    wanted: ActivationCache
    device: str
    effort: Effort

    def __post_init__(self) -> None:
        self._together = self.simulation.work <= TOGETHER[self.device]

    def losses(self, indices: Sequence[int], inside: float) -> torch.Tensor:
        """Of inputs of equal shapes, ``inside`` the weight of the blocks in them."""
        if len(indices) == 1:
            return self._loss(self._given(indices[0]), self._wanted(indices[0]), inside)[None]
        given, wanted = (
            [torch.stack(some) for some in zip(*map(take, indices), strict=True)]
            for take in (self._given, self._wanted)
        )
        made: torch.Tensor = torch.vmap(functools.partial(self._loss, inside=inside))(given, wanted)
        return made

    def _given(self, index: int) -> list[torch.Tensor]:
        return [one.to(self.device) if one.is_floating_point() else one for one in self.given[index]]

    def _wanted(self, index: int) -> list[torch.Tensor]:
        return [one.to(self.device) for one in self.wanted[index]]

    def _loss(self, given: list[torch.Tensor], wanted: list[torch.Tensor], inside: float) -> torch.Tensor:
        simulation, ends = self.simulation, len(self.objective.outputs)
        try:
            made = simulation(dict(zip(simulation.inputs, given, strict=True)))
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise NotReconstructable(f"an operator is used in a way that has no gradient here ({error})") from error
        errors = [relative_error(*pair) for pair in zip(made[ends:], wanted[ends:], strict=True)] if inside else []
        total: torch.Tensor = self.objective.loss(made[:ends], wanted[:ends]) + inside * sum(errors)
        return total

    def judge(self) -> float:
        """Mean loss on some inputs."""
        with torch.no_grad():
            return float(np.mean([self.losses([index], 0.0).item() for index in spread(len(self.given), JUDGED)]))

    def seconds(self) -> float:
        """What a step takes: the second of two."""
        for _ in range(2):
            started = self.effort.clock.now()
            self.backward([index % len(self.given) for index in range(self.objective.batch)])
            self.simulation.zero_grad()
        return self.effort.clock.now() - started

    def backward(self, indices: Sequence[int]) -> float:
        """Mean loss of inputs, whose gradients are there then; those of equal shapes are computed at once."""
        if self._together:
            alike: dict[object, list[int]] = {}
            for index in indices:
                alike.setdefault(self.given.shapes[index], []).append(index)
            try:  # small models gain nothing by bfloat16
                return self._backward(list(alike.values()), contextlib.nullcontext())
            except (NotReconstructable, RuntimeError):  # no version for a batch, or no memory for one
                self._together = False
                self.simulation.zero_grad()
        return self._backward([[index] for index in indices], self.effort.products())

    def _backward(self, groups: Sequence[Sequence[int]], narrow: contextlib.AbstractContextManager[object]) -> float:
        total, count = 0.0, sum(map(len, groups))
        for group in groups:
            with narrow:
                loss = self.losses(group, self.objective.inside).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def train(
        self, label: str, groups: Sequence[list[torch.nn.Parameter]], rates: list[float], steps: int, time: UnitTime
    ) -> Reconstruction:
        """At most so many steps."""
        random = np.random.default_rng(0)
        waiting: list[int] = []
        started = self.effort.clock.now()
        before = self.judge()
        judged = self.effort.clock.now() - started
        steps = time.iterations(self.seconds, 0.0, judged)
        if self.effort.minutes is not None:
            write_line(f"{label}: the model as a whole, {steps} steps, {max(0.0, self.effort.left()):.0f} s left")

        def backward(step: int) -> float:
            while len(waiting) < self.objective.batch:
                waiting[:0] = random.permutation(len(self.given)).tolist()
            return self.backward([waiting.pop() for _ in range(self.objective.batch)])

        def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
            used = [rate for rate, group in zip(rates, groups, strict=True) if group]
            rising = max(WARM_UP, 2 / (steps + 1))  # a step at least
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, used, total_steps=steps + 1, pct_start=rising)

        descend(
            groups, rates, schedule, steps, backward,
            label=f"{label}: learning", limited=groups[0], largest=LARGEST_GRADIENT, pace=time.pace(steps),
        )  # fmt: skip
        after = self.judge()
        return Reconstruction(len(self.given), before, after if after < before else before)
