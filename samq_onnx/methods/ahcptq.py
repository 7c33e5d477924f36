# SPDX-License-Identifier: Apache-2.0
"""AHCPTQ: hybrid codes, groups of channels, and QDrop's reconstruction.

"AHCPTQ: accurate and hardware-compatible post-training quantization for the Segment Anything Model", ICCV 2025. As
PTQ4SAM-L, with codes that are logarithmic next to their least value and uniform above behind GELU and ReLU (HLUQ),
whose two scales learn, and with a scale and a zero point for each of four groups of channels (CAG).

Groups begin as single channels and are clustered at 20, 40, 60 and 80 % of the iterations, into 32, 16, 8 and 4; their
scales learn between (`samq_onnx.reconstruct.regrouping`). The unit is kept if it is better than with the groups that
`samq_onnx.methods.ahcptq_s` settles without learning.

Other than in the paper: groups fold into norms and weights, exactly, where integer products have no room for them; so
they are there behind an encoder's norms alone, weights get new codes at each clustering, and scales of groups stay what
they are in the last tenth of the iterations.
"""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.ahcptq_s import WHERE, codes_of
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.qdrop import recipe_of
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import LearnUnits, Ranges
from samq_onnx.observers import TENSOR_OBSERVERS
from samq_onnx.reconstruct.clusters import COUNTS, FEATURES

__all__ = ["Ahcptq"]


@method("ahcptq", paper="AHCPTQ, ICCV 2025 (HLUQ and CAG, with QDrop's reconstruction)")
@dataclasses.dataclass(frozen=True)
class Ahcptq(Method):
    """PTQ4SAM-L, hybrid log and uniform codes behind GELU and ReLU, groups of channels behind an encoder's norms."""

    iterations: int = parameter(2000, "of a unit; the paper has 20000", most=1e6)
    drop: float = parameter(0.5, "probability that an element is quantized while it learns", most=1)
    activation: str = parameter("avg_minmax", "ranges of activations to begin with", lambda: TENSOR_OBSERVERS)
    hybrid: str = parameter(
        "always", "hybrid codes behind GELU and ReLU: always, where they are better, or never", lambda: WHERE
    )
    groups: bool = parameter(True, "groups of channels behind norms (CAG)")
    features: str = parameter("log", "what channels are grouped by: log, or plain as in the paper", lambda: FEATURES)
    batch: int = parameter(1, "inputs of an iteration", most=1024)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        ranges = Ranges(self.activation, "mse", "log", decoder_keys="omse")
        recipe = recipe_of("module", self.iterations, self.drop, self.batch)
        if self.groups:
            recipe = dataclasses.replace(recipe, groups=COUNTS, features=self.features)
        learn = LearnUnits(recipe)
        return [*codes_of(ranges, self.groups, self.features, self.hybrid), learn]
