# SPDX-License-Identifier: Apache-2.0
"""Collectors: what is remembered of a tensor while images pass by, in memory that does not grow with them."""

from __future__ import annotations

import numpy as np

from samq_onnx.errors import UserError

__all__ = ["ChannelStats", "KeySamples", "TensorStats"]

BINS = 4096  # at most, halved by merging neighbours when the range outgrows them
SAMPLES = 1_000_000  # values of one feed that enter the histogram, evenly spread


class TensorStats:
    """Extremes of each feed and one histogram over all feeds.

    Bins are multiples of a common width; when the range outgrows them the width doubles, so one pass is enough.

    Attributes:
        lows, highs: minimum and maximum of each feed.
        width: bin width. first: number of the first bin, whose lower edge is first * width. counts: float64.
    """

    def __init__(self, tensor: str) -> None:
        self.tensors = (tensor,)
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.width = 0.0
        self.first = 0
        self.counts = np.zeros(0)

    @property
    def centres(self) -> np.ndarray:
        """Middle of each bin, float64."""
        return (np.arange(len(self.counts)) + self.first + 0.5) * self.width

    def update(self, *arrays: np.ndarray) -> None:
        (array,) = arrays
        low, high = float(array.min()), float(array.max())
        if not np.isfinite([low, high]).all():
            raise UserError(f"tensor {self.tensors[0]} is not finite on calibration input {len(self.lows) + 1}; check the model")
        self.lows.append(low)
        self.highs.append(high)
        values = array.ravel()
        values = values[:: max(1, values.size // SAMPLES)]
        if not self.width:
            self.width = max(high - low, abs(high) * 1e-6, 1e-12) / (BINS // 2)
            self.first = int(np.floor(low / self.width))
        self._grow(low, high)
        bins = np.floor(values / self.width).astype(np.int64) - self.first
        self.counts += np.bincount(np.clip(bins, 0, len(self.counts) - 1), minlength=len(self.counts))

    def _grow(self, low: float, high: float) -> None:
        while True:
            first = min(int(np.floor(low / self.width)), self.first)
            last = max(int(np.floor(high / self.width)), self.first + len(self.counts) - 1)
            if last - first < BINS:
                break
            half = np.arange(self.first, self.first + len(self.counts)) // 2
            self.first = int(self.first // 2)
            self.counts = np.bincount(half - self.first, weights=self.counts) if len(half) else self.counts
            self.width *= 2
        grown = np.zeros(last - first + 1)
        grown[self.first - first : self.first - first + len(self.counts)] = self.counts
        self.first, self.counts = first, grown


class ChannelStats:
    """Mean of each channel (last axis) over everything seen, float64 [channels]."""

    def __init__(self, tensor: str) -> None:
        self.tensors = (tensor,)
        self._sum = np.zeros(0)
        self._rows = 0

    def update(self, *arrays: np.ndarray) -> None:
        rows = arrays[0].reshape(-1, arrays[0].shape[-1])
        total = rows.sum(axis=0, dtype=np.float64)
        self._sum = self._sum + total if self._rows else total
        self._rows += len(rows)

    @property
    def mean(self) -> np.ndarray:
        return self._sum / self._rows


class KeySamples:
    """The keys of the first feed, on which BIG's peaks are looked for (PTQ4SAM's released code does the same)."""

    def __init__(self, tensor: str) -> None:
        self.tensors = (tensor,)
        self.values = np.zeros(0, np.float32)

    def update(self, *arrays: np.ndarray) -> None:
        if not self.values.size:
            values = arrays[0].ravel()
            self.values = values[:: max(1, values.size // SAMPLES)].copy()
