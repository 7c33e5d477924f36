# SPDX-License-Identifier: Apache-2.0
"""LSQ+: as LSQ, with offsets of activations that learn too, and another start.

Y. Bhalgat et al., "LSQ+: improving low-bit quantization through learnable offsets and better initialization", CVPR
Workshops 2020. An activation begins with its whole range (section 3.2, equation 6), a weight with
max(|mean - 3 deviations|, |mean + 3 deviations|) / 2^(bits-1). Offsets get the gradient of equation 5; here they are
zero points, whole numbers when they are used, as integer products want them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.families import Part
from samq_onnx.methods.lsq import recipe_of
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import LearnUnits, Ranges
from samq_onnx.observers import TENSOR_OBSERVERS, WEIGHT_OBSERVERS
from samq_onnx.observers.minmax import SMALLEST_SCALE
from samq_onnx.reconstruct.units import LEVELS

__all__ = ["LsqPlus", "three_deviations"]


@WEIGHT_OBSERVERS.add("lsq+")
def three_deviations(rows: np.ndarray, bits: int) -> np.ndarray:
    """The step that LSQ+ begins with, for each output channel."""
    mean, reach = rows.mean(axis=1, dtype=np.float64), 3 * rows.std(axis=1, dtype=np.float64)
    steps = np.maximum(np.abs(mean - reach), np.abs(mean + reach)) / 2 ** (bits - 1)
    made: np.ndarray = np.maximum(steps, SMALLEST_SCALE)
    return made


@method("lsq+", paper="Bhalgat et al. 2020, LSQ+, equations 5 and 6, by units and without labels")
@dataclasses.dataclass(frozen=True)
class LsqPlus(Method):
    """Scales of weights, scales and zero points of activations learned by units."""

    iterations: int = parameter(1000, "of a unit", most=1e6)
    weights: bool = parameter(False, "weights learn too")
    level: str = parameter("block", "how large a unit is", lambda: LEVELS)
    activation: str = parameter("minmax", "ranges of activations to begin with", lambda: TENSOR_OBSERVERS)
    weight: str = parameter("lsq+", "ranges of weights to begin with", lambda: WEIGHT_OBSERVERS)
    batch: int = parameter(1, "inputs of an iteration", most=1024)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        recipe = recipe_of(self.level, self.iterations, self.batch, weights=self.weights, zeros=True)
        return [Ranges(self.activation, self.weight, "uniform"), LearnUnits(recipe)]
