# SPDX-License-Identifier: Apache-2.0
"""Statistics of post-softmax maps, on sampled query rows, so that no map is ever held whole.

AGQ (PTQ4SAM eq. 14) picks the base 2^(1/tau) and the scale s of its log codes by the error they leave in the
attention output: E(tau, s) = || (A^ - A) V ||^2. The sum over query rows is estimated from evenly spread rows; E is
accumulated over the feeds on a grid of s, and the pair with the least total error wins.
"""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.stats import TensorStats

__all__ = ["TAUS", "AttentionStats"]

TAUS = (1, 2, 4)
ENTRIES = 200_000  # map entries of one feed that are looked at
SCALE_STEPS = 10
STEPS_PER_OCTAVE = 4


class AttentionStats:
    """Collector over q [..., M, d], k [..., N, d], v [..., N, d] of one attention site.

    Attributes:
        probabilities: `TensorStats` of the post-softmax values.
        errors: float64 [tau, scale], total squared output error. scales: float64 [scale].
    """

    def __init__(
        self,
        tensors: tuple[str, str, str],
        *,
        scale: float,
        tables: tuple[np.ndarray, np.ndarray] | None,
        bits: int,
    ) -> None:
        self.tensors = tensors
        self.scale, self.tables, self.bits = scale, tables, bits
        self.probabilities = TensorStats(f"probabilities of {tensors[0]}")
        self.scales = np.zeros(0)
        self.errors = np.zeros((len(TAUS), SCALE_STEPS))

    def update(self, *arrays: np.ndarray) -> None:
        q, k, v = (array.reshape(-1, *array.shape[-2:]) for array in arrays)
        maps = q.shape[0]
        wanted = max(1, ENTRIES // k.shape[1])  # rows over all maps
        chosen = np.linspace(0, maps - 1, min(maps, wanted)).astype(int)
        q, k, v = q[chosen], k[chosen], v[chosen]
        rows = np.linspace(0, q.shape[1] - 1, min(q.shape[1], max(1, wanted // len(chosen)))).astype(int)
        probabilities = self._probabilities(q, k, rows)
        self.probabilities.update(probabilities)
        if not self.scales.size:
            self.scales = probabilities.max() * 2.0 ** (-np.arange(SCALE_STEPS) / STEPS_PER_OCTAVE)
        logarithm = np.log2(np.maximum(probabilities, 1e-20))
        top = 2**self.bits - 1
        for row, tau in enumerate(TAUS):
            values = np.exp2(-np.arange(top + 1, dtype=np.float32) / tau)
            for column, scale in enumerate(self.scales):
                codes = np.clip(np.rint(tau * (np.float32(np.log2(scale)) - logarithm)), 0, top).astype(np.uint8)
                difference = values[codes] * np.float32(scale) - probabilities
                self.errors[row, column] += float(np.square(difference @ v, dtype=np.float64).sum())

    def _probabilities(self, q: np.ndarray, k: np.ndarray, rows: np.ndarray) -> np.ndarray:
        sampled = q[:, rows]
        logits = np.float32(self.scale) * (sampled @ k.transpose(0, 2, 1))
        if self.tables is not None:
            table_h, table_w = self.tables
            y, x = np.divmod(rows, len(table_w))
            by_row = np.einsum("brc,rkc->brk", sampled, table_h[y], optimize=True)
            by_column = np.einsum("brc,rkc->brk", sampled, table_w[x], optimize=True)
            shape = (*logits.shape[:2], table_h.shape[1], table_w.shape[1])
            logits = (logits.reshape(shape) + by_row[..., None] + by_column[..., None, :]).reshape(logits.shape)
        logits -= logits.max(axis=-1, keepdims=True)
        exponential = np.exp(logits)
        return exponential / exponential.sum(axis=-1, keepdims=True)

    def best(self) -> tuple[int, float]:
        """tau and s with the least error in the attention output."""
        row, column = np.unravel_index(int(self.errors.argmin()), self.errors.shape)
        return TAUS[int(row)], float(self.scales[int(column)])
