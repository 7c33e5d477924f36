# SPDX-License-Identifier: Apache-2.0
"""The central share of an activation's values that is worth its range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.codes import UniformCodes
from samq_onnx.observers.registry import TENSOR_OBSERVERS

__all__ = ["best_share", "percentile"]

PERCENTILES = (0.99, 0.999, 0.9999, 0.99999)


def _quantile(stats: TensorStats, share: float) -> float:
    cumulative = np.cumsum(stats.counts) / stats.counts.sum()
    edges = (np.arange(len(stats.counts) + 1) + stats.first) * stats.width
    return float(np.interp(share, np.concatenate([[0.0], cumulative]), edges))


def best_share(stats: TensorStats, bits: int, shares: Sequence[float]) -> UniformCodes:
    """The range from the quantile 1 - share to the quantile share that has the least squared error."""
    ranges = [(_quantile(stats, 1 - share), _quantile(stats, share)) for share in shares]

    def error(codes: UniformCodes) -> float:
        return float(stats.counts @ np.square(codes.fake_quantize(stats.centres) - stats.centres))

    return min((UniformCodes.of_range(*ends, bits) for ends in ranges), key=error)


@TENSOR_OBSERVERS.add("percentile")
def percentile(stats: TensorStats, bits: int) -> UniformCodes:
    """The central share of the values, 98 % to 99.998 %, whose range has the least squared error."""
    return best_share(stats, bits, PERCENTILES)
