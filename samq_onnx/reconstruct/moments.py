# SPDX-License-Identifier: Apache-2.0
"""Second moments of a linear's input, float and quantized, over the calibration set."""

from __future__ import annotations

import math

import numpy as np

from samq_onnx.calibrate.statistics import State, Statistic, taken
from samq_onnx.codes import UniformCodes
from samq_onnx.sampling import stride

__all__ = ["InputMoments"]

LARGEST = float(np.finfo(np.float32).max)
ROUNDING = 1e-3  # of sums in float32
ROWS_PER_FEED = 512  # evenly spread rows, where nothing else is said


class InputMoments(Statistic):
    """Moments of x and of its quantized version x^ over rows [..., in].

    Both are taken in units of a power of two near the scale of the codes: sums in float32 then hold them, however
    large or small x is.

    Args:
        width: of the rows, if it is known.
        rows_per_feed: so many of each input are seen, evenly spread.

    Attributes:
        unit: what 1 stands for.
        quantized: sum of x^T x^, float64 [in, in]. cross: sum of x^T x, float64 [in, in].
        mean_float, mean_quantized: means, float64 [in]. rows: number of rows seen.
    """

    def __init__(
        self, tensor: str, codes: UniformCodes, *, width: int | None = None, rows_per_feed: int = ROWS_PER_FEED
    ) -> None:
        self.tensors = (tensor,)
        self.rows_per_feed = rows_per_feed
        self.width = width
        self.codes = codes
        _, self._exponent = math.frexp(codes.scale)
        self.unit = math.ldexp(1.0, self._exponent)
        self.rows = 0
        self.quantized = self.cross = np.zeros((0, 0))
        self._sum_float = self._sum_quantized = np.zeros(0)

    @property
    def key(self) -> str:
        return f"{super().key} {self.codes} {self.rows_per_feed} rows"

    def _rows(self, array: np.ndarray) -> np.ndarray:
        """Evenly spread rows, float32 [rows, in] in units of `unit`."""
        rows = array.reshape(-1, array.shape[-1])
        return np.ldexp(rows[:: stride(len(rows), self.rows_per_feed)].astype(np.float32), -self._exponent)

    def update(self, *arrays: np.ndarray) -> None:
        (array,) = arrays
        self.add(array, array)

    def add(self, exact: np.ndarray, given: np.ndarray) -> None:
        """See one more input: x as the float model has it, and what is quantized in its place, both [..., in]."""
        rows, codes = self._rows(exact), self.codes
        scale = np.float32(math.ldexp(codes.scale, -self._exponent))
        integers = np.clip(np.rint(self._rows(given) / scale) + codes.zero_point, 0, 2**codes.bits - 1)
        quantized = ((integers - codes.zero_point) * scale).astype(np.float32)
        if not self.rows:
            width = rows.shape[1]
            self.quantized, self.cross = np.zeros((width, width)), np.zeros((width, width))
            self._sum_float, self._sum_quantized = np.zeros(width), np.zeros(width)
        self.quantized += quantized.T @ quantized  # numpy computes half of a symmetric product
        self.cross += quantized.T @ rows
        self._sum_float += rows.sum(axis=0, dtype=np.float64)
        self._sum_quantized += quantized.sum(axis=0, dtype=np.float64)
        self.rows += len(rows)

    @property
    def mean_float(self) -> np.ndarray:
        return self._sum_float / self.rows

    @property
    def mean_quantized(self) -> np.ndarray:
        return self._sum_quantized / self.rows

    def state(self) -> State:
        return {
            "rows": np.array(self.rows),
            "quantized": self.quantized,
            "cross": self.cross,
            "sum_float": self._sum_float,
            "sum_quantized": self._sum_quantized,
        }

    def restore(self, state: State) -> None:
        sums = [taken(state, name, self.width) for name in ("sum_float", "sum_quantized")]
        width = sums[0].size
        quantized, cross = (taken(state, name, width, width) for name in ("quantized", "cross"))
        rows = int(taken(state, "rows", dtype=np.int64))
        squares = np.diag(quantized)
        bound = np.sqrt(np.maximum(squares, 0))
        if rows < 1 or not width or sums[1].size != width or (squares < 0).any():
            raise ValueError("moments of different widths, or of no rows")
        if max(np.abs(quantized).max(), np.abs(cross).max(), np.abs(sums).max()) > LARGEST:
            raise ValueError("moments that are too large")
        if (np.abs(quantized) > np.outer(bound, bound) * (1 + ROUNDING) + ROUNDING).any():
            raise ValueError("moments of no rows at all")
        if (np.square(sums[1]) > rows * squares * (1 + ROUNDING) + ROUNDING).any():
            raise ValueError("means that are larger than their moments")
        self.rows, self.quantized, self.cross = rows, quantized, cross
        self._sum_float, self._sum_quantized = sums
