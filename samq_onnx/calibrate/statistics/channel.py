# SPDX-License-Identifier: Apache-2.0
"""Means and extremes of channels."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics.statistic import State, Statistic, taken

__all__ = ["ChannelMean", "ChannelRange"]

LARGEST = float(np.finfo(np.float32).max)


class ChannelMean(Statistic):
    """Mean of each channel, along the last axis, over everything seen.

    Args:
        channels: how many there are, if that is known.
    """

    def __init__(self, tensor: str, inputs: int | None = None, *, channels: int | None = None) -> None:
        self.tensors = (tensor,)
        self.channels = channels
        self.inputs = inputs
        self._sum = np.zeros(())
        self._rows = 0

    def update(self, *arrays: np.ndarray) -> None:
        rows = arrays[0].reshape(-1, arrays[0].shape[-1])
        self._sum = self._sum + rows.sum(axis=0, dtype=np.float64)
        self._rows += len(rows)

    @property
    def mean(self) -> np.ndarray:
        """Float64 [channels]."""
        return self._sum / self._rows

    def state(self) -> State:
        return {"sum": self._sum, "rows": np.array(self._rows)}

    def restore(self, state: State) -> None:
        total, rows = taken(state, "sum", self.channels), int(taken(state, "rows", dtype=np.int64))
        if rows < 1 or np.abs(total).max(initial=0) / rows > LARGEST:
            raise ValueError("a mean that is none")
        self._sum, self._rows = total, rows


class ChannelRange(Statistic):
    """Extremes of each channel over everything seen.

    Args:
        channels: how many there are, if that is known. axis: that counts them.

    Attributes:
        lows, highs: float32 [channels].
    """

    def __init__(self, tensor: str, inputs: int | None = None, *, channels: int | None = None, axis: int = -1) -> None:
        self.tensors = (tensor,)
        self.inputs = inputs
        self.channels, self.axis = channels, axis
        self.lows = self.highs = np.zeros(0, np.float32)

    def update(self, *arrays: np.ndarray) -> None:
        last = np.moveaxis(arrays[0], self.axis, -1)
        rows = last.reshape(-1, last.shape[-1]).astype(np.float32, copy=False)
        low, high = rows.min(axis=0), rows.max(axis=0)
        seen = self.lows.size > 0
        self.lows = np.minimum(self.lows, low) if seen else low
        self.highs = np.maximum(self.highs, high) if seen else high

    @property
    def key(self) -> str:
        return super().key if self.axis == -1 else f"{super().key} axis {self.axis}"

    def state(self) -> State:
        return {"lows": self.lows, "highs": self.highs}

    def restore(self, state: State) -> None:
        lows = taken(state, "lows", self.channels, dtype=np.float32)
        highs = taken(state, "highs", len(lows), dtype=np.float32)
        if not lows.size or not (lows <= highs).all():
            raise ValueError("ranges that are none")
        self.lows, self.highs = lows, highs
