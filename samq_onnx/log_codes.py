# SPDX-License-Identifier: Apache-2.0
"""The integer weights of log codes, as the operators take them by shift and table (PTQ4SAM eq. 10-13)."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRACTION_BITS", "code_weights", "row_weights"]

FRACTION_BITS = 30


def code_weights(tau: int, bits: int) -> NDArray[np.int64]:
    """The integer weight of each code, 2^30 being 1: round(2^30 2^(r/tau)) >> n, n = ceil(c/tau), r = tau n - c."""
    codes = np.arange(2**bits, dtype=np.int64)
    n = -(-codes // tau)
    table = np.rint(2.0 ** (FRACTION_BITS + np.arange(tau) / tau)).astype(np.int64)
    return table[tau * n - codes] >> np.minimum(n, 63)


@functools.cache
def row_weights(tau: int, bits: int) -> NDArray[np.int64]:
    """The integer weight of each log code of a row, 2^14 being 1: `code_weights` rounded to 14 bits, the last one 0."""
    weights = (code_weights(tau, bits) + 2**15) >> 16
    weights[-1] = 0
    return weights
