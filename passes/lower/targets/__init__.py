# SPDX-License-Identifier: Apache-2.0
"""What a quantized model is for: each target is one file."""

from __future__ import annotations

from samq_onnx.registry import Registry

TARGETS: Registry = Registry("target", "samq_onnx.passes.lower.targets")
