# SPDX-License-Identifier: Apache-2.0
"""GPTQ, layer by layer on the inputs of the float model."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import CentreKeys, Gptq, GptqSettings, Ranges

__all__ = ["GptqMethod"]

GPTQ = GptqSettings()


@method("gptq", paper="Frantar et al. 2023, GPTQ; Nagel et al. 2019, section 4.2 (bias correction)")
@dataclasses.dataclass(frozen=True)
class GptqMethod(Method):
    """Weights rounded one input channel after the other, the rest making good each error; biases corrected."""

    gptq: GptqSettings = GPTQ

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), Ranges(activation="omse", weight="mse", probabilities="uniform"), Gptq(self.gptq)]
