# SPDX-License-Identifier: Apache-2.0
"""Quantization that is left out at random while something is learned (QDrop, Wei et al., ICLR 2022).

Each element of an activation takes its quantized value with probability p, and stays float otherwise. Learned weights
then live in a flatter place. Of what enters a unit, likewise, each element comes from the quantized predecessors with
that probability, and from the float model otherwise.
"""

from __future__ import annotations

import torch

__all__ = ["Dropped", "mixed"]


class Dropped(torch.nn.Module):
    """Codes that each element goes through with ``probability`` while it is ``dropping``, and always otherwise."""

    def __init__(self, codes: torch.nn.Module, probability: float) -> None:
        super().__init__()
        self.codes, self.probability, self.dropping = codes, probability, True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.dropping or self.probability >= 1:
            return self.codes(x)  # type: ignore[no-any-return]
        if self.probability <= 0:
            return x
        return mixed(self.codes(x), x, self.probability)

    @property
    def step(self) -> torch.Tensor:
        """The scale of the codes."""
        return self.codes.step  # type: ignore[return-value]

    def current(self) -> object:
        """The codes as they are now."""
        return self.codes.current()  # type: ignore[operator]


def mixed(quantized: torch.Tensor, exact: torch.Tensor, probability: float) -> torch.Tensor:
    """Each element of ``quantized`` with ``probability``, of ``exact`` otherwise."""
    if probability >= 1 or quantized is exact:
        return quantized
    return torch.where(torch.rand_like(exact) < probability, quantized, exact)
