# SPDX-License-Identifier: Apache-2.0
"""Gradient descent by Adam, whatever is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from samq_onnx.calibrate.stream import resident_memory
from samq_onnx.progress import progress_bar
from samq_onnx.reconstruct.pace import Pace
from samq_onnx.reconstruct.reconstruction import NotReconstructable

__all__ = ["cosine", "descend"]

Schedule = Callable[[torch.optim.Optimizer], Any]


def descend(
    groups: Sequence[Sequence[torch.nn.Parameter]],
    rates: Sequence[float],
    schedule: Schedule,
    steps: int,
    backward: Callable[[int], float],
    *,
    label: str,
    limited: Sequence[torch.nn.Parameter] = (),
    largest: float = 1.0,
    shown: bool = True,
    pace: Pace | None = None,
) -> list[float]:
    """Learn parameters; gives the loss of each iteration.

    Args:
        groups: of parameters. rates: of each. schedule: of the rates, made for an optimizer, over ``steps``.
        backward: computes the loss at a step and its gradients, adds them to the parameters, and gives the loss.
        limited: parameters whose gradient is not longer than ``largest``, all together.
        label: of the progress bar, which is ``shown`` or not.
        pace: how many steps of the schedule an iteration stands for; one if None.

    Raises:
        NotReconstructable: a loss or a parameter is not finite.
    """
    optimizer = torch.optim.Adam(
        [{"params": list(group), "lr": rate} for group, rate in zip(groups, rates, strict=True) if group]
    )
    plan = schedule(optimizer)
    losses: list[float] = []
    position = 0.0
    with progress_bar(steps, label, "step", shown) as bar:
        while position < steps:
            losses.append(backward(int(position)))
            if limited:
                torch.nn.utils.clip_grad_norm_(limited, largest)
            optimizer.step()
            largest_one = torch.nn.utils.get_total_norm([one.detach() for group in groups for one in group], math.inf)
            if not math.isfinite(losses[-1] + largest_one.item()):
                raise NotReconstructable("its loss or what it would learn is not finite on these calibration inputs")
            optimizer.zero_grad()
            before = int(position)
            position = min(position + (1.0 if pace is None else pace.steps(position, steps)), steps)
            for _ in range(int(position) - before):
                plan.step()
            bar.set_postfix_str(f"loss {losses[-1]:.3f}, {resident_memory()}", refresh=False)
            bar.update(int(position) - before)
    return losses


def cosine(progress: float) -> float:
    """From 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2
