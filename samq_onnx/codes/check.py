# SPDX-License-Identifier: Apache-2.0
"""What holds for the numbers of all codes."""

from __future__ import annotations

import numpy as np

__all__ = ["MOST_BITS", "check_codes"]

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
MOST_BITS = 8  # codes are stored in bytes


def check_codes(bits: int, *scales: float) -> None:
    """Refuse numbers that no codes have.

    Raises:
        ValueError: a width or a scale that cannot be.
    """
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"codes of {bits} bits; wanted 1 to {MOST_BITS}")
    if not all(SMALLEST <= scale <= LARGEST / 2**bits for scale in scales):
        raise ValueError("a scale that is not above 0 and finite, with what its codes stand for, in float32")
