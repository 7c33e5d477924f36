# SPDX-License-Identifier: Apache-2.0
"""Means of channels."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics.statistic import State, Statistic

__all__ = ["ChannelMean"]


class ChannelMean(Statistic):
    """Mean of each channel, along the last axis, over everything seen."""

    def __init__(self, tensor: str, inputs: int | None = None) -> None:
        self.tensors = (tensor,)
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
        self._sum, self._rows = state["sum"].astype(np.float64), int(state["rows"])
