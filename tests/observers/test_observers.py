# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from samq_onnx.calibrate.statistics import TensorStats
from samq_onnx.codes import UniformCodes
from samq_onnx.observers import TENSOR_OBSERVERS
from samq_onnx.observers.least_error import least_error
from samq_onnx.observers.percentile import PERCENTILES


def _stats(*feeds: np.ndarray) -> TensorStats:
    stats = TensorStats("x")
    for feed in feeds:
        stats.update(feed.astype(np.float32))
    return stats


def _error(x: np.ndarray, codes: UniformCodes, exponent: float) -> float:
    return float(np.mean(np.abs(codes.fake_quantize(x) - x) ** exponent))


def _ends(name: str, stats: TensorStats, bits: int) -> tuple[float, float]:
    """The range that an observer's codes reach, and that is a code longer or shorter at an end than what it chose."""
    codes = TENSOR_OBSERVERS[name](stats, bits)
    return -codes.zero_point * codes.scale, (2**bits - 1 - codes.zero_point) * codes.scale


NORMAL = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
HEAVY = np.concatenate([np.linspace(-1, 1, 99_800), 60 * norm.ppf((np.arange(200) + 0.5) / 200)])
SKEWED = np.exp(NORMAL) - 0.3


def test_minmax_and_its_average_over_feeds() -> None:
    stats = _stats(np.array([-1.0, 2.0]), np.array([-3.0, 5.0]))
    assert TENSOR_OBSERVERS["minmax"](stats, 8) == UniformCodes.of_range(-3.0, 5.0, 8)
    assert TENSOR_OBSERVERS["avg_minmax"](stats, 8) == UniformCodes.of_range(-2.0, 3.5, 8)


def test_omse_of_a_normal_tensor_at_four_bits() -> None:
    """PTQ4SAM's search gives about +-2.71: a width of 15 steps, whatever its codes do to the two ends."""
    low, high = _ends("omse", _stats(NORMAL), 4)
    assert high - low == pytest.approx(2 * 2.71, rel=0.03)


@pytest.mark.parametrize("bits", [4, 8])
def test_l4_cuts_less_off_than_omse(bits: int) -> None:
    stats = _stats(SKEWED)
    omse, l4, minmax = (_ends(name, stats, bits)[1] for name in ("omse", "l4", "minmax"))
    assert omse < l4 <= minmax


def test_omse_keeps_extreme_outliers() -> None:
    low, high = _ends("omse", _stats(HEAVY), 4)
    assert low < 0.6 * HEAVY.min() and high > 0.6 * HEAVY.max()


@pytest.mark.parametrize("data", [NORMAL, HEAVY, SKEWED, np.abs(NORMAL), -np.abs(NORMAL)])
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("exponent", [2.0, 2.4, 4.0])
def test_least_error_is_as_good_as_a_dense_search(data: np.ndarray, bits: int, exponent: float) -> None:
    x = np.sort(data)[:: data.size // 4000]
    codes = least_error(_stats(x), bits, exponent)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    shares = np.geomspace(0.01, 1, 60)
    lows = low * shares if low else np.zeros(1)
    highs = high * shares if high else np.zeros(1)
    others = (UniformCodes.of_range(one, two, bits) for one in lows[::2] for two in highs[::2])
    dense = min(_error(x, other, exponent) for other in others)
    assert _error(x, codes, exponent) <= 1.03 * dense


def test_percentile_takes_the_share_with_the_least_squared_error() -> None:
    stats = _stats(NORMAL)
    for bits in (4, 8):
        ends = [tuple(np.quantile(NORMAL, [1 - share, share])) for share in PERCENTILES]
        best = min((UniformCodes.of_range(*pair, bits) for pair in ends), key=lambda codes: _error(NORMAL, codes, 2.0))
        found = TENSOR_OBSERVERS["percentile"](stats, bits)
        assert found.scale == pytest.approx(best.scale, abs=6 * stats.width / (2**bits - 1))
    assert _ends("percentile", stats, 4)[1] < 3 < _ends("percentile", stats, 8)[1]


@pytest.mark.parametrize("name", sorted(TENSOR_OBSERVERS))
def test_a_tensor_of_zeros_has_a_scale(name: str) -> None:
    assert TENSOR_OBSERVERS[name](_stats(np.zeros(10)), 8).scale > 0
