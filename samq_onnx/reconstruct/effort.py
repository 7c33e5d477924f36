# SPDX-License-Identifier: Apache-2.0
"""What learning may cost: time, memory, and the device that it runs on; and where it keeps what is done."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import Protocol

from samq_onnx.calibrate.statistics import Statistic
from samq_onnx.errors import UserError
from samq_onnx.progress import write_line

__all__ = ["CACHE_GB", "DEVICES", "Clock", "Effort", "Kept"]

DEVICES = ("auto", "cpu", "cuda")
CACHE_GB = 2.0
MOST_MINUTES = 60 * 24 * 365


class Kept(Protocol):
    """Where what was learned is kept, for a run that goes on when this one was killed."""

    def restore(self, statistic: Statistic) -> bool: ...

    def keep(self, statistic: Statistic) -> None: ...


class Clock:
    """Seconds since a run began; one that goes on where another was killed takes up the clock of that one."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began

    def catch_up(self, seconds: float) -> None:
        """Be at ``seconds`` now, or later."""
        self._began -= max(0.0, seconds - self.now())


@dataclasses.dataclass(frozen=True)
class Effort:
    """Bounds of learning.

    Attributes:
        minutes: that the whole run may take; None where a method's iterations decide.
        deadline: of a part of it, by ``clock``: when all of that has to be learned.
        cache_gb: memory for activations, in GB; what does not fit waits on disk.
        device: ``cpu``, ``cuda``, or ``auto``, which is cuda where there is one.
    """

    minutes: float | None = None
    deadline: float = math.inf
    cache_gb: float = CACHE_GB
    device: str = "auto"
    clock: Clock = dataclasses.field(default_factory=Clock, compare=False)

    @classmethod
    def of(cls, minutes: float | None, cache_gb: float = CACHE_GB, device: str = "auto") -> Effort:
        """What words say; minutes count from now.

        Raises:
            UserError: numbers that are not above 0, more than a year, or no such device, here or at all.
        """
        if minutes is not None and not 0 < minutes <= MOST_MINUTES:
            raise UserError(f"{minutes:g} minutes; wanted a number above 0 and at most {MOST_MINUTES}")
        if not 0 <= cache_gb < math.inf:
            raise UserError(f"a cache of {cache_gb:g} GB; wanted 0 or more")
        if device not in DEVICES:
            raise UserError(f"no device {device!r}; choose one of {', '.join(DEVICES)}")
        if device == "cuda" and not _has_cuda():
            raise UserError("there is no GPU that torch can use here; leave out --device, or give cpu")
        return cls(minutes, math.inf if minutes is None else 60 * minutes, cache_gb, device)

    def left(self) -> float:
        """Seconds until the deadline; infinity where there is none."""
        return self.deadline - self.clock.now()

    def part(self, share: float, after: float = 0.0) -> Effort:
        """With a share of the time that is left, but for so many seconds that are for what comes after."""
        if self.minutes is None:
            return self
        return dataclasses.replace(self, deadline=self.clock.now() + share * (self.left() - after))

    @property
    def over(self) -> str | None:
        """Why nothing can be learned any more; None while there is time."""
        if self.left() > 0:
            return None
        return f"what comes before learning took all of its share of {self.minutes:g} minutes; nothing is learned"

    def told(self, label: str) -> str | None:
        """`over`, which is said on stderr too."""
        over = self.over
        if over is not None:
            write_line(f"{label}: {over}")
        return over

    @property
    def cache_bytes(self) -> float:
        return self.cache_gb * 1e9

    def place(self) -> str:
        """The device, as torch calls it."""
        if self.device != "auto":
            return self.device
        return "cuda" if _has_cuda() else "cpu"

    @property
    def narrow(self) -> bool:
        """Whether products of gradients are bfloat16, which GPUs have kernels for; losses are judged in float32."""
        return self.place() == "cuda"

    def products(self) -> contextlib.AbstractContextManager[object]:
        """What gradients are computed in."""
        if not self.narrow:
            return contextlib.nullcontext()
        import torch

        return torch.autocast(self.place(), torch.bfloat16)  # type: ignore[no-any-return]


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())
