# SPDX-License-Identifier: Apache-2.0
"""Hybrid codes of an activation: logarithmic next to its least value, uniform above (HLUQ, AHCPTQ, ICCV 2025).

With x0 = x - low and L of the 2^bits codes logarithmic,

    x0 <= s_log:  c = round(-log2(x0 / s_log)),           x^ = low + s_log 2^-c, low where c >= L
    else:         c = round((x0 - s_log) / s_uni),        x^ = low + s_log + c s_uni,  c at most 2^bits - L - 1

The uniform code 0 and the logarithmic code 0 stand for the same value, so there are 2^bits values with ``low``.

Products of integers need a zero point and one step. `table` rounds every value to a grid of 8 uniform bits: of its 256
codes 2^bits or fewer remain, and which one takes the place of each of the 256 is all that a model has to know.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from samq_onnx.codes.check import check_codes
from samq_onnx.codes.uniform import UniformCodes

__all__ = ["GRID_BITS", "HybridCodes"]

GRID_BITS = 8
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 1e-20


@dataclasses.dataclass(frozen=True)
class HybridCodes:
    """``low``, and the scales s_log and s_uni; ``log_codes`` is L."""

    low: float
    log_scale: float
    uniform_scale: float
    log_codes: int
    bits: int

    def __post_init__(self) -> None:
        check_codes(self.bits, self.uniform_scale)
        check_codes(1, self.log_scale)
        if not 1 <= self.log_codes < 2**self.bits:
            raise ValueError(f"{self.log_codes} logarithmic codes of {self.bits} bits")
        if not abs(self.low) <= LARGEST or math.isnan(self.low):
            raise ValueError("a least value that is not finite, in float32")

    @classmethod
    def of_range(cls, low: float, high: float, bits: int, *, log_range: float, log_share: float) -> HybridCodes:
        """The codes of a range.

        Args:
            log_range: share of the range that is logarithmic (alpha). log_share: share of the codes (beta).
        """
        count, reach = 2**bits, max(high - low, 1e-8)
        uniform = reach * (1 - log_range) / ((count - 1) * (1 - log_share))
        return cls(low, log_range * reach, uniform, max(1, int(log_share * count)), bits)

    @property
    def high(self) -> float:
        """What the last code stands for."""
        return float(self.low + self.log_scale + (2**self.bits - self.log_codes - 1) * self.uniform_scale)

    @property
    def grid(self) -> UniformCodes:
        """The uniform codes that `table` is about."""
        return UniformCodes.of_range(self.low, self.high, GRID_BITS)

    def fake_quantize(self, x: np.ndarray) -> np.ndarray:
        """``x`` through its codes and back, by the formula."""
        above = x.astype(np.float64) - self.low
        code = np.rint(-np.log2(np.maximum(above, SMALLEST) / self.log_scale))
        near = np.where(code >= self.log_codes, 0, self.log_scale * 2.0 ** -np.clip(code, 0, self.log_codes - 1))
        last = 2**self.bits - self.log_codes - 1
        far = self.log_scale + self.uniform_scale * np.clip(
            np.rint((above - self.log_scale) / self.uniform_scale), 0, last
        )
        made: np.ndarray = self.low + np.where(above <= self.log_scale, near, far)
        return made

    def table(self) -> np.ndarray:
        """For each code of `grid` the one nearest to what the formula makes of it, uint8 [256]."""
        grid = self.grid
        values = (np.arange(2**GRID_BITS) - grid.zero_point) * grid.scale
        codes: np.ndarray = grid.encode(self.fake_quantize(values)).astype(np.uint8)
        return codes

    def on_grid(self, x: np.ndarray) -> np.ndarray:
        """``x`` through `grid` and `table` and back: the specification of what runs."""
        grid = self.grid
        codes = self.table()[grid.encode(x).astype(np.intp)].astype(np.float64)
        made: np.ndarray = (codes - grid.zero_point) * grid.scale
        return made
