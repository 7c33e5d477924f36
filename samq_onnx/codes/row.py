# SPDX-License-Identifier: Apache-2.0
"""Codes of a post-softmax map relative to the largest probability of their row.

With A the map and m the largest value of each row, log codes c = round(-tau log2(A / m)) weigh 2^(-c / tau), to 14
bits, and the last one nothing; uniform codes c = round(A / m (2^bits - 1)) weigh c. Either way the weights of a row
are divided by their sum. Taking the largest of the row as one is what integer attention kernels do before they
normalise (SageAttention, Zhang et al. 2024).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from samq_onnx.codes.check import check_codes
from samq_onnx.codes.log import TAUS
from samq_onnx.codes.probabilities import PROBABILITY_CODES

__all__ = ["UNIFORM", "RowCodes", "row_weights", "uniform_row_codes"]

UNIFORM = 0
SHORT_ONE = 2**15
STEPS = 2048  # in an octave
SERIES = (22650, 7170)  # 2^w - 1 = w (a + b w) for -1 <= w <= 0, fitted where its 16th power is a code
SMALLEST = np.float32(2.0**-40)  # of the largest; far below all that has a weight


@PROBABILITY_CODES.add("row")
@dataclasses.dataclass(frozen=True)
class RowCodes:
    """tau above 0: log codes that weigh 2^(-code / tau), the last one 0; tau = `UNIFORM`: uniform codes."""

    kind: ClassVar[str] = "row"
    tau: int
    bits: int

    def __post_init__(self) -> None:
        check_codes(self.bits)
        if self.tau not in (UNIFORM, *TAUS):
            raise ValueError(f"tau {self.tau} is none of {UNIFORM}, {', '.join(map(str, TAUS))}")

    def fake_quantize(self, probabilities: np.ndarray) -> np.ndarray:
        relative = probabilities / probabilities.max(axis=-1, keepdims=True)
        top = 2**self.bits - 1
        if self.tau == UNIFORM:
            weights = np.rint(relative * np.float32(top))
        else:
            distance = -np.log2(np.maximum(relative, SMALLEST))
            codes = np.minimum(np.rint(distance * np.float32(self.tau)), top).astype(np.intp)
            weights = row_weights(self.tau, self.bits).astype(np.float32)[codes]
        shares: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
        return shares

    @property
    def operator(self) -> str:
        return "LogRowAttention" if self.tau else "UniformRowAttention"

    @property
    def attributes(self) -> dict[str, int]:
        return {"bits": self.bits, "tau": self.tau} if self.tau else {"bits": self.bits}

    @property
    def operand(self) -> None:
        return None


def rounded_product(a: NDArray[np.int64], b: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """(a b + 2^14) >> 15: the product of 16-bit fractions of 2^15."""
    return (a * b + SHORT_ONE // 2) >> 15


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
