# SPDX-License-Identifier: Apache-2.0
"""Which codes relative to the largest of a row suit a post-softmax map: log or uniform, and how fine.

The kind, and tau, are chosen by the error they leave in the attention output, || (A^ - A) V ||^2, which is the
objective of PTQ4SAM eq. 14.
"""

from __future__ import annotations

import numpy as np

from samq_onnx.calibrate.statistics import AttentionRows
from samq_onnx.codes import RowCodes
from samq_onnx.codes.row import UNIFORM
from samq_onnx.observers.registry import SITE_OBSERVERS, SiteObserver, TensorObserver
from samq_onnx.observers.site import output_errors

__all__ = ["TAUS", "row", "row_errors"]

TAUS = (UNIFORM, 1, 2, 4, 8, 16)


def row_errors(rows: AttentionRows, bits: int) -> np.ndarray:
    """Errors of all candidates, float64 [taus]."""
    candidates = [RowCodes(tau, bits) for tau in TAUS]
    errors = np.zeros(len(TAUS))
    for probabilities, v in rows.samples:
        coded = (codes.fake_quantize(probabilities) for codes in candidates)
        errors += output_errors(coded, len(TAUS), probabilities, v)
    return errors


def row(rows: AttentionRows, bits: int, observe: TensorObserver) -> RowCodes:
    """The row codes with the least error in A V."""
    return RowCodes(TAUS[int(row_errors(rows, bits).argmin())], bits)


SITE_OBSERVERS.add("row")(SiteObserver("row", row))
