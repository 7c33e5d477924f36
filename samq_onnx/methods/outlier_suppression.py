# SPDX-License-Identifier: Apache-2.0
"""Outlier Suppression+: centre channels by a shift, then scale down those that stand out, as far as pays.

X. Wei et al., "Outlier Suppression+: accurate quantization of large language models by equivalent and optimal shifting
and scaling", EMNLP 2023. The shift z_j = (max X_j + min X_j) / 2 makes channels symmetric (equation 3). A threshold t
then scales those that exceed it, c_j = max(1, max|X_j - z_j| / t) (equation 8), and t is searched on a grid for the
least error of what is computed from X^ and W^ (equation 5). Ranges clip nothing, as in the authors' code.

The error is that of the linears' outputs, for q, k and v too, where the paper takes the attention's output: that would
need all keys for every t. The grid ends at a twentieth of the largest value, not at 1, which suits language models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from samq_onnx.calibrate.statistics import ChannelRange, RowSamples, Statistic
from samq_onnx.codes import UniformCodes, WeightCodes
from samq_onnx.families import Part
from samq_onnx.methods.method import Method, method, parameter
from samq_onnx.methods.scheme import Scheme
from samq_onnx.methods.step import Step, Work
from samq_onnx.methods.steps import CentreKeys, Ranges, ScaleNorms, input_rows
from samq_onnx.observers import TENSOR_OBSERVERS, WEIGHT_OBSERVERS
from samq_onnx.observers.minmax import minmax_scales
from samq_onnx.passes.fold import NormReaders
from samq_onnx.products import small_products

__all__ = ["OutlierSuppression", "ShiftAndScale", "best_scales", "output_error", "thresholded"]

CANDIDATES = 20  # thresholds tried first
FINE_CANDIDATES = 11  # and then between the neighbours of the best: about as fine as the authors' 100
LEAST_SHARE = 0.05  # of the largest value
ROWS = 256  # of the sample that errors are taken over


def thresholded(largest: np.ndarray, threshold: float) -> np.ndarray:
    """The scales c of equation 8, float64 [channels], of channels whose values reach ``largest`` [channels]."""
    scales: np.ndarray = np.maximum(1.0, largest.astype(np.float64) / threshold)
    return scales


def output_error(
    rows: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    scales: np.ndarray,
    input_bits: int,
    weight_bits: int,
) -> float:
    """Mean over rows of |q(X / c) q(c W) - X W|^2 (equation 5), with ranges that clip nothing.

    Args:
        rows: X, float32 [rows, channels]. ends: least and largest value of each channel [channels].
        weights: W, float32 [channels, outputs]. scales: c [channels].
    """
    low, high = float((ends[0] / scales).min()), float((ends[1] / scales).max())
    x = UniformCodes.of_range(low, high, input_bits).fake_quantize(rows / scales).astype(np.float32)
    scaled = (weights * scales[:, None]).astype(np.float32)
    codes = WeightCodes(tuple(minmax_scales(scaled.T, weight_bits).tolist()), weight_bits)
    made = small_products(x[None], codes.decode(codes.encode(scaled, 1), 1)[None])
    made -= small_products(rows[None], weights[None])
    return float(np.square(made).sum(dtype=np.float64) / len(rows))


def best_scales(error: Callable[[np.ndarray], float], largest: np.ndarray) -> np.ndarray:
    """Of thresholds on a grid, and again between the neighbours of the best, the scales with the least error."""
    top = float(largest.max())
    grid = np.linspace(top, LEAST_SHARE * top, CANDIDATES)
    errors = [error(thresholded(largest, t)) for t in grid]
    best = int(np.argmin(errors))
    fine = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, CANDIDATES - 1)], FINE_CANDIDATES)
    refined = [error(thresholded(largest, t)) for t in fine]
    threshold = fine[int(np.argmin(refined))] if min(refined) < errors[best] else grid[best]
    return thresholded(largest, float(threshold))


class ShiftAndScale(ScaleNorms):
    """Shifts of equation 3 where the norm takes one, and the scales of `thresholded` with the least `output_error`."""

    name = "outlier suppression"
    shifts = True

    def statistics(self, tensor: str, readers: NormReaders) -> list[Statistic]:
        return [ChannelRange(tensor, channels=readers.channels), RowSamples(tensor, channels=readers.channels)]

    def affine(self, work: Work, tensor: str, readers: NormReaders) -> tuple[np.ndarray, np.ndarray]:
        ranges, rows = work.found(ChannelRange(tensor)), work.found(RowSamples(tensor)).rows
        lows, highs = ranges.lows.astype(np.float64), ranges.highs.astype(np.float64)
        shift = (highs + lows) / 2 if readers.no_shift is None else np.zeros_like(lows)
        ends = lows - shift, highs - shift
        largest = np.maximum(-ends[0], ends[1])
        rows = (rows[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)] - shift).astype(np.float32)
        input_bits, weight_bits = (
            min(work.scheme.bits(linear.name, role) for linear in readers.linears) for role in ("input", "weight")
        )
        weights = input_rows(readers)
        if not largest.any():
            return np.ones_like(shift), shift
        return best_scales(lambda c: output_error(rows, ends, weights, c, input_bits, weight_bits), largest), shift


@method("os-plus", paper="Wei et al. 2023, Outlier Suppression+, equations 3, 5 and 8")
@dataclasses.dataclass(frozen=True)
class OutlierSuppression(Method):
    """Channels behind an encoder's norms are centred and, where they stand out, scaled; ranges that clip nothing."""

    activation: str = parameter("minmax", "ranges of activations", lambda: TENSOR_OBSERVERS)
    weight: str = parameter("minmax", "ranges of weights", lambda: WEIGHT_OBSERVERS)

    def steps(self, part: Part, scheme: Scheme) -> list[Step]:
        return [CentreKeys(), ShiftAndScale(), Ranges(self.activation, self.weight, "uniform")]
