# SPDX-License-Identifier: Apache-2.0
"""What reconstruction has to say about itself, readable without torch."""

from __future__ import annotations

import dataclasses

__all__ = ["NotReconstructable", "Reconstruction"]


class NotReconstructable(Exception):
    """The model cannot be reconstructed, and why."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """How it went: number of different inputs, mean loss over the first and the last tenth of the steps."""

    inputs: int
    loss_before: float
    loss_after: float
