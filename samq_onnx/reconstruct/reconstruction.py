# SPDX-License-Identifier: Apache-2.0
"""What reconstruction has to say about itself, readable without torch."""

from __future__ import annotations

import dataclasses

__all__ = ["NotReconstructable", "Reconstruction", "UnitLoss"]


class NotReconstructable(Exception):
    """The model cannot be reconstructed, and why."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """How it went: number of different inputs, mean loss over the first and the last tenth of the steps."""

    inputs: int
    loss_before: float
    loss_after: float


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
