# SPDX-License-Identifier: Apache-2.0
"""Make weights absorb quantization error: compensation in closed form, and learning by gradients (needs torch)."""

from __future__ import annotations

from samq_onnx.reconstruct.compensate import compensate
from samq_onnx.reconstruct.learned import Learned, NotLearnable
from samq_onnx.reconstruct.moments import InputMoments

__all__ = ["InputMoments", "Learned", "NotLearnable", "compensate"]
