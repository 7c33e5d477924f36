# SPDX-License-Identifier: Apache-2.0
"""PTQ4SAM without learning."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import FlipBimodalKeys, Ranges

__all__ = ["Ptq4SamS"]


@method("ptq4sam-s", paper="Lv et al. 2024, PTQ4SAM, sections 3.2 and 3.3 (BIG, AGQ)")
@dataclasses.dataclass(frozen=True)
class Ptq4SamS(Method):
    """Bimodal keys folded by sign (BIG), log post-softmax codes of adaptive base (AGQ), ranges of least error."""

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [FlipBimodalKeys(), Ranges(activation="omse", weight="mse", probabilities="log")]
