# SPDX-License-Identifier: Apache-2.0
"""Keys of one input."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics.statistic import State, Statistic, taken
from samq_onnx.sampling import stride

__all__ = ["KeySamples"]

KEY_SAMPLES = 32_768


class KeySamples(Statistic):
    """Keys of the first feed, on which BIG's peaks are looked for (PTQ4SAM's released code does the same).

    Attributes:
        values: float32 [samples], evenly spread.
    """

    inputs = 1

    def __init__(self, tensor: str) -> None:
        self.tensors = (tensor,)
        self.values = np.zeros(0, np.float32)

    def update(self, *arrays: np.ndarray) -> None:
        values = arrays[0].ravel()
        self.values = values[:: stride(values.size, KEY_SAMPLES)].copy()

    def state(self) -> State:
        return {"values": self.values}

    def restore(self, state: State) -> None:
        values = taken(state, "values", None, dtype=np.float32)
        if not values.size:
            raise ValueError("no keys")
        self.values = values
