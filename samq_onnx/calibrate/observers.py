# SPDX-License-Identifier: Apache-2.0
"""Observers: how the range of a tensor follows from its statistics. Each maps (statistics, bits) to (low, high)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samq_onnx.calibrate.quantizer import fake_quantize, qparams
from samq_onnx.calibrate.stats import TensorStats

__all__ = ["OBSERVERS", "avg_minmax", "minmax", "omse", "percentile"]

Range = tuple[float, float]
PERCENTILES = (0.99, 0.999, 0.9999, 0.99999)
NORM = 2.4  # exponent of the error, as in PTQ4SAM's MSE observers
STEPS = 40  # range ends tried on each side
COARSE_BINS = 1024


def minmax(stats: TensorStats, bits: int) -> Range:
    """The extremes of all feeds."""
    return min(stats.lows), max(stats.highs)


def avg_minmax(stats: TensorStats, bits: int) -> Range:
    """The mean of the minima and the mean of the maxima of the feeds."""
    return float(np.mean(stats.lows)), float(np.mean(stats.highs))


def _quantile(stats: TensorStats, share: float) -> float:
    cumulative = np.cumsum(stats.counts) / stats.counts.sum()
    edges = (np.arange(len(stats.counts) + 1) + stats.first) * stats.width
    return float(np.interp(share, np.concatenate([[0.0], cumulative]), edges))


def _error(stats: TensorStats, low: float, high: float, bits: int, norm: float) -> float:
    centres = stats.centres
    error = np.abs(fake_quantize(centres, *qparams(low, high, bits), bits) - centres) ** norm
    return float((stats.counts * error).sum())


def percentile(stats: TensorStats, bits: int) -> Range:
    """The central share of the values, 98 % to 99.998 %, whose range has the least squared error."""
    ranges = [(_quantile(stats, 1 - share), _quantile(stats, share)) for share in PERCENTILES]
    return min(ranges, key=lambda ends: _error(stats, *ends, bits, 2.0))


def omse(stats: TensorStats, bits: int) -> Range:
    """The range whose codes have the least mean |x - x^|^2.4, both ends searched together on a grid."""
    low, high = minmax(stats, bits)
    merge = max(1, len(stats.counts) // COARSE_BINS)
    pad = -len(stats.counts) % merge
    counts = np.pad(stats.counts, (0, pad)).reshape(-1, merge).sum(axis=1)
    centres = (np.arange(len(counts)) * merge + stats.first + merge / 2) * stats.width
    counts, centres = counts[counts > 0], centres[counts > 0]
    shares = np.arange(1, STEPS + 1) / STEPS
    lows = low * shares if low < 0 else np.zeros(1)
    highs = high * shares if high > 0 else np.zeros(1)
    grid_low, grid_high = (grid.ravel()[:, None] for grid in np.meshgrid(lows, highs))
    top = 2**bits - 1
    scale = np.maximum((grid_high - grid_low) / top, 1e-8)
    zero = np.clip(-np.rint(grid_low / scale), 0, top)
    codes = np.clip(np.rint(centres / scale) + zero, 0, top)
    errors = (np.abs((codes - zero) * scale - centres) ** NORM) @ counts
    best = int(errors.argmin())
    return float(grid_low[best, 0]), float(grid_high[best, 0])


OBSERVERS: dict[str, Callable[[TensorStats, int], Range]] = {
    "minmax": minmax,
    "avg_minmax": avg_minmax,
    "percentile": percentile,
    "omse": omse,
}
