# SPDX-License-Identifier: Apache-2.0
"""Up or down: rounding of weights that is learned (AdaRound, Nagel et al., ICML 2020).

    w^ = s clamp(floor(w / s) + h(a), low, high),   h(a) = clamp(sigmoid(a) (zeta - gamma) + gamma, 0, 1)

At first h is the fraction that floor leaves, so that w^ = w where nothing is clamped (equations 22 and 23). A
regulariser, the sum of 1 - |2 h - 1|^b, draws every h to 0 or 1 as b falls (equation 24). In the end h is [a >= 0].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from samq_onnx.codes import WeightCodes

__all__ = ["GAMMA", "ZETA", "AdaRoundWeight", "first_alpha", "share_up"]

ZETA, GAMMA = 1.1, -0.1
LEAST_DOUBT = 0.05  # share of a step that a neighbour keeps, where other codes than the nearest were given


def share_up(alpha: torch.Tensor) -> torch.Tensor:
    """h(a)."""
    return (alpha.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def first_alpha(fraction: torch.Tensor) -> torch.Tensor:
    """The a whose h is ``fraction``, in [0, 1]."""
    return -((ZETA - GAMMA) / (fraction - GAMMA) - 1).log()


class AdaRoundWeight(torch.nn.Module):
    """A weight along ``out_axis`` with codes of fixed scales; ``alpha`` learns which of two neighbours each takes.

    Args:
        weight: the float one. given: codes that it has so far, where they are not the nearest ones.

    Attributes:
        hard: whether every weight is one of its codes.
    """

    floor: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: np.ndarray, codes: WeightCodes, out_axis: int, given: np.ndarray | None = None) -> None:
        super().__init__()
        self.hard = False
        self._out_axis = out_axis
        self.change: Callable[[torch.Tensor], torch.Tensor] | None = None  # of what the codes stand for
        self._begin(weight, codes, given)

    def _begin(self, weight: np.ndarray, codes: WeightCodes, given: np.ndarray | None) -> None:
        self._codes, out_axis = codes, self._out_axis
        shape = [1] * weight.ndim
        shape[out_axis if len(codes.scale) > 1 else 0] = len(codes.scale)
        scale = np.array(codes.scale, np.float64).reshape(shape)
        top = 2 ** (codes.bits - 1)
        steps = np.clip(weight / scale, -top, top - 1)
        floor = np.minimum(np.floor(steps), top - 2)
        if given is not None:
            floor = np.where(given < floor, given, np.where(given > floor + 1, given - 1, floor))
        fraction = np.clip(steps - floor, 0, 1)
        if given is not None:
            up = given > floor
            fraction = np.where(up, np.maximum(fraction, 0.5 + LEAST_DOUBT), np.minimum(fraction, 0.5 - LEAST_DOUBT))
        self.register_buffer("floor", torch.tensor(floor.astype(np.float32)))
        self.register_buffer("scale", torch.tensor(scale.astype(np.float32)))
        self.alpha = torch.nn.Parameter(first_alpha(torch.tensor(fraction.astype(np.float32))))

    def restart(self, weight: np.ndarray, codes: WeightCodes, soft: np.ndarray | None) -> None:
        """Round another weight, with other scales; where it can, it begins with the values ``soft``."""
        device = self.alpha.device
        self._begin(weight, codes, None)
        if soft is not None:
            fraction = torch.tensor(soft / self.scale.numpy() - self.floor.numpy(), dtype=torch.float32).clamp(0, 1)
            self.alpha = torch.nn.Parameter(first_alpha(fraction))
        self.to(device)

    def forward(self) -> torch.Tensor:
        made = (self.floor + ((self.alpha >= 0) if self.hard else share_up(self.alpha))) * self.scale
        return made if self.change is None else self.change(made)

    def undecided(self, power: float) -> torch.Tensor:
        """The regulariser, a sum over all weights."""
        return (1 - (2 * share_up(self.alpha) - 1).abs() ** power).sum()

    @property
    def step(self) -> torch.Tensor:
        """The scales."""
        return self.scale

    def current(self) -> WeightCodes:
        """The codes, which stay as they are."""
        return self._codes

    def held(self) -> np.ndarray:
        """The weight, hard rounded."""
        codes = (self.floor + (self.alpha >= 0)).detach().cpu().numpy()
        return self._codes.decode(codes.astype(np.int8), self._out_axis)
