# SPDX-License-Identifier: Apache-2.0
"""Quantization methods, one a file: which steps make a plan, with which parameters."""

from __future__ import annotations

from samq_onnx.methods.method import DEFAULT_METHOD, METHODS, Method, configured, method, parameters
from samq_onnx.methods.scheme import Scheme, Widths

__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "Scheme", "Widths", "configured", "method", "parameters"]
