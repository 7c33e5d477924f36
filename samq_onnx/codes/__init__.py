# SPDX-License-Identifier: Apache-2.0
"""What the integers of a tensor mean, one kind of codes a file: their numbers, and their arithmetic in numpy."""

from __future__ import annotations

from samq_onnx.codes.channel_groups import ChannelGroupCodes
from samq_onnx.codes.hybrid import HybridCodes
from samq_onnx.codes.log import LogCodes
from samq_onnx.codes.probabilities import PROBABILITY_CODES, ProbabilityCodes
from samq_onnx.codes.row import RowCodes
from samq_onnx.codes.uniform import UniformCodes
from samq_onnx.codes.weight import WeightCodes

__all__ = [
    "PROBABILITY_CODES",
    "ChannelGroupCodes",
    "HybridCodes",
    "LogCodes",
    "ProbabilityCodes",
    "RowCodes",
    "UniformCodes",
    "WeightCodes",
]
