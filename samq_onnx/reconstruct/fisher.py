# SPDX-License-Identifier: Apache-2.0
"""Errors of a unit weighed by how much the loss of the whole model depends on them (BRECQ, ICLR 2021, equation 10).

The diagonal of the Fisher information at a unit's output is the squared gradient of the model's loss there. As in the
authors' code a gradient counts as |g| + 1, here in units of its mean, so that no error is free; the loss is that of the
quantized model as it was before any unit was learned, on the objective of its role.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from samq_onnx.calibrate.stream import Feed, run
from samq_onnx.families import Part
from samq_onnx.passes.lift import Lifted
from samq_onnx.plan import QuantPlan
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.objectives import Sight, Tensors, objective_of
from samq_onnx.reconstruct.reconstruction import NotReconstructable
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit

__all__ = ["Fisher", "weights_of"]


def weights_of(gradient: torch.Tensor) -> torch.Tensor:
    """Weights of squared errors, their mean one."""
    size = gradient.abs()
    weights = (size / size.mean().clamp_min(torch.finfo(size.dtype).tiny) + 1).square()
    return weights / weights.mean()


class Fisher:
    """The objective of units, with weights of every output element on every input.

    Args:
        exact_feeds: inputs of the float model. feeds: the same as the quantized model gets them. folder: for weights.

    Raises:
        NotReconstructable: the loss of the model has no gradient here.
    """

    def __init__(
        self,
        lifted: Lifted,
        plan: QuantPlan,
        part: Part,
        units: Sequence[Unit],
        exact_feeds: Sequence[Feed],
        feeds: Sequence[Feed],
        folder: Path,
    ) -> None:
        objective = objective_of(part, lifted.model)
        ends = {value.name: value for value in lifted.model.graph.outputs}
        whole = Simulation(lifted, plan, [ends[name] for name in objective.outputs], twins=Twins(free=False))
        if whole.unknown:
            raise NotReconstructable(f"no gradient for {', '.join(whole.unknown)}")
        for parameter in whole.parameters():
            parameter.requires_grad_(False)
        wanted = ActivationCache(objective.outputs, folder)
        run(lifted.model, exact_feeds, [wanted], label="targets")
        given = ActivationCache([value.name or "" for value in whole.inputs], folder)
        run(lifted.model, feeds, [given], label="inputs")
        self._places = {unit.name: index for index, unit in enumerate(units)}
        self._weights = [ActivationCache([v.name or "" for v in unit.outputs], folder) for unit in units]
        values = [value for unit in units for value in unit.outputs]
        for index in range(len(feeds)):
            entered = dict(zip(whole.inputs, given[index], strict=True))
            for tensor in entered.values():
                if tensor.is_floating_point():
                    tensor.requires_grad_(True)  # so that all outputs of units have gradients
            made = whole(entered, [*whole.outputs, *values])
            count = len(whole.outputs)
            loss = objective.loss(made[:count], wanted[index])
            gradients = list(torch.autograd.grad(loss, made[count:], allow_unused=True))
            for unit, cache in zip(units, self._weights, strict=True):
                mine = [gradients.pop(0) for _ in unit.outputs]
                cache.update(*(weights_of(torch.ones(1) if one is None else one).detach().numpy() for one in mine))

    def __call__(self, unit: Unit, made: Tensors, wanted: Tensors, sight: Sight) -> torch.Tensor:
        total = []
        weights = self._weights[self._places[unit.name]][sight.index]
        for one, two, weight in zip(made, wanted, weights, strict=True):
            chosen = weight if sight.rows is None or weight.numel() == 1 else weight.flatten(0, -2)[sight.rows][None]
            error = ((one - two).square() * chosen.to(one.device)).mean()
            total.append(error * (sight.size or two.shape[1]))
        return torch.stack(total).sum()
