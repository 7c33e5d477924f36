# SPDX-License-Identifier: Apache-2.0
"""SAQ-SAM: a decoder's ranges by what attention looks at, and reconstruction by what prompts make of it.

"SAQ-SAM: semantically-aligned quantization for the Segment Anything Model", AAAI 2026. On PTQ4SAM-S, queries and keys
of a decoder are clipped as long as attention looks at the same (PCC). Then stages of the encoder are learned by the
image tokens that a decoder makes of them, stages behind skipped, and two-way layers of the decoder by their tokens and
those at the end (PAR, `samq_onnx.reconstruct.response`); rounding by Adam at 1e-3, scales at 2e-3 falling to 0, with
quantization left out at random, 2000 iterations.

Other than in the released code: weights are drawn to codes while they learn, with the weight that its configuration
names and its loss forgets (``regulariser=0`` leaves that out), every weight is rounded for good in the end, nothing is
left out any more then, and the last attention is learned as long as a layer.
"""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import ClipByFocus, FlipBimodalKeys, LearnUnits, Ranges
from samq_onnx.passes.lift.kinds import TOKEN_TO_IMAGE_KINDS
from samq_onnx.reconstruct.recipe import Phase, Recipe

__all__ = ["SaqSam"]

ITERATIONS = 2000
SCALE_RATE = 2e-3


@method("saq-sam", paper="SAQ-SAM, AAAI 2026 (PCC and PAR)")
@dataclasses.dataclass(frozen=True)
class SaqSam(Method):
    """PTQ4SAM-S, ranges of a decoder by focus (PCC), rounding and scales learned by what prompts respond (PAR)."""

    iterations: int = parameter(ITERATIONS, "of a stage or layer", most=1e6)
    drop: float = parameter(0.5, "probability that an element is quantized while it learns", most=1)
    regulariser: float = parameter(0.02, "weight of what draws weights to codes", most=1e6)
    response: bool = parameter(True, "what prompts make of a unit counts, not its outputs alone")
    batch: int = parameter(1, "inputs of an iteration", most=1024)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        phase = Phase(
            ITERATIONS, rounding=True, scales=True, scale_rate=SCALE_RATE, drop=self.drop, mix=self.drop,
            regulariser=self.regulariser,
        )  # fmt: skip
        objective = "response" if self.response else "plain"
        recipe = Recipe("stage", (phase,), self.iterations, self.batch, objective)
        return [
            FlipBimodalKeys(TOKEN_TO_IMAGE_KINDS), Ranges("omse", "mse", "log"), ClipByFocus(), LearnUnits(recipe),
        ]  # fmt: skip
