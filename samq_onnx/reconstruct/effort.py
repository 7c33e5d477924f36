# SPDX-License-Identifier: Apache-2.0
"""What learning may cost: time, memory, and the device that it runs on."""

from __future__ import annotations

import dataclasses
import math
import time

__all__ = ["DEVICES", "Effort"]

DEVICES = ("auto", "cpu", "cuda")
CACHE_GB = 2.0
MEASURED = 0.9  # of the time that is left: the rest is for what cannot be foreseen


@dataclasses.dataclass(frozen=True)
class Effort:
    """Bounds of learning.

    Attributes:
        deadline: by `time.monotonic`, when all has to be learned; None where a method's iterations decide.
        cache_gb: memory for activations, in GB; what does not fit waits on disk.
        device: ``cpu``, ``cuda``, or ``auto``, which is cuda where there is one.
    """

    deadline: float | None = None
    cache_gb: float = CACHE_GB
    device: str = "auto"

    @property
    def cache_bytes(self) -> float:
        return self.cache_gb * 1e9

    def iterations(self, wanted: int, seconds: float, share: float, waiting: float) -> int:
        """How many iterations of a unit there is time for, at least one, at most ``wanted``.

        Args:
            seconds: that one takes. share: of what is left of learning that this unit is.
            waiting: seconds that are needed for other than learning.
        """
        if self.deadline is None:
            return wanted
        left = MEASURED * (self.deadline - time.monotonic()) - waiting
        return max(1, min(wanted, math.floor(left * share / max(seconds, 1e-9))))
