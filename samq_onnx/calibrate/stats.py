# SPDX-License-Identifier: Apache-2.0
"""Collectors: what is remembered of a tensor while images pass by, in memory that does not grow with them."""

from __future__ import annotations

import math

import numpy as np

from samq_onnx.sampling import stride

__all__ = ["ChannelMean", "KeySamples", "TensorStats"]

BINS = 4096  # at most, halved by merging neighbours when the range outgrows them
HISTOGRAM_SAMPLES = 500_000  # values of one feed that enter the histogram
KEY_SAMPLES = 32_768


class TensorStats:
    """Extremes of each feed and one histogram over all feeds.

    Bins are multiples of a common width; when the range outgrows them the width doubles, so one pass is enough.

    Attributes:
        lows, highs: minimum and maximum of each feed, of all its values.
        width: bin width. first: number of the first bin, whose lower edge is first * width.
        counts: float64 [bins], of evenly spread values.
    """

    def __init__(self, tensor: str) -> None:
        self.tensors = (tensor,)
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


class ChannelMean:
    """Mean of each channel over everything seen.

    Args:
        axis: of the channels.
    """

    def __init__(self, tensor: str, axis: int = -1) -> None:
        self.tensors = (tensor,)
        self.axis = axis
        self._sum = np.zeros(())
        self._rows = 0

    def update(self, *arrays: np.ndarray) -> None:
        rows = np.moveaxis(arrays[0], self.axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        self._sum = self._sum + rows.sum(axis=0, dtype=np.float64)
        self._rows += len(rows)

    @property
    def mean(self) -> np.ndarray:
        """Float64 [channels]."""
        return self._sum / self._rows


class KeySamples:
    """Keys of the first feed, on which BIG's peaks are looked for (PTQ4SAM's released code does the same).

    Attributes:
        values: float32 [samples], evenly spread.
    """

    def __init__(self, tensor: str) -> None:
        self.tensors = (tensor,)
        self.values = np.zeros(0, np.float32)

    def update(self, *arrays: np.ndarray) -> None:
        if not self.values.size:
            values = arrays[0].ravel()
            self.values = values[:: stride(values.size, KEY_SAMPLES)].copy()
