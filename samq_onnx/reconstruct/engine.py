# SPDX-License-Identifier: Apache-2.0
"""Reconstruct a quantized model unit by unit: each comes near what it gives in the float model, on quantized inputs.

Two streams of activations go through the model side by side (`samq_onnx.calibrate.two_streams`): the float one, and
that of the quantized model, in which all units before are reconstructed already. At each unit both are cached, what its
recipe says is learned, and the result goes into the plan and the constants of the graph, from where the quantized
stream goes on with it: weights are codes then, every one of them, and nothing is left out at random any more. A unit
that would not be better than before stays as it was.

Memory: one unit with its gradients, one block of the model, and as much of the caches as is allowed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
import torch

from samq_onnx.calibrate.stream import Feed
from samq_onnx.calibrate.two_streams import run_two_streams
from samq_onnx.passes.fold import NormReaders
from samq_onnx.passes.graph import is_shared
from samq_onnx.passes.lift import Lifted
from samq_onnx.plan import QuantPlan
from samq_onnx.progress import write_line
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.descent import cosine, descend
from samq_onnx.reconstruct.drop import Dropped, mixed
from samq_onnx.reconstruct.effort import Effort, Kept
from samq_onnx.reconstruct.fake_quant import FakeQuantActivation, FakeQuantWeight
from samq_onnx.reconstruct.learned import Learned, digest
from samq_onnx.reconstruct.objectives import Sight, unit_loss
from samq_onnx.reconstruct.pace import TimePlan, UnitTime
from samq_onnx.reconstruct.recipe import Phase, Recipe
from samq_onnx.reconstruct.reconstruction import NotReconstructable, UnitLoss
from samq_onnx.reconstruct.regrouping import Regrouping, groupable, segments
from samq_onnx.reconstruct.rounding import AdaRoundWeight
from samq_onnx.reconstruct.sampled import Choice, sampled
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit, find_units
from samq_onnx.sampling import spread
from samq_onnx.scratch import Scratch

__all__ = ["UnitObjective", "harden", "reconstruct_units"]

JUDGED, FEWEST_JUDGED = 8, 2  # inputs that a unit is judged on, before and after
JUDGED_WORK = 100e9  # multiplications of these, where whole inputs are seen
ROWS = 512  # of an input that an iteration sees, where rows, or windows, or queries do not depend on each other
ZERO_RATE = 1000.0  # of a zero point, in codes, times that of the logarithm of a scale

Tensors = Sequence[torch.Tensor]


class UnitObjective(Protocol):
    """What is to come near the float model when a unit is learned."""

    def __call__(self, unit: Unit, made: Tensors, wanted: Tensors, sight: Sight) -> torch.Tensor:
        """The loss of a unit's outputs."""
        ...


def plain(unit: Unit, made: Tensors, wanted: Tensors, sight: Sight) -> torch.Tensor:
    """`unit_loss`."""
    return unit_loss(made, wanted, sight.size)


def harden(simulation: Simulation) -> None:
    """Every weight is one of its codes, and nothing is dropped any more."""
    for weight in simulation.kinds(AdaRoundWeight):
        weight.hard = True
    for codes in simulation.kinds(Dropped):
        codes.dropping = False


def reconstruct_units(
    lifted: Lifted,
    plan: QuantPlan,
    recipe: Recipe,
    exact_feeds: Sequence[Feed],
    feeds: Sequence[Feed],
    *,
    exact: Mapping[str, ir.TensorProtocol | None],
    label: str,
    effort: Effort | None = None,
    objective: Callable[[Path], UnitObjective] | None = None,
    kept: Kept | None = None,
) -> list[UnitLoss]:
    """Learn the plan and the constants of a lifted model, in place; what became of each unit.

    Args:
        exact_feeds: inputs of the float model. feeds: the same ones as the quantized model gets them.
        exact: what constants of the float model hold, by name.
        effort: bounds of it. objective: makes that of units, given a folder; None: their outputs.
        kept: finished units of a run that was killed.

    Raises:
        NotReconstructable: the objective is not for this model; nothing was changed.
        UserError: as `run_two_streams`, or there is no such device.
    """
    effort = effort or Effort()
    units = find_units(lifted, plan, recipe.level)
    start = digest(lifted, plan, dataclasses.asdict(recipe), len(feeds), effort.minutes)
    with Scratch() as scratch:
        chosen = plain if objective is None else objective(scratch)
        time = TimePlan(effort, [(unit.kind, unit.work) for unit in units], recipe.iterations)
        run = _Run(lifted, plan, recipe, exact, label, time, chosen, kept, scratch, torch.device(effort.place()))
        keys = [hashlib.sha256(f"{start} {unit.name}".encode()).hexdigest() for unit in units]
        stages = [_Stage(run, unit, key, number) for number, (unit, key) in enumerate(zip(units, keys, strict=True))]
        run.ended = effort.clock.now()
        if effort.minutes is not None:
            write_line(f"{label}: {len(units)} units, {max(0.0, effort.left()):.0f} s for all")
        with contextlib.suppress(_Over):
            run_two_streams(lifted.model, plan, stages, exact_feeds, feeds, exact=exact, label=label)
    late = [UnitLoss(unit.name, unit.kind, 0, 0.0, 0.0, "there was no time left for it") for unit in units]
    return run.found + late[len(run.found) :]


