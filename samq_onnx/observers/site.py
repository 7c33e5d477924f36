# SPDX-License-Identifier: Apache-2.0
"""What observers of post-softmax maps share: the error of a coded map, and the plain choice."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from samq_onnx.calibrate.statistics import AttentionRows
from samq_onnx.codes import UniformCodes
from samq_onnx.observers.registry import SITE_OBSERVERS, SiteObserver, TensorObserver
from samq_onnx.products import small_products

__all__ = ["output_errors", "uniform"]


def uniform(rows: AttentionRows, bits: int, observe: TensorObserver) -> UniformCodes:
    """Codes over the range that an observer gives, as for any other tensor."""
    return observe(rows.probabilities, bits)


SITE_OBSERVERS.add("uniform")(SiteObserver("uniform", uniform))


def output_errors(coded: Iterable[np.ndarray], count: int, probabilities: np.ndarray, v: np.ndarray) -> np.ndarray:
    """|| (A^ - A) V ||^2 (PTQ4SAM eq. 14) of ``count`` coded maps A^ of one map A, float64 [count].

    Args:
        coded: float32 [maps, rows, N] each. probabilities: A, the same. v: float32 [maps, N, d].
    """
    maps, rows, keys = probabilities.shape
    difference = np.empty((maps, count, rows, keys), np.float32)
    for index, made in enumerate(coded):
        np.subtract(made, probabilities, out=difference[:, index])
    _, exponent = np.frexp(np.abs(v).max())  # squares of values near one are float32, whatever v is
    moved = small_products(difference.reshape(maps, -1, keys), np.ldexp(v, -exponent))
    errors = np.square(moved, out=moved).reshape(maps, count, -1).sum(axis=(0, 2), dtype=np.float64)
    scaled: np.ndarray = np.ldexp(errors, 2 * exponent)
    return scaled
