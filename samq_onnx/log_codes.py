# SPDX-License-Identifier: Apache-2.0
"""The integers that post-softmax codes weigh, as the operators take them.

Log codes by shift and table (PTQ4SAM eq. 10-13), with a scale in 64 bits, relative to their row in 16. Uniform codes
relative to their row come from a power of two in 16 bits.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRACTION_BITS", "code_weights", "row_weights", "uniform_row_codes"]

FRACTION_BITS = 30
SHORT_ONE = 2**15
STEPS = 2048  # in an octave
SERIES = (22650, 7170)  # 2^w - 1 = w (a + b w) for -1 <= w <= 0, fitted where its 16th power is a code


def rounded_product(a: NDArray[np.int64], b: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """(a b + 2^14) >> 15: the product of 16-bit fractions of 2^15."""
    return (a * b + SHORT_ONE // 2) >> 15


def code_weights(tau: int, bits: int) -> NDArray[np.int64]:
    """The integer weight of each code, 2^30 being 1: round(2^30 2^(r/tau)) >> n, n = ceil(c/tau), r = tau n - c."""
    codes = np.arange(2**bits, dtype=np.int64)
    n = -(-codes // tau)
    table = np.rint(2.0 ** (FRACTION_BITS + np.arange(tau) / tau)).astype(np.int64)
    return table[tau * n - codes] >> np.minimum(n, 63)


@functools.cache
def row_weights(tau: int, bits: int) -> NDArray[np.int64]:
    """The integer weight of each log code of a row, 2^14 being 1 and the last code 0.

    round(2^15 2^(-r / tau)), below 2^15, is halved n + 1 times, rounded, with n = c div tau, r = c mod tau.
    """
    n, r = np.divmod(np.arange(2**bits, dtype=np.int64), tau)
    fractions = np.minimum(np.rint(SHORT_ONE * 2.0 ** (-r / tau)), SHORT_ONE - 1).astype(np.int64)
    weights = rounded_product(fractions, np.where(n < 15, 2**14 >> np.minimum(n, 14), 0))
    weights[-1] = 0
    return weights


def uniform_row_codes(distance: NDArray[np.float32], bits: int) -> NDArray[np.int64]:
    """round((2^bits - 1) 2^-distance) of octaves below the largest of a row, within 0.2 codes of 8 bits."""
    w = -np.minimum(np.rint(distance * np.float32(STEPS)), SHORT_ONE).astype(np.int64)
    power = rounded_product(rounded_product(w, SERIES[1]) + SERIES[0], w) + SHORT_ONE - 1
    for _ in range(4):
        power = rounded_product(power, power)
    return rounded_product(power, 2**bits - 1)
