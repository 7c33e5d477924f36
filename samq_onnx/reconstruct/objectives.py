# SPDX-License-Identifier: Apache-2.0
"""How far a quantized model is from its float self, by its role.

* an encoder: mean squared error of the embedding, relative to its variance;
* a decoder: masks and IoU estimates. A mask counts by its pixels on the object as much as by those off it, because
  the object is a small part of the image:
  balanced cross entropy + dice distance of the soft masks + squared error of the logits relative to their variance
  + IOU_WEIGHT * squared error of the IoU estimates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir
import torch
import torch.nn.functional as functional

from samq_onnx.families import IOU, LOW_RES_MASKS, Part, Role
from samq_onnx.reconstruct.reconstruction import NotReconstructable

__all__ = ["Objective", "Sight", "embedding_loss", "mask_loss", "objective_of", "relative_error", "unit_loss"]

IOU_WEIGHT = 5.0
SMALLEST_VARIANCE = 1e-6

Tensors: TypeAlias = Sequence[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is to come near the float model, and how it is trained.

    Attributes:
        outputs: names of the outputs. loss: their distance from the float ones.
        inside: weight of the relative squared error of the outputs of each block, which are learned from as well; they
            say more of an input than its outputs do, so few inputs are learned by heart less easily.
        rate: of the weights. epochs: how often the inputs are seen.
        batch: inputs of a step.
    """

    outputs: tuple[str, ...]
    loss: Callable[[Tensors, Tensors], torch.Tensor]
    rate: float
    epochs: int
    batch: int
    inside: float = 0.0


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a loss sees of an input.

    Attributes:
        index: number of the input. rows: of it, all if None. size: of the second axis, where rows were chosen.
    """

    index: int
    rows: torch.Tensor | None = None
    size: int | None = None


def mask_loss(made: Tensors, wanted: Tensors) -> torch.Tensor:
    """Distance of (logits [..., masks, H, W], IoU estimates) from those of the float model."""
    logits, wanted_logits = made[0].flatten(-2), wanted[0].flatten(-2)
    target = wanted_logits.sigmoid()
    soft = logits.sigmoid()
    weight = target + target.mean(-1, keepdim=True)  # object and background weigh about the same
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (entropy * weight).sum(-1) / weight.sum(-1)
    overlap = (soft * target).sum(-1)
    dice = 1 - (2 * overlap + 1) / (soft.square().sum(-1) + target.square().sum(-1) + 1)
    error = (logits - wanted_logits).square().mean(-1) / wanted_logits.var(-1).clamp_min(SMALLEST_VARIANCE)
    return (entropy + dice + error).mean() + IOU_WEIGHT * functional.mse_loss(made[1], wanted[1])


def relative_error(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error, relative to the variance of what is wanted."""
    return functional.mse_loss(made, wanted) / wanted.var().clamp_min(SMALLEST_VARIANCE)


def embedding_loss(made: Tensors, wanted: Tensors) -> torch.Tensor:
    return relative_error(made[0], wanted[0])


def unit_loss(made: Tensors, wanted: Tensors, size: int | None = None) -> torch.Tensor:
    """Squared errors of the outputs of a unit, summed along the second axis and averaged over the others (PTQ4SAM).

    Args:
        size: of that axis, where only some rows are there.
    """
    errors = [functional.mse_loss(one, two) * (size or two.shape[1]) for one, two in zip(made, wanted, strict=True)]
    return torch.stack(errors).sum()


def objective_of(part: Part, model: ir.Model) -> Objective:
    """The objective of a model by its role.

    Raises:
        NotReconstructable: there is none for its outputs.
    """
    weights = [value.name or "" for value in model.graph.outputs if value.is_initializer()]
    if weights:
        raise NotReconstructable(f"it gives out weights, {', '.join(weights)}")
    outputs = part.outputs
    if part.role is Role.DECODER:
        if not {LOW_RES_MASKS, IOU} <= set(outputs):
            raise NotReconstructable("its low-resolution masks and IoU estimates cannot be told")
        return Objective((outputs[LOW_RES_MASKS], outputs[IOU]), mask_loss, rate=2e-4, epochs=4, batch=4, inside=0.5)
    if len(model.graph.outputs) == 1:
        return Objective((model.graph.outputs[0].name or "",), embedding_loss, rate=1e-3, epochs=32, batch=2)
    raise NotReconstructable("it is no decoder, and has other outputs than one embedding")