class _Over(Exception):
    """There is no time left; what is learned so far is in the plan."""


@dataclasses.dataclass
class _Run:
    """What all units share."""

    lifted: Lifted
    plan: QuantPlan
    recipe: Recipe
    exact: Mapping[str, ir.TensorProtocol | None]
    label: str
    time: TimePlan
    objective: UnitObjective
    kept: Kept | None
    scratch: Path
    device: torch.device
    found: list[UnitLoss] = dataclasses.field(default_factory=list)
    ended: float = 0.0  # when the last unit was, by the clock

    @property
    def effort(self) -> Effort:
        return self.time.effort


class _Stage:
    """A unit as a stage of two streams."""

    def __init__(self, run: _Run, unit: Unit, key: str, number: int) -> None:
        self.run, self.unit = run, unit
        self.tensors = unit.tensors
        memory = run.effort.cache_bytes / 2
        self._exact = ActivationCache(self.tensors, run.scratch, memory)
        self._quantized = ActivationCache(unit.tensors[: len(unit.inputs)], run.scratch, memory)
        self._readers = groupable(run.lifted, unit) if run.recipe.groups else None
        also = [self._readers.norm] if self._readers is not None else []
        self._learned = Learned(key, unit, run.plan, run.lifted, also)
        self.settled = run.kept is not None and run.kept.restore(self._learned)
        self._time = UnitTime(run.time, number, key, run.kept)

    def update(self, exact: Sequence[np.ndarray], quantized: Sequence[np.ndarray]) -> None:
        if self.run.effort.left() <= 0:
            raise _Over
        self._exact.update(*exact)
        self._quantized.update(*quantized[: len(self.unit.inputs)])

    def decide(self) -> None:
        run = self.run
        waited = run.effort.clock.now() - run.ended
        self._time.resume()
        if self.settled:
            self._learned.write(run.plan, run.lifted)
            run.found.append(self._learned.loss)
        else:
            run.found.append(self._learn(waited))
            self._exact.clear()
            self._quantized.clear()
            if run.kept is not None:
                self._learned.take(run.plan, run.lifted, run.found[-1])
                run.kept.keep(self._learned)
        run.ended = run.effort.clock.now()

    def _learn(self, waited: float) -> UnitLoss:
        run, unit = self.run, self.unit
        exact = {
            name: held.numpy() for name, held in run.exact.items() if held is not None and name in self._constants()
        }
        twins = Twins(
            rounds=any(phase.rounding for phase in run.recipe.phases),
            wrap=lambda codes: Dropped(codes, 1.0),
            free=False,
            fixed=self._shared(),
        )
        simulation = Simulation(run.lifted, run.plan, unit.outputs, unit.inputs, twins, exact)
        if simulation.unknown:
            return UnitLoss(unit.name, unit.kind, 0, 0.0, 0.0, f"no gradient for {', '.join(simulation.unknown)}")
        simulation.to(run.device)
        learner = _Learner(simulation, unit, run, self._exact, self._quantized, self._time, self._readers)
        seed = int(hashlib.sha256(unit.name.encode()).hexdigest()[:8], 16)
        with _random_kept(run.device):
            torch.manual_seed(seed)
            try:
                return learner.learn(waited)
            except NotReconstructable as reason:
                return UnitLoss(unit.name, unit.kind, 0, 0.0, 0.0, str(reason))

    def _constants(self) -> set[str]:
        return {v.name or "" for node in self.unit.nodes for v in node.inputs if v is not None}

    def _shared(self) -> frozenset[ir.Value]:
        """Weights that something outside of the unit reads too."""
        inside = set(self.unit.nodes)
        return frozenset(
            linear.weight
            for linear in self.run.lifted.linears
            if linear.node in inside
            and is_shared(linear.weight)
            and (linear.weight.is_graph_output() or any(node not in inside for node, _ in linear.weight.uses()))
        )


