# SPDX-License-Identifier: Apache-2.0
"""What holds for the numbers of all codes."""

from __future__ import annotations

import math

__all__ = ["MOST_BITS", "check_codes"]

MOST_BITS = 8  # codes are stored in bytes


def check_codes(bits: int, *scales: float) -> None:
    """Refuse numbers that no codes have.

    Raises:
        ValueError: a width or a scale that cannot be.
    """
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"codes of {bits} bits; wanted 1 to {MOST_BITS}")
    if not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError("a scale that is not above 0 and finite")
