# SPDX-License-Identifier: Apache-2.0
"""Uniform quantizers: parameters from a range, the round trip, and scales of weights."""

from __future__ import annotations

import numpy as np

__all__ = ["fake_quantize", "qparams", "weight_scales"]

SMALLEST_SCALE = 1e-8
WEIGHT_NORM = 2.4  # exponent of the error that weight ranges minimise, as in PTQ4SAM's released code
WEIGHT_RATIOS = np.linspace(0.35, 1.0, 66)


def qparams(low: float, high: float, bits: int) -> tuple[float, int]:
    """Scale and zero point of asymmetric codes in [0, 2^bits - 1] for a range, widened to hold zero.

    scale = (high - low) / (2^bits - 1), zero_point = -round(low / scale), clamped to the codes.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    top = 2**bits - 1
    scale = float(np.float32(max((high - low) / top, SMALLEST_SCALE)))
    return scale, int(np.clip(-np.rint(low / scale), 0, top))


def fake_quantize(x: np.ndarray, scale: float, zero_point: int, bits: int) -> np.ndarray:
    """x through its codes and back; rounds half to even."""
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1)
    return (codes - zero_point) * scale


def weight_scales(weight: np.ndarray, out_axis: int, bits: int, *, how: str) -> np.ndarray:
    """Scale per output channel, float64 [out], of symmetric codes in [-2^(bits-1), 2^(bits-1) - 1].

    Args:
        how: ``minmax``, or ``mse`` for the best of 66 shrunken ranges by mean |w - w^|^2.4.
    """
    rows = np.moveaxis(weight, out_axis, 0).reshape(weight.shape[out_axis], -1).astype(np.float32)
    top = 2 ** (bits - 1)
    widest = np.maximum(np.maximum(rows.max(axis=1) / (top - 1), -rows.min(axis=1) / top), SMALLEST_SCALE)
    if how == "minmax":
        return widest.astype(np.float64)
    if how != "mse":
        raise ValueError(f"unknown weight range {how!r}")
    best, least = widest.copy(), np.full(len(rows), np.inf)
    for ratio in WEIGHT_RATIOS:
        scale = (widest * ratio)[:, None]
        error = np.abs(np.clip(np.rint(rows / scale), -top, top - 1) * scale - rows)
        score = np.power(error, WEIGHT_NORM, out=error).mean(axis=1)
        better = score < least
        best[better], least[better] = scale[better, 0], score[better]
    return best.astype(np.float64)