class _Learner:
    """Learns one unit."""

    def __init__(
        self,
        simulation: Simulation,
        unit: Unit,
        run: _Run,
        exact: ActivationCache,
        quantized: ActivationCache,
        time: UnitTime,
        readers: NormReaders | None,
    ) -> None:
        self.simulation, self.unit, self.run, self._time = simulation, unit, run, time
        self._readers = readers
        self._groups: Regrouping | None = None
        self._exact, self._quantized = exact, quantized
        self._random = np.random.default_rng(0)
        self._done = 0
        self._rowwise = unit.rowwise
        self._sampled = None if self._rowwise else sampled(run.lifted, simulation, unit)

    def learn(self, waited: float) -> UnitLoss:
        """Do so; ``waited`` seconds went by since the unit before was done."""
        run, recipe, clock = self.run, self.run.recipe, self.run.effort.clock
        began = clock.now()
        before = self._judge()
        judged = clock.now() - began
        iterations = self._time.iterations(self._seconds, waited + judged, judged)
        if run.effort.minutes is not None:
            left = f"{max(0.0, run.effort.left()):.0f} s left"
            write_line(f"{run.label}: {self.unit.kind} {self.unit.name}, {iterations} iterations, {left}")
        shares = recipe.shares(iterations)
        for number, (phase, steps) in enumerate(zip(recipe.phases, shares, strict=True)):
            self._walk(phase, steps, sum(shares[number + 1 :]))
        after = self._judge()
        better = after < before
        if better:
            if self._groups is not None:
                self._groups.fold()
            self.simulation.write_back(run.plan)
        return UnitLoss(self.unit.name, self.unit.kind, iterations, before, after if better else before)

    def _begin(self, phase: Phase) -> list[list[torch.nn.Parameter]]:
        """What learns in a phase: roundings and weights, logarithms of scales, zero points."""
        simulation = self.simulation
        for parameter in simulation.parameters():
            parameter.requires_grad_(False)
        for weight in simulation.kinds(AdaRoundWeight):
            weight.hard = not phase.rounding
        for codes in simulation.kinds(Dropped):
            codes.dropping, codes.probability = True, phase.drop
        first = [weight.alpha for weight in simulation.kinds(AdaRoundWeight) if phase.rounding]
        learning = [weight for weight in simulation.kinds(FakeQuantWeight) if weight.learns]
        first += [weight.weight for weight in learning if phase.weights]
        scales = [weight.log_scale for weight in learning if phase.weight_scales]
        if phase.scales:
            codes_of = [one.codes for one in simulation.kinds(Dropped) if hasattr(one.codes, "log_scale")]
            scales += [codes.log_scale for codes in codes_of]  # type: ignore[misc]
        if self._groups is not None:
            scales = self._groups.learning(scales)
        zeros = [codes.zero for codes in simulation.kinds(FakeQuantActivation) if phase.zeros]
        for parameter in (*first, *scales, *zeros):
            parameter.requires_grad_(True)
        return [first, scales, zeros]

    def _walk(self, phase: Phase, steps: int, later: int) -> None:
        """Learn a phase, before ``later`` steps of others; in one descent, or one between any two clusterings."""
        if self._readers is None:
            self._descend(phase, 0, steps, steps, later)
            return
        place = self.unit.inputs.index(self._readers.linears[0].x)
        inputs = (self._exact[index][place] for index in range(len(self._exact)))
        recipe = self.run.recipe
        self._groups = Regrouping(self.run.lifted, self.simulation, self._readers, inputs, recipe.features)
        begun = 0
        parts = segments(steps, recipe.groups)
        for number, (count, groups) in enumerate(parts):
            if groups is not None:
                self._groups.cluster(groups)
            elif number == len(parts) - 1:
                self._groups.fix()
            self._descend(phase, begun, begun + count, steps, later + steps - begun - count)
            begun += count

    def _descend(self, phase: Phase, first: int, last: int, whole: int, later: int) -> None:
        """Walk the steps from ``first`` to ``last`` of a ``whole`` phase."""
        groups, steps = self._begin(phase), last - first
        if not any(groups) or not steps:
            return
        rate, scale_rate = phase.rates(whole)
        rates = [rate, scale_rate, scale_rate * ZERO_RATE]
        falls = [lambda step: 1.0, *[lambda step: cosine(step / steps)] * 2]

        def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
            mine = [fall for fall, group in zip(falls, groups, strict=True) if group]
            return torch.optim.lr_scheduler.LambdaLR(optimizer, mine)

        losses = descend(
            groups, rates, schedule, steps, lambda step: self._backward(phase, (first + step) / whole),
            label=f"{self.run.label}: {self.unit.kind}", pace=self._time.pace(steps, later, self._done),
        )  # fmt: skip
        self._done += len(losses)

    def _backward(self, phase: Phase, progress: float) -> float:
        total = 0.0
        for _ in range(self.run.recipe.batch):
            index = int(self._random.integers(len(self._exact)))
            with self.run.effort.products():
                loss = self._loss(index, phase.mix, self._choice(index, self._random)) / self.run.recipe.batch
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        power = phase.power(progress)
        if power is not None:
            undecided = [weight.undecided(power) for weight in self.simulation.kinds(AdaRoundWeight)]
            if undecided:
                loss = phase.regulariser * torch.stack(undecided).sum()
                loss.backward()  # type: ignore[no-untyped-call]
        return total

    def _choice(self, index: int, random: np.random.Generator) -> torch.Tensor | Choice | None:
        """What an iteration sees of an input, where it need not see all: rows, or windows or queries."""
        if self._sampled is not None and self.run.recipe.objective != "response":
            return self._sampled.draw(random, ROWS)
        if not self._rowwise:
            return None
        rows = self._exact[index][0][..., 0].numel()
        if rows <= ROWS:
            return None
        return torch.from_numpy(np.sort(random.choice(rows, ROWS, replace=False)))

    def _loss(self, index: int, mix: float, chosen: torch.Tensor | Choice | None) -> torch.Tensor:
        count = len(self.unit.inputs)
        exact, quantized = self._exact[index], self._quantized[index]
        sight = Sight(index)
        if chosen is not None:
            tokens, rows = (chosen.tokens, chosen.rows) if isinstance(chosen, Choice) else (chosen, chosen)
            sight = Sight(index, rows, exact[count].shape[1])
            entered = [[one.flatten(0, -2)[tokens][None] for one in some[:count]] for some in (exact, quantized)]
            exact = [*entered[0], *(one.flatten(0, -2)[rows][None] for one in exact[count:])]
            quantized = entered[1]
        exact, quantized = ([self._placed(one) for one in some] for some in (exact, quantized))
        given = [
            mixed(mine, theirs, mix) if mine.is_floating_point() else mine
            for mine, theirs in zip(quantized, exact[:count], strict=True)
        ]
        return self.run.objective(self.unit, self._made(given, chosen), exact[count:], sight)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.run.device) if tensor.is_floating_point() else tensor

    def _made(self, given: Tensors, chosen: torch.Tensor | Choice | None) -> list[torch.Tensor]:
        try:
            if isinstance(chosen, Choice):
                assert self._sampled is not None
                return [self._sampled(given[0], chosen)]
            return self.simulation(dict(zip(self.simulation.inputs, given, strict=True)))  # type: ignore[no-any-return]
        except (IndexError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            raise NotReconstructable(f"an operator is used in a way that has no gradient here ({error})") from error

    def _judge(self) -> float:
        """Mean loss on some inputs, of what an iteration sees of them and always the same, as the model will run."""
        harden(self.simulation)
        random = np.random.default_rng(0)
        seen = [(index, self._choice(index, random)) for index in spread(len(self._exact), JUDGED)]
        if all(choice is None for _, choice in seen):
            few = max(FEWEST_JUDGED, math.floor(JUDGED_WORK / self.unit.work))
            seen = [seen[place] for place in spread(len(seen), few)]
        with torch.no_grad():
            return float(np.mean([self._loss(index, 1.0, choice).item() for index, choice in seen]))

    def _seconds(self) -> float:
        """What an iteration takes: the middle of three, after which all is as it was."""
        phase, clock = self.run.recipe.phases[0], self.run.effort.clock
        self._begin(phase)
        taken, state = [], self._random.bit_generator.state
        with _random_kept(self.run.device):
            for _ in range(3):
                started = clock.now()
                self._backward(phase, 1.0)
                taken.append(clock.now() - started)
        self._random.bit_generator.state = state
        for parameter in self.simulation.parameters():
            parameter.grad = None
        return sorted(taken)[1]


def _random_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Let random numbers of torch afterwards be those that they would have been."""
    found: contextlib.AbstractContextManager[None] = torch.random.fork_rng([device] if device.type == "cuda" else [])
    return found
