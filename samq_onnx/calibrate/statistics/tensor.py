# SPDX-License-Identifier: Apache-2.0
"""The range and the distribution of a tensor."""

from __future__ import annotations

import math

import numpy as np

from samq_onnx.calibrate.statistics.statistic import State, Statistic, taken
from samq_onnx.sampling import stride

__all__ = ["TensorStats"]

BINS = 4096  # at most, halved by merging neighbours when the range outgrows them
LARGEST = float(np.finfo(np.float32).max)
HISTOGRAM_SAMPLES = 500_000  # values of one feed that enter the histogram


class TensorStats(Statistic):
    """Extremes of each feed and one histogram over all feeds.

    Bins are multiples of a common width; when the range outgrows them the width doubles, so one pass is enough.

    Attributes:
        lows, highs: minimum and maximum of each feed, of all its values.
        width: bin width. first: number of the first bin, whose lower edge is first * width.
        counts: float64 [bins], of evenly spread values.
    """

    def __init__(self, tensor: str, inputs: int | None = None) -> None:
        self.tensors = (tensor,)
        self.inputs = inputs
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.width = 0.0
        self.first = 0
        self.counts: np.ndarray = np.zeros(0)

    @property
    def centres(self) -> np.ndarray:
        """Middle of each bin, float64 [bins]."""
        return (np.arange(len(self.counts)) + self.first + 0.5) * self.width

    def update(self, *arrays: np.ndarray) -> None:
        (array,) = arrays
        low, high = float(array.min()), float(array.max())
        self.lows.append(low)
        self.highs.append(high)
        values = array.ravel()
        values = values[:: stride(values.size, HISTOGRAM_SAMPLES)]
        if not self.width:
            self.width = max(high - low, abs(high) * 1e-6, 1e-12) / (BINS // 2)
            self.first = math.floor(low / self.width)
        self._grow(low, high)
        bins = np.floor(values * (1.0 / self.width)).astype(np.int64) - self.first
        self.counts += np.bincount(np.clip(bins, 0, len(self.counts) - 1), minlength=len(self.counts))

    def _grow(self, low: float, high: float) -> None:
        """Make the bins cover [low, high] with as few doublings of their width as will do."""
        while True:
            first = min(math.floor(low / self.width), self.first)
            last = max(math.floor(high / self.width), self.first + len(self.counts) - 1)
            if last - first < BINS:
                break
            half = np.arange(self.first, self.first + len(self.counts)) // 2
            self.first //= 2
            self.counts = np.bincount(half - self.first, weights=self.counts)
            self.width *= 2
        grown = np.zeros(last - first + 1)
        grown[self.first - first : self.first - first + len(self.counts)] = self.counts
        self.first, self.counts = first, grown

    def state(self) -> State:
        return {
            "lows": np.array(self.lows),
            "highs": np.array(self.highs),
            "width": np.array(self.width),
            "first": np.array(self.first),
            "counts": self.counts,
        }

    def restore(self, state: State) -> None:
        lows, highs, counts = (taken(state, name, None) for name in ("lows", "highs", "counts"))
        width, first = float(taken(state, "width")), int(taken(state, "first", dtype=np.int64))
        if not lows.size or lows.size != highs.size or not 0 < counts.size <= BINS:
            raise ValueError("a range without values")
        low, high = lows.min(), highs.max()
        if not (lows <= highs).all() or max(-low, high) > LARGEST or not (counts >= 0).all() or not counts.sum() > 0:
            raise ValueError("a range that is none")
        if not 0 < width <= LARGEST or (first - 1) * width > low or (first + counts.size + 1) * width < high:
            raise ValueError("bins of another range")
        self.lows, self.highs, self.width, self.first = lows.tolist(), highs.tolist(), width, first
        self.counts = counts
