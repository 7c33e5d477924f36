# SPDX-License-Identifier: Apache-2.0
"""LSQ: step sizes of weights and activations learned by gradients.

S. Esser et al., "Learned step size quantization", ICLR 2020. A step begins as 2 mean |x| / sqrt(p), p the largest code
(section 2.1), and gets the gradient of equation 3. Codes of what is never negative are 0 to 2^bits - 1, of all else
-2^(bits-1) to 2^(bits-1) - 1. Here units come near the float ones, without labels, and weights themselves learn only if
``weights`` says so. The gradient's factor g is left out: steps are learned as logarithms by Adam, which divides by it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.codes import UniformCodes
from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step
from samq_onnx.methods.steps import LearnUnits, Ranges
from samq_onnx.observers import TENSOR_OBSERVERS, WEIGHT_OBSERVERS
from samq_onnx.observers.minmax import SMALLEST_SCALE
from samq_onnx.reconstruct.recipe import Phase, Recipe
from samq_onnx.reconstruct.units import LEVELS

__all__ = ["Lsq", "first_step", "first_steps", "recipe_of"]

ITERATIONS = 5000
RATE = 4e-4  # of logarithms of scales
WEIGHT_RATE = 1e-5


@TENSOR_OBSERVERS.add("lsq")
def first_step(stats: TensorStats, bits: int) -> UniformCodes:
    """The step that LSQ begins with."""
    mean = float(np.average(np.abs(stats.centres), weights=stats.counts))
    signed = min(stats.lows) < 0
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    scale = float(np.float32(max(2 * mean / math.sqrt(top), SMALLEST_SCALE)))
    return UniformCodes(scale, 2 ** (bits - 1) if signed else 0, bits)


@WEIGHT_OBSERVERS.add("lsq")
def first_steps(rows: np.ndarray, bits: int) -> np.ndarray:
    """The step that LSQ begins with, for each output channel."""
    top = max(2 ** (bits - 1) - 1, 1)
    steps = 2 * np.abs(rows).mean(axis=1, dtype=np.float64) / math.sqrt(top)
    made: np.ndarray = np.maximum(steps, SMALLEST_SCALE)
    return made


def recipe_of(level: str, iterations: int, batch: int, *, weights: bool, zeros: bool = False) -> Recipe:
    """How LSQ learns scales, and weights or zero points with them."""
    phase = Phase(
        ITERATIONS, weights=weights, weight_scales=True, scales=True, zeros=zeros, rate=WEIGHT_RATE, scale_rate=RATE
    )
    return Recipe(level, (phase,), iterations, batch)


@method("lsq", paper="Esser et al. 2020, LSQ, equation 3, by units and without labels")
@dataclasses.dataclass(frozen=True)
class Lsq(Method):
    """Scales of weights and activations learned by units."""

    iterations: int = parameter(1000, "of a unit", most=1e6)
    weights: bool = parameter(False, "weights learn too")
    level: str = parameter("block", "how large a unit is", lambda: LEVELS)
    activation: str = parameter("lsq", "ranges of activations to begin with", lambda: TENSOR_OBSERVERS)
    weight: str = parameter("lsq", "ranges of weights to begin with", lambda: WEIGHT_OBSERVERS)
    batch: int = parameter(1, "inputs of an iteration", most=1024)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        recipe = recipe_of(self.level, self.iterations, self.batch, weights=self.weights)
        return [Ranges(self.activation, self.weight, "uniform"), LearnUnits(recipe)]
