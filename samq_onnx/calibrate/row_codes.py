# SPDX-License-Identifier: Apache-2.0
"""Which post-softmax codes suit a map when they are relative to the largest probability of their row.

With A the map and m the largest value of each row, log codes c = round(-tau log2(A / m)) weigh 2^(-c / tau), to 14
bits, and the last one nothing; uniform codes c = round(A / m (2^bits - 1)) weigh c. Either way the weights of a row
are divided by their sum. The kind, and tau, are chosen by the error they leave in the attention output,
|| (A^ - A) V ||^2, which is the objective of PTQ4SAM eq. 14. Taking the largest of the row as one is what integer
attention kernels do before they normalise (SageAttention, Zhang et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from samq_onnx.calibrate.post_softmax import output_errors
from samq_onnx.codes.row import row_weights
from samq_onnx.codes import RowCodes

__all__ = ["TAUS", "RowError"]

UNIFORM = 0
TAUS = (UNIFORM, 1, 2, 4, 8, 16)
SMALLEST = np.float32(2.0**-40)  # of the largest; far below all that has a weight


class RowError:
    """Errors of all candidates.

    Attributes:
        errors: float64 [taus].
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.errors = np.zeros(len(TAUS))

    def update(self, probabilities: np.ndarray, v: np.ndarray) -> None:
        """Add a feed: float32 probabilities [maps, rows, N] and v [maps, N, d]."""
        self.errors += output_errors(self._maps(probabilities), len(TAUS), probabilities, v)

    def _maps(self, probabilities: np.ndarray) -> Iterator[np.ndarray]:
        relative = probabilities / probabilities.max(axis=-1, keepdims=True)
        distance = -np.log2(np.maximum(relative, SMALLEST))
        top = 2**self.bits - 1
        for tau in TAUS:
            if tau == UNIFORM:
                weights = np.rint(relative * np.float32(top))
            else:
                codes = np.minimum(np.rint(distance * np.float32(tau)), top).astype(np.intp)
                weights = row_weights(tau, self.bits).astype(np.float32)[codes]
            yield weights / weights.sum(axis=-1, keepdims=True)

    def codes(self) -> RowCodes:
        """Those with the least error."""
        return RowCodes(TAUS[int(self.errors.argmin())], self.bits)
