# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: outliers of activations move into weights, where they are no outliers.

G. Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models", ICML 2023,
equation 4: the channels j of what linears read of a norm are divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha),
with the largest weight over all of these linears. The rest is the paper's: ranges that clip nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from samq_onnx.calibrate.statistics import ChannelRange, Statistic
from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps import CentreKeys, Ranges, ScaleNorms, input_rows
from samq_onnx.observers import TENSOR_OBSERVERS, WEIGHT_OBSERVERS
from samq_onnx.passes.fold import NormReaders

__all__ = ["Smooth", "SmoothQuant", "smoothing"]

SMALLEST = 1e-5  # scale, and largest weight of a channel, as in the authors' code


def smoothing(largest: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """The scales s of equation 4, float64 [channels].

    Args:
        largest: max|X_j| [channels]. weights: [channels, outputs], of all readers.
    """
    heaviest = np.maximum(np.abs(weights).max(axis=1), SMALLEST).astype(np.float64)
    scales: np.ndarray = np.maximum(largest.astype(np.float64) ** alpha / heaviest ** (1 - alpha), SMALLEST)
    return scales


class Smooth(ScaleNorms):
    """Scales of `smoothing`."""

    name = "smoothing"
    shifts = False

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def statistics(self, tensor: str, readers: NormReaders) -> list[Statistic]:
        return [ChannelRange(tensor, channels=readers.channels)]

    def affine(self, work: Work, tensor: str, readers: NormReaders) -> tuple[np.ndarray, np.ndarray]:
        ranges = work.found(ChannelRange(tensor))
        scales = smoothing(np.maximum(-ranges.lows, ranges.highs).clip(min=0), input_rows(readers), self.alpha)
        return scales, np.zeros_like(scales)


@method("smoothquant", paper="Xiao et al. 2023, SmoothQuant, equation 4")
@dataclasses.dataclass(frozen=True)
class SmoothQuant(Method):
    """Outliers of channels behind an encoder's norms are moved into weights; ranges that clip nothing."""

    alpha: float = parameter(0.5, "share of the outliers that goes into weights", most=1)
    activation: str = parameter("minmax", "ranges of activations", lambda: TENSOR_OBSERVERS)
    weight: str = parameter("minmax", "ranges of weights", lambda: WEIGHT_OBSERVERS)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), Smooth(self.alpha), Ranges(self.activation, self.weight, "uniform")]
