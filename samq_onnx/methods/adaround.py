# SPDX-License-Identifier: Apache-2.0
"""AdaRound: which of its two neighbours each weight takes is learned, layer by layer.

M. Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020. Of a linear with the GELU or
ReLU behind it, |f(W x) - f(W^ x^)|^2 is minimised (equation 25), x from the float model and x^ from the quantized
layers before; a regulariser of weight 0.01 draws every weight to a code, from a fifth of the iterations on, its power
falling from 20 to 2. Scales and zero points stay what they are.

Other than there: an iteration sees one input rather than 32, and activations are quantized too.
"""

from __future__ import annotations

import dataclasses

from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import LearnUnits, Ranges
from samq_onnx.observers import TENSOR_OBSERVERS
from samq_onnx.reconstruct.recipe import Phase, Recipe

__all__ = ["AdaRound"]


@method("adaround", paper="Nagel et al. 2020, AdaRound, equations 21 to 25")
@dataclasses.dataclass(frozen=True)
class AdaRound(Method):
    """Rounding of weights, up or down, learned layer by layer."""

    iterations: int = parameter(2000, "of a layer; the paper has 10000", most=1e6)
    activation: str = parameter("avg_minmax", "ranges of activations", lambda: TENSOR_OBSERVERS)
    batch: int = parameter(1, "inputs of an iteration", most=1024)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        recipe = Recipe("layer", (Phase(10_000, rounding=True),), self.iterations, self.batch)
        return [Ranges(self.activation, "mse", "uniform"), LearnUnits(recipe)]
