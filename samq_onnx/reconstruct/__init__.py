# SPDX-License-Identifier: Apache-2.0
"""Make weights absorb quantization error: closed-form compensation, without training."""

from __future__ import annotations

from samq_onnx.reconstruct.compensate import compensate
from samq_onnx.reconstruct.moments import InputMoments

__all__ = ["InputMoments", "compensate"]
