# SPDX-License-Identifier: Apache-2.0
"""Asymmetric least squares in sequence: what earlier layers lost, the weights of later ones make good."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import CentreKeys, Gptq, GptqSettings, Ranges

__all__ = ["Erq"]

GPTQ = GptqSettings(sequential=True)


@method("erq", paper="Zhong et al. 2024, ERQ; Li et al. 2025, GPTAQ")
@dataclasses.dataclass(frozen=True)
class Erq(Method):
    """GPTQ in sequence: weights fit the inputs that quantized layers give to the outputs that the float model has."""

    gptq: GptqSettings = GPTQ

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), Ranges(activation="omse", weight="mse", probabilities="uniform"), Gptq(self.gptq)]
