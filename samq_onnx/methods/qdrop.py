# SPDX-License-Identifier: Apache-2.0
"""QDrop: rounding and activation scales learned together, while quantization is left out at random.

X. Wei et al., "QDrop: randomly dropping quantization for extremely low-bit post-training quantization", ICLR 2022, as
PTQ4SAM's released code has it: a unit is an attention with its projections, an MLP or the neck; of what enters it, and
of every activation in it, each element is quantized with probability 1/2; rounding (Adam, 1e-3) and scales (Adam, 4e-5,
cosine) are learned for 20 000 iterations. Ranges begin as the mean extremes of the images.

Other than there: every weight is rounded for good in the end and nothing is left out any more, of which that code
forgets most; weight codes are symmetric; scales are learned as logarithms, to which Adam's rate is relative.
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

__all__ = ["QDrop", "recipe_of"]


def recipe_of(level: str, iterations: int, drop: float, batch: int) -> Recipe:
    """How QDrop learns, with so many iterations of so many inputs, and that probability of quantized elements."""
    return Recipe(level, (Phase(20_000, rounding=True, scales=True, drop=drop, mix=drop),), iterations, batch)


@method("qdrop", paper="Wei et al. 2022, QDrop, as PTQ4SAM applies it")
@dataclasses.dataclass(frozen=True)
class QDrop(Method):
    """Rounding of weights and scales of activations learned by units, with quantization left out at random."""

    iterations: int = parameter(2000, "of a unit; the paper has 20000", most=1e6)
    drop: float = parameter(0.5, "probability that an element is quantized while it learns", most=1)
    level: str = parameter("module", "how large a unit is", lambda: LEVELS)
    activation: str = parameter("avg_minmax", "ranges of activations to begin with", lambda: TENSOR_OBSERVERS)
    batch: int = parameter(1, "inputs of an iteration", most=1024)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        learn = LearnUnits(recipe_of(self.level, self.iterations, self.drop, self.batch))
        return [Ranges(self.activation, "mse", "uniform"), learn]
