# SPDX-License-Identifier: Apache-2.0
"""Turn a plan into an integer graph: QDQ around linears, samq nodes for attention, packed weights, metadata."""

from __future__ import annotations

from samq_onnx.passes.lower.attention import lower_attention
from samq_onnx.passes.lower.linear import lower_linears
from samq_onnx.passes.lower.opset import raise_opset

__all__ = ["lower_attention", "lower_linears", "raise_opset"]
