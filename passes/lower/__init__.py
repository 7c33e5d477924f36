# SPDX-License-Identifier: Apache-2.0
"""Turn a plan into an integer graph: samq nodes for attention and large linears, QDQ around the others."""

from __future__ import annotations

from samq_onnx.passes.lower.attention import lower_attention
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.linear import lower_linears
from samq_onnx.passes.lower.opset import raise_opset
from samq_onnx.passes.lower.rows import move_rows_first
from samq_onnx.passes.lower.sink import sink_views

__all__ = ["Builder", "lower_attention", "lower_linears", "move_rows_first", "raise_opset", "sink_views"]
