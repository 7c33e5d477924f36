# SPDX-License-Identifier: Apache-2.0
"""What learning has to say about itself, readable without torch."""

from __future__ import annotations

import dataclasses

__all__ = ["Learned", "NotLearnable"]


class NotLearnable(Exception):
    """The model cannot be learned, and why."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """How learning went: number of different inputs, mean loss over the first and the last tenth of the steps."""

    inputs: int
    loss_before: float
    loss_after: float
