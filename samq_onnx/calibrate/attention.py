# SPDX-License-Identifier: Apache-2.0
"""Statistics of post-softmax maps, on sampled query rows, so that no map is ever held whole."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.agq import LogError
from samq_onnx.calibrate.products import small_products
from samq_onnx.calibrate.stats import TensorStats

__all__ = ["AttentionStats"]

ENTRIES = 131_072  # map entries of one feed that are looked at
GOLDEN = 0.6180339887498949  # multiples of it are spread evenly modulo one, and follow no row or column of an image


class AttentionStats:
    """Collector over q [..., M, d], k [..., N, d], v [..., N, d] of one attention site.

    Looks at evenly spread query rows of every map (head, window, prompt), other rows in each map and feed.

    Args:
        tensors: names of q, k, v. scale: of the attention.
        tables: relative position tables [Hq, Hk, d] and [Wq, Wk, d], or None.
        bits: of the codes. finest: largest tau among AGQ's candidates.

    Attributes:
        probabilities: `TensorStats` of the post-softmax values. log_error: `LogError` of AGQ's candidates.
        uniform_scale: of uniform codes over [0, p], p the power of two above the first feed's largest probability.
        uniform_error: what these codes leave in the attention output, as `LogError` counts it.
    """

    def __init__(
        self,
        tensors: tuple[str, str, str],
        *,
        scale: float,
        tables: tuple[np.ndarray, np.ndarray] | None,
        bits: int,
        finest: int,
    ) -> None:
        self.tensors = tensors
        self.scale, self.tables = scale, tables
        self.probabilities = TensorStats(f"probabilities of {tensors[0]}")
        self.log_error = LogError(bits, finest)
        self.uniform_scale = self.uniform_error = 0.0
        self._rows_seen = 0

    def update(self, *arrays: np.ndarray) -> None:
        q, k, v = (array.reshape(-1, *array.shape[-2:]) for array in arrays)
        wanted = max(1, ENTRIES // k.shape[1])  # rows over all maps
        if len(q) > wanted:
            chosen = np.linspace(0, len(q) - 1, wanted).astype(int)
            q, k, v = q[chosen], k[chosen], v[chosen]
        maps, queries = q.shape[:2]
        count = min(queries, max(1, wanted // maps))
        if count == queries:
            rows = np.broadcast_to(np.arange(queries), (maps, queries))
        else:
            numbers = np.arange(self._rows_seen, self._rows_seen + maps * count).reshape(maps, count)
            rows = (numbers * GOLDEN % 1 * queries).astype(int)
            self._rows_seen += maps * count
        probabilities = self._probabilities(np.take_along_axis(q, rows[..., None], axis=1), k, rows)
        self.probabilities.update(probabilities)
        self.log_error.update(probabilities, v)
        self.uniform_scale = min(1.0, float(self.log_error.scales[0])) / self.log_error.top
        codes = np.minimum(np.rint(probabilities / np.float32(self.uniform_scale)), self.log_error.top)
        moved = small_products(codes * np.float32(self.uniform_scale) - probabilities, v)
        self.uniform_error += float(np.square(moved, dtype=np.float64).sum())

    def _probabilities(self, q: np.ndarray, k: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """softmax(scale q kT + rel_h + rel_w) [maps, r, N] of the queries q [maps, r, d] at ``rows`` [maps, r]."""
        logits = np.float32(self.scale) * small_products(q, k.transpose(0, 2, 1))
        if self.tables is not None:
            table_h, table_w = self.tables
            y, x = np.divmod(rows, len(table_w))
            by_row = (table_h[y] @ q[..., None])[..., 0]
            by_column = (table_w[x] @ q[..., None])[..., 0]
            grid = logits.reshape(*rows.shape, table_h.shape[1], table_w.shape[1])  # a view
            grid += by_row[..., None]
            grid += by_column[..., None, :]
        logits -= logits.max(axis=-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=-1, keepdims=True)
        return logits

    def best(self) -> tuple[int, float]:
        """tau and s of the log codes with the least error in the attention output."""
        return self.log_error.best()

    @property
    def uniform_is_nearer(self) -> bool:
        """Whether uniform codes leave less error in the attention output than the best log codes."""
        return self.uniform_error < self.log_error.errors.min()
