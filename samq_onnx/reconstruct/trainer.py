# SPDX-License-Identifier: Apache-2.0
"""Reconstruct a quantized model: learn its weights and codes by gradients from its float self, without labels.

The quantized part of the graph runs in torch with simulated codes and comes near what the float model gives on the
calibration inputs, as `samq_onnx.reconstruct.objectives` measures it. The inputs of a decoder may come from a quantized
encoder while the targets come from the float one: then it also learns to live with the encoder's error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from samq_onnx.calibrate.stream import run
from samq_onnx.families import Part
from samq_onnx.passes.lift import Lifted
from samq_onnx.plan import QuantPlan
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.descent import descend
from samq_onnx.reconstruct.objectives import Objective, Tensors, objective_of
from samq_onnx.reconstruct.reconstruction import NotReconstructable, Reconstruction
from samq_onnx.reconstruct.simulate import Simulation
from samq_onnx.scratch import Scratch

__all__ = ["reconstruct"]

SCALE_RATE = 5.0  # of the logarithm, times that of the weights
ZERO_RATE = 50.0  # of a code, times that of the weights
WARM_UP = 0.1
LARGEST_GRADIENT = 1.0
LARGEST_WORK = 50e9  # MACs of one input; what is larger takes many hours and tens of GB without a GPU

Feed = Mapping[str, np.ndarray]


def reconstruct(
    lifted: Lifted,
    plan: QuantPlan,
    part: Part,
    feeds: Sequence[Feed],
    targets: Sequence[Feed],
    *,
    label: str,
) -> Reconstruction:
    """Learn the plan and the constants of a lifted float model, in place.

    Args:
        feeds: inputs of the quantized model. targets: the same inputs as the float model sees them.

    Raises:
        NotReconstructable: hybrid codes, no objective for these outputs, an operator without a gradient, too much work
            for this machine, or numbers that float32 does not hold on the way; nothing was changed.
    """
    if hybrid := [name for name, codes in plan.linears.items() if codes.hybrid is not None]:
        raise NotReconstructable(f"hybrid codes have no gradient here ({hybrid[0]})")
    model = lifted.model
    objective = objective_of(part, model)
    outputs = {value.name: value for value in model.graph.outputs}
    simulation = Simulation(lifted, plan, [outputs[name] for name in objective.outputs])
    if simulation.unknown:
        raise NotReconstructable(f"no gradient for {', '.join(simulation.unknown)}")
    unreached = [value.name or "" for value in simulation.outputs if value.producer() not in simulation.nodes]
    if unreached:
        raise NotReconstructable(f"nothing quantized leads to {', '.join(unreached)}")
    if simulation.work > LARGEST_WORK:
        raise NotReconstructable(
            f"one input takes {simulation.work / 1e9:.0f} GMAC, gradients are affordable up to {LARGEST_WORK / 1e9:.0f}"
        )
    with Scratch() as scratch:
        wanted = ActivationCache(objective.outputs, scratch)
        run(model, targets, [wanted], label=f"{label}: targets")
        given = ActivationCache([value.name or "" for value in simulation.inputs], scratch)
        run(model, feeds, [given], label=f"{label}: inputs")
        losses = _train(simulation, objective, given, wanted, label)
    simulation.write_back(plan)
    tenth = max(1, len(losses) // 10)
    return Reconstruction(len(feeds), float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:])))


def _simulated(simulation: Simulation, given: Tensors) -> list[torch.Tensor]:
    try:
        return simulation(dict(zip(simulation.inputs, given, strict=True)))
    except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise NotReconstructable(f"an operator is used in a way that has no gradient here ({error})") from error


def _train(
    simulation: Simulation, objective: Objective, given: ActivationCache, wanted: ActivationCache, label: str
) -> list[float]:
    """Loss of each step."""
    rates = [objective.rate, SCALE_RATE * objective.rate, ZERO_RATE * objective.rate]
    groups = [simulation.weights(), simulation.log_scales(), simulation.zeros()]
    steps = max(1, objective.epochs * len(given) // objective.batch)
    random = np.random.default_rng(0)
    waiting: list[int] = []

    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1, pct_start=WARM_UP)

    def backward(step: int) -> float:
        total = 0.0
        for _ in range(objective.batch):
            if not waiting:
                waiting.extend(random.permutation(len(given)).tolist())
            index = waiting.pop()
            made = _simulated(simulation, given[index])
            loss = objective.loss(made, wanted[index]) / objective.batch
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    return descend(
        groups, rates, schedule, steps, backward,
        label=f"{label}: learning", limited=groups[0], largest=LARGEST_GRADIENT,
    )  # fmt: skip
