# SPDX-License-Identifier: Apache-2.0
"""SAQ-SAM without learning (SAQ-SAM* in its tables): PTQ4SAM-S, and a decoder's ranges by what attention looks at."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import ClipByFocus, FlipBimodalKeys, Ranges
from samq_onnx.passes.lift.kinds import TOKEN_TO_IMAGE_KINDS

__all__ = ["SaqSamS"]


@method("saq-sam-s", paper="SAQ-SAM, AAAI 2026 (PCC alone, without PAR's learning)")
@dataclasses.dataclass(frozen=True)
class SaqSamS(Method):
    """PTQ4SAM-S, and queries and keys of a decoder clipped as long as attention looks at the same (PCC)."""

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [FlipBimodalKeys(TOKEN_TO_IMAGE_KINDS), Ranges("omse", "mse", "log"), ClipByFocus()]
