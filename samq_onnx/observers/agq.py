# SPDX-License-Identifier: Apache-2.0
"""AGQ (PTQ4SAM section 3.3): which log codes suit a post-softmax map.

The codes stand for A^ = s 2^(-c / tau), c in 0 .. 2^bits - 1 (the paper's clamp: no code is spent on zero). Base and
scale are chosen by the error they leave in the attention output, E(tau, s) = || (A^ - A) V ||^2 (eq. 14), summed
over feeds on a grid of s.

On the grid s = 2^(anchor - j / 16), clamping a code is clamping a value: with L = -log2 A, unclamped codes of all s
that differ by a whole number of codes stand for the same values, and only the ends [s 2^(-top / tau), s] differ. So
one rounding serves many candidates, and their errors meet V in one product.
"""

from __future__ import annotations

import math

import numpy as np

from samq_onnx.calibrate.statistics import AttentionRows
from samq_onnx.codes import LogCodes
from samq_onnx.observers.registry import SITE_OBSERVERS, SiteObserver, TensorObserver
from samq_onnx.observers.site import output_errors

__all__ = ["TAUS", "agq", "log_errors"]

TAUS = (1, 2, 4)
PER_OCTAVE = 16
OCTAVES = 3  # from above the first feed's largest probability to well below it
SMALLEST = np.float32(1e-30)


def log_errors(rows: AttentionRows, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales, float64 [candidates], and errors of all candidates (tau, s), float64 [taus, candidates]."""
    top = 2**bits - 1
    largest = rows.samples[0][0].max()
    anchor = min(0, math.ceil(math.log2(largest)) + 1)
    all_scales = 2.0 ** (anchor - np.arange(OCTAVES * PER_OCTAVE) / PER_OCTAVE)
    errors = np.zeros((len(TAUS), OCTAVES * PER_OCTAVE))
    for probabilities, v in rows.samples:
        logarithm = np.log2(np.maximum(probabilities, SMALLEST))
        for row, tau in enumerate(TAUS):
            per_code = PER_OCTAVE // tau
            for first in range(per_code):
                scales = all_scales[first::per_code]
                exponent = np.rint((logarithm - np.float32(math.log2(scales[0]))) * np.float32(tau))
                values = np.float32(scales[0]) * np.exp2(exponent * np.float32(1 / tau))
                ends = [(np.float32(s * 2.0 ** (-top / tau)), np.float32(s)) for s in scales]
                made = (np.clip(values, *pair) for pair in ends)
                errors[row, first::per_code] += output_errors(made, len(scales), probabilities, v)
    return all_scales, errors


def agq(rows: AttentionRows, bits: int, observe: TensorObserver) -> LogCodes:
    """The log codes with the least error in A V."""
    scales, errors = log_errors(rows, bits)
    row, column = np.unravel_index(int(errors.argmin()), errors.shape)
    return LogCodes(float(scales[int(column)]), TAUS[int(row)], bits)


SITE_OBSERVERS.add("log")(SiteObserver("log", agq))
