# SPDX-License-Identifier: Apache-2.0
"""Ranges from extremes: of everything, or the mean of those of each input."""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.codes import UniformCodes
from samq_onnx.observers.registry import TENSOR_OBSERVERS, WEIGHT_OBSERVERS

__all__ = ["avg_minmax", "minmax", "widest_scales"]

SMALLEST_SCALE = 1e-8


@TENSOR_OBSERVERS.add("minmax")
def minmax(stats: TensorStats, bits: int) -> UniformCodes:
    """The extremes of all feeds."""
    return UniformCodes.of_range(min(stats.lows), max(stats.highs), bits)


@TENSOR_OBSERVERS.add("avg_minmax")
def avg_minmax(stats: TensorStats, bits: int) -> UniformCodes:
    """The mean of the minima and the mean of the maxima of the feeds."""
    return UniformCodes.of_range(float(np.mean(stats.lows)), float(np.mean(stats.highs)), bits)


def widest_scales(rows: np.ndarray, bits: int) -> np.ndarray:
    """The smallest scales that clip nothing, float32 [out], of a weight [out, in]."""
    top = 2 ** (bits - 1)
    scales: np.ndarray = np.maximum(np.maximum(rows.max(axis=1) / (top - 1), -rows.min(axis=1) / top), SMALLEST_SCALE)
    return scales


@WEIGHT_OBSERVERS.add("minmax")
def minmax_scales(rows: np.ndarray, bits: int) -> np.ndarray:
    """The smallest scale that clips nothing, for each output channel."""
    return widest_scales(rows, bits).astype(np.float64)
