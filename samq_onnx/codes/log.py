# SPDX-License-Identifier: Apache-2.0
"""Log codes of a post-softmax map with one scale (AGQ, PTQ4SAM eq. 8): a = scale * 2^(-code / tau)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from samq_onnx.codes.check import check_codes
from samq_onnx.codes.probabilities import PROBABILITY_CODES

__all__ = ["FRACTION_BITS", "LogCodes", "code_weights"]

FRACTION_BITS = 30
TAUS = (1, 2, 4, 8, 16)  # that the operators know; the paper stops at 4
SMALLEST = np.float32(1e-30)


@PROBABILITY_CODES.add("log")
@dataclasses.dataclass(frozen=True)
class LogCodes:
    """Codes in [0, 2^bits - 1]; as in the paper's formula, none of them is spent on zero. tau is a power of two."""

    kind: ClassVar[str] = "log"
    scale: float
    tau: int
    bits: int

    def __post_init__(self) -> None:
        check_codes(self.bits, self.scale)
        if self.tau not in TAUS:
            raise ValueError(f"tau {self.tau} is none of {', '.join(map(str, TAUS))}")

    def fake_quantize(self, probabilities: np.ndarray) -> np.ndarray:
        logarithm = np.log2(np.maximum(probabilities, SMALLEST) / np.float32(self.scale))
        codes = np.clip(np.rint(-self.tau * logarithm), 0, 2**self.bits - 1)
        powers: np.ndarray = np.exp2(-codes / np.float32(self.tau))
        return np.float32(self.scale) * powers

    @property
    def operator(self) -> str:
        return "QAttention"

    @property
    def attributes(self) -> dict[str, int]:
        return {"bits": self.bits, "tau": self.tau}

    @property
    def operand(self) -> float:
        return self.scale


def code_weights(tau: int, bits: int) -> NDArray[np.int64]:
    """The integer weight of each code by shift and table (PTQ4SAM eq. 10-13), 2^30 being 1.

    round(2^30 2^(r/tau)) >> n, n = ceil(c/tau), r = tau n - c.
    """
    codes = np.arange(2**bits, dtype=np.int64)
    n = -(-codes // tau)
    table: NDArray[np.int64] = np.rint(2.0 ** (FRACTION_BITS + np.arange(tau) / tau)).astype(np.int64)
    weights: NDArray[np.int64] = table[tau * n - codes] >> np.minimum(n, 63)
    return weights
