# SPDX-License-Identifier: Apache-2.0
"""What learning may cost: time, memory, and the device that it runs on; and where it keeps what is done."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Protocol

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.errors import UserError

__all__ = ["CACHE_GB", "DEVICES", "Effort", "Kept"]

DEVICES = ("auto", "cpu", "cuda")
CACHE_GB = 2.0
MEASURED = 0.9  # of the time that is left: the rest is for what cannot be foreseen


class Kept(Protocol):
    """Where what was learned is kept, for a run that goes on when this one was killed."""

    def restore(self, statistic: Statistic) -> bool: ...

    def keep(self, statistic: Statistic) -> None: ...


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

    @classmethod
    def of(cls, minutes: float | None, cache_gb: float = CACHE_GB, device: str = "auto") -> Effort:
        """What words say; minutes count from now.

        Raises:
            UserError: numbers that are not above 0, or no such device.
        """
        if minutes is not None and not 0 < minutes < math.inf:
            raise UserError(f"{minutes:g} minutes; wanted a number above 0")
        if not 0 <= cache_gb < math.inf:
            raise UserError(f"a cache of {cache_gb:g} GB; wanted 0 or more")
        if device not in DEVICES:
            raise UserError(f"no device {device!r}; choose one of {', '.join(DEVICES)}")
        return cls(None if minutes is None else time.monotonic() + 60 * minutes, cache_gb, device)

    def part(self, share: float) -> Effort:
        """With a share of the time that is left."""
        if self.deadline is None:
            return self
        now = time.monotonic()
        return dataclasses.replace(self, deadline=now + share * (self.deadline - now))

    @property
    def cache_bytes(self) -> float:
        return self.cache_gb * 1e9

    def place(self) -> str:
        """The device, as torch calls it."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

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
