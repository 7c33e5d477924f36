# SPDX-License-Identifier: Apache-2.0
"""How a few of many values are picked, so that they stand for all."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["spread", "stride"]


def stride(size: int, wanted: int) -> int:
    """A step that picks about ``wanted`` of ``size`` values, evenly over every axis of the array they come from.

    A step that has a factor in common with the number of channels would see the same few channels over and over,
    so the next step is taken that has none in common with the size.
    """
    step = max(1, size // wanted)
    while math.gcd(step, size) > 1:
        step += 1
    return step


def spread(count: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` of so many things, evenly spread from the first to the last; of all if they are no more."""
    return list(range(count)) if wanted >= count else np.linspace(0, count - 1, wanted).round().astype(int).tolist()
