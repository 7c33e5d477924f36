# SPDX-License-Identifier: Apache-2.0
"""Ranges with the least error."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import CentreKeys, Ranges

__all__ = ["Omse"]


@method("omse", paper="Choukroun et al. 2019, Low-bit quantization of neural networks; OMSE in PTQ4SAM")
@dataclasses.dataclass(frozen=True)
class Omse(Method):
    """Ranges of activations and weights that leave the least mean |x - x^|^2.4."""

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), Ranges(activation="omse", weight="mse", probabilities="uniform")]
