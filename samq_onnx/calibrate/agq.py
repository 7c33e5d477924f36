# SPDX-License-Identifier: Apache-2.0
"""AGQ (PTQ4SAM section 3.3): which log codes suit a post-softmax map.

The codes stand for A^ = s 2^(-c / tau), c in 0 .. 2^bits - 1 (the paper's clamp: no code is spent on zero). Base and
scale are chosen by the error they leave in the attention output, E(tau, s) = || (A^ - A) V ||^2 (eq. 14), summed
over feeds on a grid of s.

On the grid s = 2^(anchor - j / 16), clamping a code is clamping a value: with L = -log2 A, unclamped codes of all s
that differ by a whole number of codes stand for the same values, and only the ends [s 2^(-top / tau), s] differ. So
one rounding serves many candidates, and their errors meet V in one product.
"""

from __future__ import annotations

import math

import numpy as np

from samq_onnx.calibrate.products import small_products

__all__ = ["TAUS", "LogError"]

TAUS = (1, 2, 4, 8, 16)  # the paper's are 1, 2 and 4; 8-bit codes can afford finer steps
PER_OCTAVE = 16
OCTAVES = 3  # from above the first feed's largest probability to well below it
SMALLEST = np.float32(1e-30)


class LogError:
    """Errors of all candidates (tau, s).

    Attributes:
        scales: float64 [candidates]. errors: float64 [taus, candidates].
    """

    def __init__(self, bits: int, finest: int) -> None:
        self.taus = tuple(tau for tau in TAUS if tau <= finest)
        self.top = 2**bits - 1
        self.scales = np.zeros(0)
        self.errors = np.zeros((len(self.taus), OCTAVES * PER_OCTAVE))

    def update(self, probabilities: np.ndarray, v: np.ndarray) -> None:
        """Add a feed: float32 probabilities [maps, rows, N] and v [maps, N, d]."""
        if not self.scales.size:
            anchor = min(0, math.ceil(math.log2(probabilities.max())) + 1)
            self.scales = 2.0 ** (anchor - np.arange(OCTAVES * PER_OCTAVE) / PER_OCTAVE)
        logarithm = np.log2(np.maximum(probabilities, SMALLEST))
        for row, tau in enumerate(self.taus):
            per_code = PER_OCTAVE // tau
            for first in range(per_code):
                scales = self.scales[first::per_code]
                exponent = np.rint((logarithm - np.float32(math.log2(scales[0]))) * np.float32(tau))
                values = np.float32(scales[0]) * np.exp2(exponent * np.float32(1 / tau))
                self.errors[row, first::per_code] += self._output_errors(values, scales, tau, probabilities, v)

    def _output_errors(
        self, values: np.ndarray, scales: np.ndarray, tau: int, probabilities: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        """|| (clip(values) - probabilities) V ||^2 for each of ``scales``."""
        maps, rows, keys = probabilities.shape
        difference = np.empty((maps, len(scales), rows, keys), np.float32)
        for column, scale in enumerate(scales):
            np.clip(values, np.float32(scale * 2.0 ** (-self.top / tau)), np.float32(scale), out=difference[:, column])
        difference -= probabilities[:, None]
        moved = small_products(difference.reshape(maps, -1, keys), v)
        return np.square(moved, out=moved).reshape(maps, len(scales), -1).sum(axis=(0, 2), dtype=np.float64)

    def best(self) -> tuple[int, float]:
        """tau and s with the least error."""
        row, column = np.unravel_index(int(self.errors.argmin()), self.errors.shape)
        return self.taus[int(row)], float(self.scales[int(column)])
