# SPDX-License-Identifier: Apache-2.0
"""PTQ4SAM with learning: signs of bimodal keys, log post-softmax codes, and QDrop's reconstruction.

C. Lv et al., "PTQ4SAM: post-training quantization for Segment Anything", CVPR 2024. Signs are folded where a decoder's
tokens read the image (BIG), post-softmax codes have an adaptive base (AGQ), activations begin as the mean extremes of
the images, keys of a decoder as ranges of least error, and units are learned as `samq_onnx.methods.qdrop` says; scales
of log codes learn too.

Other than in the released code: every weight is rounded for good in the end and nothing is left out any more, log codes
spend none on zero, weight codes are symmetric.
"""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.ptq4sam_s import BIG_HELP, BIG_KINDS
from samq_onnx.methods.qdrop import recipe_of
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import FlipBimodalKeys, LearnUnits, Ranges
from samq_onnx.observers import SITE_OBSERVERS, TENSOR_OBSERVERS
from samq_onnx.reconstruct.units import LEVELS

__all__ = ["Ptq4SamL"]


@method("ptq4sam-l", paper="Lv et al. 2024, PTQ4SAM, sections 3.2 and 3.3, with QDrop's reconstruction")
@dataclasses.dataclass(frozen=True)
class Ptq4SamL(Method):
    """Bimodal keys folded by sign (BIG), log post-softmax codes (AGQ), rounding and scales learned by units (QDrop)."""

    iterations: int = parameter(2000, "of a unit; the paper has 20000", most=1e6)
    drop: float = parameter(0.5, "probability that an element is quantized while it learns", most=1)
    level: str = parameter("module", "how large a unit is", lambda: LEVELS)
    big: str = parameter("decoder", BIG_HELP, lambda: BIG_KINDS)
    probabilities: str = parameter("log", "post-softmax codes", lambda: SITE_OBSERVERS)
    activation: str = parameter("avg_minmax", "ranges of activations to begin with", lambda: TENSOR_OBSERVERS)
    batch: int = parameter(1, "inputs of an iteration", most=1024)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [
            FlipBimodalKeys(BIG_KINDS[self.big]),
            Ranges(self.activation, "mse", self.probabilities, decoder_keys="omse"),
            LearnUnits(recipe_of(self.level, self.iterations, self.drop, self.batch)),
        ]
