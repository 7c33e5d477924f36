# SPDX-License-Identifier: Apache-2.0
"""BRECQ: rounding learned block by block, and then the scales of activations.

Y. Li et al., "BRECQ: pushing the limit of post-training quantization by block reconstruction", ICLR 2021. First
rounding as AdaRound learns it, with float activations in the block, 20 000 iterations; then the step sizes of
activations, with rounded weights, 5000 iterations at a rate of 4e-4 that falls to 0. Errors of the block's output may
count by the diagonal of the Fisher information: how much the loss of the whole quantized model depends on them
(equation 10).

Other than there: the model's loss is that of its masks or embedding, an iteration sees one input rather than 32, what
enters a block comes from predecessors with quantized activations, and first and last layers are those of SAM.
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
from samq_onnx.reconstruct.units import LEVELS

__all__ = ["Brecq"]

PHASES = (Phase(20_000, rounding=True, drop=0.0), Phase(5000, scales=True, scale_rate=4e-4))


@method("brecq", paper="Li et al. 2021, BRECQ, sections 3.2 and 3.3")
@dataclasses.dataclass(frozen=True)
class Brecq(Method):
    """Rounding of weights learned block by block, then scales of activations."""

    iterations: int = parameter(2500, "of a block, a fifth of them for scales; the paper has 25000", most=1e6)
    fisher: bool = parameter(False, "errors of a block count by how much the model's loss depends on them")
    level: str = parameter("block", "how large a unit is", lambda: LEVELS)
    activation: str = parameter("avg_minmax", "ranges of activations to begin with", lambda: TENSOR_OBSERVERS)
    batch: int = parameter(1, "inputs of an iteration", most=1024)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        objective = "fisher" if self.fisher else "plain"
        recipe = Recipe(self.level, PHASES, self.iterations, self.batch, objective)
        return [Ranges(self.activation, "mse", "uniform"), LearnUnits(recipe)]
