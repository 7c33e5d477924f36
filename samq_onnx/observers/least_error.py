# SPDX-License-Identifier: Apache-2.0
"""The range of an activation that leaves the least mean |x - x^|^norm."""

from __future__ import annotations

import math

import numpy as np

from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.codes import UniformCodes
from samq_onnx.observers.power import power
from samq_onnx.observers.registry import TENSOR_OBSERVERS

__all__ = ["l4", "least_error", "omse"]

SMALLEST_STEP = 1e-12  # between codes, where the largest value is about one
NORM = 2.4  # exponent of the error, as in PTQ4SAM's MSE observers
COARSE_RATIOS = 0.7 ** np.arange(14)  # range ends tried on each side first: from the extremes to a hundredth of them
FINE_STEPS = 7  # range ends tried on each side around the best so far
REFINEMENTS = 2
CANDIDATES = 16  # tried at once: their errors stay in the cache


def _errors(
    values: np.ndarray, counts: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int, norm: float
) -> np.ndarray:
    """Total |x - x^|^norm of each range (low, high) [candidates] over ``values`` seen ``counts`` times.

    All are in units in which the largest value is about one, or powers of the errors would not be float32.
    """
    top = 2**bits - 1
    scale = np.maximum((high - low) / top, SMALLEST_STEP).astype(np.float32)
    zero = np.clip(-np.rint(low / scale), 0, top).astype(np.float32)
    found = np.empty(len(scale))
    for start in range(0, len(scale), CANDIDATES):
        part = slice(start, start + CANDIDATES)
        step, offset = scale[part, None], zero[part, None]
        work = values * (1.0 / step)
        np.rint(work, out=work)
        np.clip(work, -offset, top - offset, out=work)
        work *= step
        work -= values
        found[part] = power(work, norm) @ counts
    return found


def least_error(stats: TensorStats, bits: int, norm: float) -> UniformCodes:
    """The range that leaves the least mean |x - x^|^norm, both ends searched together, coarsely and then finely.

    PTQ4SAM's two-sided search walks width and shift of the range instead; the candidates are of the same kind.
    """
    seen = stats.counts > 0
    bottom, peak = min(stats.lows), max(stats.highs)
    _, exponent = math.frexp(max(-bottom, peak, stats.width))  # a power of two as the unit rounds nothing
    bottom, peak = math.ldexp(min(bottom, 0.0), -exponent), math.ldexp(max(peak, 0.0), -exponent)
    values = np.ldexp(stats.centres[seen], -exponent).astype(np.float32)
    counts = stats.counts[seen].astype(np.float32)
    low_shares = high_shares = COARSE_RATIOS
    for refinement in range(1 + REFINEMENTS):
        lows = bottom * low_shares if bottom else np.zeros(1)
        highs = peak * high_shares if peak else np.zeros(1)
        low, high = (grid.ravel() for grid in np.meshgrid(lows, highs))
        best = int(_errors(values, counts, low, high, bits, norm).argmin())
        reach = 0.7 if refinement == 0 else 0.7 ** (2 / (FINE_STEPS - 1))
        around = np.geomspace(reach, 1 / reach, FINE_STEPS)
        low_shares = np.minimum(1.0, around * low[best] / bottom) if bottom else around
        high_shares = np.minimum(1.0, around * high[best] / peak) if peak else around
    return UniformCodes.of_range(math.ldexp(low[best], exponent), math.ldexp(high[best], exponent), bits)


@TENSOR_OBSERVERS.add("omse")
def omse(stats: TensorStats, bits: int) -> UniformCodes:
    """The range that leaves the least mean |x - x^|^2.4."""
    return least_error(stats, bits, NORM)


@TENSOR_OBSERVERS.add("l4")
def l4(stats: TensorStats, bits: int) -> UniformCodes:
    """The range that leaves the least mean |x - x^|^4: less is cut off than by `omse`, more than by `minmax`."""
    return least_error(stats, bits, 4.0)
