# SPDX-License-Identifier: Apache-2.0
"""Ranges without the rarest values."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import CentreKeys, Ranges

__all__ = ["Percentile"]


@method(
    "percentile", paper="Wu et al. 2020, Integer quantization for deep learning inference, section 4; PCT in PTQ4SAM"
)
@dataclasses.dataclass(frozen=True)
class Percentile(Method):
    """Activation ranges that hold the central share of values, of four shares the one with the least squared error."""

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), Ranges(activation="percentile", weight="minmax", probabilities="uniform")]
