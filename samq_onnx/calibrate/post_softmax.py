# SPDX-License-Identifier: Apache-2.0
"""Codes of post-softmax maps are decided by judges, who see sampled rows of the maps; here the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

import numpy as np

from samq_onnx.calibrate.products import small_products
from samq_onnx.calibrate.quantizer import qparams
from samq_onnx.calibrate.stats import TensorStats
from samq_onnx.codes import LogCodes, RowCodes, UniformCodes

__all__ = ["Judge", "UniformRange", "output_errors", "uniform_codes"]


class Judge(Protocol):
    """Sees float32 probabilities [maps, rows, N] and v [maps, N, d] of each feed, then names the codes."""

    def update(self, probabilities: np.ndarray, v: np.ndarray) -> None: ...

    def codes(self) -> LogCodes | UniformCodes | RowCodes: ...


Observer: TypeAlias = Callable[[TensorStats, int], tuple[float, float]]


def uniform_codes(stats: TensorStats, observe: Observer, bits: int) -> UniformCodes:
    """Codes over the range that an observer gives."""
    scale, zero_point = qparams(*observe(stats, bits), bits)
    return UniformCodes(scale, zero_point, bits)


class UniformRange:
    """Uniform codes over the range that an observer gives, as for any other tensor.

    Attributes:
        stats: `TensorStats` of the probabilities.
    """

    def __init__(self, observe: Observer, bits: int) -> None:
        self.observe, self.bits = observe, bits
        self.stats = TensorStats("probabilities")

    def update(self, probabilities: np.ndarray, v: np.ndarray) -> None:
        self.stats.update(probabilities)

    def codes(self) -> UniformCodes:
        return uniform_codes(self.stats, self.observe, self.bits)


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
    return np.ldexp(errors, 2 * exponent)
