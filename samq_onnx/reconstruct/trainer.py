# SPDX-License-Identifier: Apache-2.0
"""Reconstruct a quantized model: learn its weights and codes by gradients from its float self, without labels.

The quantized part of the graph runs in torch with simulated codes and comes near what the float model gives on the
calibration inputs, as `samq_onnx.reconstruct.objectives` measures it. The inputs of a decoder may come from a quantized
encoder while the targets come from the float one: then it also learns to live with the encoder's error.
"""

from __future__ import annotations

import dataclasses
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
from samq_onnx.reconstruct.objectives import Objective, objective_of
from samq_onnx.reconstruct.pace import TimePlan, UnitTime
from samq_onnx.reconstruct.reconstruction import NotReconstructable, Reconstruction, UnitLoss
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit
from samq_onnx.sampling import spread
from samq_onnx.scratch import Scratch

__all__ = ["Learns", "everything", "reconstruct"]

SCALE_RATE = 5.0  # of the logarithm, times that of the weights
ZERO_RATE = 50.0  # of a code, times that of the weights
WARM_UP = 0.1
LARGEST_GRADIENT = 1.0
JUDGED = 16  # inputs that the model is judged on, before and after
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
    simulation = Simulation(lifted, plan, ends, twins=learns.twins, also=learns.also)
    if simulation.unknown:
        raise NotReconstructable(f"no gradient for {', '.join(simulation.unknown)}")
    unreached = [value.name or "" for value in simulation.outputs if value.producer() not in simulation.nodes]
    if unreached:
        raise NotReconstructable(f"nothing quantized leads to {', '.join(unreached)}")
    device = effort.place()
    if simulation.work > LARGEST_WORK and device == "cpu":
        raise NotReconstructable(
            f"one input takes {simulation.work / 1e9:.0f} GMAC, gradients are affordable up to {LARGEST_WORK / 1e9:.0f}"
        )
    steps = learns.iterations or max(1, objective.epochs * len(feeds) // objective.batch)
    unit = Unit(label, "model", tuple(simulation.outputs), tuple(simulation.nodes), tuple(simulation.inputs))
    key = digest(lifted, plan, label, learns.name, steps, len(feeds), effort.minutes)
    learned = Learned(key, unit, plan, lifted)
    if kept is not None and kept.restore(learned):
        learned.write(plan, lifted)
        return Reconstruction(len(feeds), learned.loss.before, learned.loss.after)
    time = UnitTime(TimePlan(effort, [(unit.kind, 1.0)], steps), 0, key, kept)
    time.resume()
    with Scratch() as scratch:
        wanted = ActivationCache(objective.outputs, scratch)
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

    def loss(self, index: int) -> torch.Tensor:
        """Of an input."""
        simulation = self.simulation
        given = [one.to(self.device) if one.is_floating_point() else one for one in self.given[index]]
        try:
            made = simulation(dict(zip(simulation.inputs, given, strict=True)))
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise NotReconstructable(f"an operator is used in a way that has no gradient here ({error})") from error
        return self.objective.loss(made, [one.to(self.device) for one in self.wanted[index]])

    def judge(self) -> float:
        """Mean loss on some inputs."""
        with torch.no_grad():
            return float(np.mean([self.loss(index).item() for index in spread(len(self.given), JUDGED)]))

    def seconds(self) -> float:
        """What a step takes: the second of two."""
        for _ in range(2):
            started = self.effort.clock.now()
            for _ in range(self.objective.batch):
                self.loss(0).backward()  # type: ignore[no-untyped-call]
        self.simulation.zero_grad()
        return self.effort.clock.now() - started

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
            total = 0.0
            for _ in range(self.objective.batch):
                if not waiting:
                    waiting.extend(random.permutation(len(self.given)).tolist())
                with self.effort.products():
                    loss = self.loss(waiting.pop()) / self.objective.batch
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            return total

        def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
            used = [rate for rate, group in zip(rates, groups, strict=True) if group]
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, used, total_steps=steps + 1, pct_start=WARM_UP)

        descend(
            groups, rates, schedule, steps, backward,
            label=f"{label}: learning", limited=groups[0], largest=LARGEST_GRADIENT, pace=time.pace(steps),
        )  # fmt: skip
        after = self.judge()
        return Reconstruction(len(self.given), before, after if after < before else before)
