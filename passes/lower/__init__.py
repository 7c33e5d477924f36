# SPDX-License-Identifier: Apache-2.0
"""Turn a plan into an integer graph: `samq_onnx.passes.lower.targets` says for which runtime."""

from __future__ import annotations

from samq_onnx.passes.lower.opset import raise_opset

__all__ = ["raise_opset"]
