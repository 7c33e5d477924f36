# SPDX-License-Identifier: Apache-2.0
"""Shifts and scales of groups of channels behind a norm, learned (GADT of PQ-SAM, ECCV 2024).

    x~ = (x - v_g) / s_g,   W -> diag(s) W,   c -> c + v W        the function stays what it was, its codes do not

Norm, weights and biases are computed anew from v and s in every step, so that their gradients are those of what will
run once they are folded (`samq_onnx.passes.fold.norm_affine`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from samq_onnx.passes.fold import NormReaders
from samq_onnx.reconstruct.fake_quant import FakeQuantWeight
from samq_onnx.reconstruct.simulate import Simulation

__all__ = ["GroupedAffine", "attach"]


class GroupedAffine(torch.nn.Module):
    """One shift and one scale (as a logarithm) for each group; both change nothing at first.

    Args:
        labels: number of each channel's group, int64 [channels]. shifts: whether shifts learn.
    """

    labels: torch.Tensor

    def __init__(self, labels: np.ndarray, shifts: bool) -> None:
        super().__init__()
        count = int(labels.max()) + 1
        self.register_buffer("labels", torch.from_numpy(labels))
        self.log_factor = torch.nn.Parameter(torch.zeros(count))
        self.offset = torch.nn.Parameter(torch.zeros(count), requires_grad=shifts)

    def scale(self) -> torch.Tensor:
        """Of each channel [channels]."""
        return self.log_factor.exp()[self.labels]

    def shift(self) -> torch.Tensor:
        """Of each channel [channels]."""
        return self.offset[self.labels]

    def learning(self) -> list[torch.nn.Parameter]:
        """What learns."""
        return [self.log_factor, *([self.offset] if self.offset.requires_grad else [])]

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of each channel, float64 [channels] each."""
        return tuple(one.detach().cpu().numpy().astype(np.float64) for one in (self.scale(), self.shift()))  # type: ignore


def attach(simulation: Simulation, readers: NormReaders, affine: GroupedAffine) -> None:
    """Let a simulation compute as if ``affine`` were folded behind the norm of ``readers``."""
    norm = readers.norm
    simulation.add_module(f"affine{sum(1 for _ in simulation.kinds(GroupedAffine))}", affine)
    simulation.change(norm.scale, lambda held: held / affine.scale().reshape(held.shape))
    if norm.bias is not None:
        simulation.change(
            norm.bias, lambda held: (held - affine.shift().reshape(held.shape)) / affine.scale().reshape(held.shape)
        )
    for linear in readers.linears:
        weight = simulation.weight_of(linear)
        if isinstance(weight, FakeQuantWeight):
            weight.change = _scaled(weight, linear.out_axis, affine)
        if linear.bias is not None:
            simulation.change(linear.bias, _biased(weight, linear.out_axis, affine))


Change = Callable[[torch.Tensor], torch.Tensor]


def _scaled(weight: FakeQuantWeight, out_axis: int, affine: GroupedAffine) -> Change:
    shape = [1] * weight.weight.ndim
    shape[1 - out_axis] = -1
    return lambda held: held * affine.scale().reshape(shape)


def _biased(weight: torch.nn.Module, out_axis: int, affine: GroupedAffine) -> Change:
    def change(bias: torch.Tensor) -> torch.Tensor:
        held: torch.Tensor = weight.weight  # type: ignore[assignment]
        return bias + affine.shift() @ (held if out_axis else held.t())

    return change
