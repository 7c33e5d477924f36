# SPDX-License-Identifier: Apache-2.0
"""Uniform quantizers: parameters from a range, the round trip, and scales of weights."""

from __future__ import annotations

import numpy as np

__all__ = ["WEIGHT_RANGES", "fake_quantize", "power", "qparams", "scales_for_bias", "weight_scales"]

SMALLEST_SCALE = 1e-8
WEIGHT_RANGES = ("minmax", "mse")
WEIGHT_NORM = 2.4  # exponent of the error that weight ranges minimise, as in PTQ4SAM's released code
WEIGHT_RATIOS = np.linspace(1.0, 0.2, 17, dtype=np.float32)  # of the scale that clips nothing, tried first
WEIGHT_STEPS = np.linspace(0.04, -0.04, 9, dtype=np.float32)  # tried around the best of these
CHUNK = 1 << 16  # weights searched at once: what the search needs of them stays in the cache
LARGEST_BIAS = 2.0**30
TINY = np.float32(1e-30)


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


def power(error: np.ndarray, norm: float) -> np.ndarray:
    """|error|^norm of float32, in place; several times faster than ``np.power``."""
    np.abs(error, out=error)
    np.maximum(error, TINY, out=error)
    np.log(error, out=error)
    error *= np.float32(norm)
    return np.exp(error, out=error)


def weight_scales(weight: np.ndarray, out_axis: int | None, bits: int, *, how: str) -> np.ndarray:
    """Scales of symmetric codes in [-2^(bits-1), 2^(bits-1) - 1].

    Args:
        out_axis: axis of the output channels, None for one scale in all.
        how: ``minmax``, the smallest scale that clips nothing, or ``mse``, the one between that and a fifth of it
            with the least mean |w - w^|^2.4, to a hundredth.

    Returns:
        Float64 [out], or [1].
    """
    rows = weight.reshape(1, -1) if out_axis is None else np.moveaxis(weight, out_axis, 0)
    rows = np.ascontiguousarray(rows.reshape(len(rows), -1), np.float32)
    top = 2 ** (bits - 1)
    widest = np.maximum(np.maximum(rows.max(axis=1) / (top - 1), -rows.min(axis=1) / top), SMALLEST_SCALE)
    if how == "minmax":
        return widest.astype(np.float64)
    if how != "mse":
        raise ValueError(f"unknown weight range {how!r}, known are {', '.join(WEIGHT_RANGES)}")
    # in units of a power of two, which rounds nothing, powers of the errors of any weights are float32
    unit, exponent = np.frexp(widest)
    rows = np.ldexp(rows, -exponent[:, None])
    coarse = _best_ratio(rows, unit, np.broadcast_to(WEIGHT_RATIOS, (len(rows), len(WEIGHT_RATIOS))), top)
    fine = _best_ratio(rows, unit, np.minimum(1.0, coarse[:, None] + WEIGHT_STEPS), top)
    return (widest * fine).astype(np.float64)


def scales_for_bias(bias: np.ndarray, input_scale: float) -> np.ndarray:
    """The least weight scales [out] at which a bias [out] is an integer of 31 bits in units of both scales.

    One of weights that are all zero, say, must not be too large for the sums of 32 bits that it is added to.
    """
    return np.abs(bias.astype(np.float64)) / (input_scale * LARGEST_BIAS)


def _best_ratio(rows: np.ndarray, widest: np.ndarray, ratios: np.ndarray, top: int) -> np.ndarray:
    """Of each row's ``ratios`` [out, candidates] the one that makes ``widest`` [out] fit ``rows`` [out, in] best."""
    errors = np.zeros(ratios.shape)
    scales = widest[:, None] * ratios
    chunk_rows = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), chunk_rows):
        part = slice(start, start + chunk_rows)
        for column in range(0, rows.shape[1], CHUNK):
            _add_errors(errors[part], rows[part, column : column + CHUNK], scales[part], top)
    return ratios[np.arange(len(rows)), errors.argmin(axis=1)]


def _add_errors(errors: np.ndarray, rows: np.ndarray, scales: np.ndarray, top: int) -> None:
    """Add to ``errors`` [out, candidate] what each candidate scale leaves of ``rows`` [out, in]."""
    work = np.empty_like(rows)
    for candidate in range(scales.shape[1]):
        scale = scales[:, candidate, None]
        np.multiply(rows, 1.0 / scale, out=work)
        np.rint(work, out=work)
        np.clip(work, -top, top - 1, out=work)
        work *= scale
        work -= rows
        errors[:, candidate] += power(work, WEIGHT_NORM).sum(axis=1)
