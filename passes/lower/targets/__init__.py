# SPDX-License-Identifier: Apache-2.0
"""What runs a quantized model, one target a file: which codes it takes, and how a plan becomes a graph for it."""

from __future__ import annotations

from samq_onnx.passes.lower.targets.target import TARGETS, Target

__all__ = ["TARGETS", "Target"]
