# SPDX-License-Identifier: Apache-2.0
"""Means of channels."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics.statistic import State, Statistic, taken

__all__ = ["ChannelMean"]

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
