# SPDX-License-Identifier: Apache-2.0
"""What reconstruction has to say about itself, readable without torch."""

from __future__ import annotations

import dataclasses

__all__ = ["NotReconstructable", "Reconstruction", "UnitLoss"]


class NotReconstructable(Exception):
    """The model cannot be reconstructed, and why."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """How it went: number of different inputs, mean loss on some of them, as the model runs, before and after.

    Where learning made it no better, nothing was changed, and both are the same.
    """

    inputs: int
    loss_before: float
    loss_after: float

    @property
    def better(self) -> bool:
        return self.loss_after < self.loss_before


@dataclasses.dataclass(frozen=True)
class UnitLoss:
    """What became of a unit: its loss as the model runs, before and after.

    Attributes:
        iterations: that it was learned for. refused: why it was not, or empty.
    """

    name: str
    kind: str
    iterations: int
    before: float
    after: float
    refused: str = ""
