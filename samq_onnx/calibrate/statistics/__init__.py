# SPDX-License-Identifier: Apache-2.0
"""What is remembered of tensors while inputs pass by, in memory that does not grow with them."""

from __future__ import annotations

from samq_onnx.calibrate.statistics.attention import AttentionRows, row_probabilities
from samq_onnx.calibrate.statistics.channel import ChannelMean, ChannelRange
from samq_onnx.calibrate.statistics.keys import KeySamples
from samq_onnx.calibrate.statistics.rows import RowSamples
from samq_onnx.calibrate.statistics.statistic import State, Statistic, taken
from samq_onnx.calibrate.statistics.tensor import TensorStats

__all__ = [
    "AttentionRows",
    "ChannelMean",
    "ChannelRange",
    "KeySamples",
    "RowSamples",
    "State",
    "Statistic",
    "TensorStats",
    "row_probabilities",
    "taken",
]
