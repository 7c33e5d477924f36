# SPDX-License-Identifier: Apache-2.0
"""Scales of a weight with the least error, and the least scales that its bias needs."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from samq_onnx.observers.minmax import widest_scales
from samq_onnx.observers.power import power
from samq_onnx.observers.registry import WEIGHT_OBSERVERS, WeightObserver

__all__ = ["mse_scales", "scales_for_bias", "weight_scales"]

WEIGHT_NORM = 2.4  # exponent of the error that weight ranges minimise, as in PTQ4SAM's released code
WEIGHT_RATIOS = np.linspace(1.0, 0.2, 17, dtype=np.float32)  # of the scale that clips nothing, tried first
WEIGHT_STEPS = np.linspace(0.04, -0.04, 9, dtype=np.float32)  # tried around the best of these
CHUNK = 1 << 16  # weights searched at once: what the search needs of them stays in the cache
LARGEST_BIAS = 2.0**30
REMEMBERED = 1024  # weights whose scales are known: trials of folds ask again and again for most of them
THREADS = min(4, os.cpu_count() or 1)

_known: OrderedDict[tuple[str, tuple[int, ...], int, int, WeightObserver], np.ndarray] = OrderedDict()


@WEIGHT_OBSERVERS.add("mse")
def mse_scales(rows: np.ndarray, bits: int) -> np.ndarray:
    """The scale from the one that clips nothing to a fifth of it with the least mean |w - w^|^2.4, to a hundredth."""
    widest = widest_scales(rows, bits)
    # in units of a power of two, which rounds nothing, powers of the errors of any weights are float32
    unit, exponent = np.frexp(widest)
    rows, top = np.ldexp(rows, -exponent[:, None]), 2 ** (bits - 1)
    coarse = _best_ratio(rows, unit, np.broadcast_to(WEIGHT_RATIOS, (len(rows), len(WEIGHT_RATIOS))), top)
    fine = _best_ratio(rows, unit, np.minimum(1.0, coarse[:, None] + WEIGHT_STEPS), top)
    scales: np.ndarray = widest * fine
    return scales.astype(np.float64)


def weight_scales(weight: np.ndarray, out_axis: int, bits: int, observe: WeightObserver) -> np.ndarray:
    """Scales of symmetric codes for each output channel, float64 [out]."""
    name = hashlib.sha256(np.ascontiguousarray(weight, np.float32).tobytes()).hexdigest()
    key = name, weight.shape, out_axis, bits, observe
    if key not in _known:
        rows = np.moveaxis(weight, out_axis, 0)
        _known[key] = observe(np.ascontiguousarray(rows.reshape(len(rows), -1), np.float32), bits)
        if len(_known) > REMEMBERED:
            _known.popitem(last=False)
    return _known[key].copy()


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

    def search(start: int) -> None:
        part = slice(start, start + chunk_rows)
        for column in range(0, rows.shape[1], CHUNK):
            _add_errors(errors[part], rows[part, column : column + CHUNK], scales[part], top)

    with ThreadPoolExecutor(THREADS) as threads:  # numpy lets go of the interpreter
        list(threads.map(search, range(0, len(rows), chunk_rows)))
    best: np.ndarray = ratios[np.arange(len(rows)), errors.argmin(axis=1)]
    return best


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
