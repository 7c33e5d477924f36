# SPDX-License-Identifier: Apache-2.0
"""SAQ-SAM without learning (SAQ-SAM* in its tables): PTQ4SAM-S, and a decoder's ranges by what attention looks at."""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import ClipAs, ClipByFocus, FlipBimodalKeys, Ranges
from samq_onnx.passes.lift.kinds import TOKEN_TO_IMAGE_KINDS

__all__ = ["SaqSamS"]

FOCUS = "focus"
CLIPPINGS = (FOCUS, "omse", "percentile", "avg_minmax")


@method("saq-sam-s", paper="SAQ-SAM, AAAI 2026 (PCC alone, without PAR's learning)")
@dataclasses.dataclass(frozen=True)
class SaqSamS(Method):
    """PTQ4SAM-S, and queries and keys of a decoder clipped as long as attention looks at the same (PCC)."""

    clipping: str = parameter(
        FOCUS, "how queries and keys of a decoder are clipped: by focus, or as an observer does", lambda: CLIPPINGS
    )

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        clip = ClipByFocus() if self.clipping == FOCUS else ClipAs(self.clipping)
        return [FlipBimodalKeys(TOKEN_TO_IMAGE_KINDS), Ranges("omse", "mse", "log"), clip]
