# SPDX-License-Identifier: Apache-2.0
"""Statistics of a model on real inputs, and the ranges that follow from them."""

from __future__ import annotations

from samq_onnx.calibrate.attention import AttentionStats
from samq_onnx.calibrate.observers import OBSERVERS
from samq_onnx.calibrate.quantizer import fake_quantize, qparams, weight_scales
from samq_onnx.calibrate.run import Collector, resident_memory, run
from samq_onnx.calibrate.stats import ChannelMean, KeySamples, TensorStats

__all__ = [
    "OBSERVERS",
    "AttentionStats",
    "ChannelMean",
    "Collector",
    "KeySamples",
    "TensorStats",
    "fake_quantize",
    "qparams",
    "resident_memory",
    "run",
    "weight_scales",
]
