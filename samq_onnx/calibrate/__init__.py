# SPDX-License-Identifier: Apache-2.0
"""Statistics of a model on real inputs, and the ranges that follow from them."""

from __future__ import annotations

from samq_onnx.calibrate.agq import LogError
from samq_onnx.calibrate.attention import AttentionRows
from samq_onnx.calibrate.observers import OBSERVERS
from samq_onnx.calibrate.post_softmax import Judge, UniformRange, uniform_codes
from samq_onnx.calibrate.quantizer import fake_quantize, qparams, scales_for_bias, weight_scales
from samq_onnx.calibrate.row_codes import RowError
from samq_onnx.calibrate.run import Collector, resident_memory, run
from samq_onnx.calibrate.stats import ChannelMean, KeySamples, TensorStats

__all__ = [
    "OBSERVERS",
    "AttentionRows",
    "ChannelMean",
    "Collector",
    "Judge",
    "KeySamples",
    "LogError",
    "RowError",
    "TensorStats",
    "UniformRange",
    "fake_quantize",
    "qparams",
    "resident_memory",
    "run",
    "scales_for_bias",
    "uniform_codes",
    "weight_scales",
]
