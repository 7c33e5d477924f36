# SPDX-License-Identifier: Apache-2.0
"""RepQ-ViT: channels of their own codes share one after reparametrisation; its log codes and central shares."""

from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.calibrate.statistics import AttentionRows, TensorStats
from samq_onnx.codes import LogCodes, WeightCodes
from samq_onnx.methods import repq_vit
from samq_onnx.observers import SITE_OBSERVERS, TENSOR_OBSERVERS


def _channels(count: int = 5, rows: int = 4000) -> np.ndarray:
    random = np.random.default_rng(0)
    spread, middle = np.exp(random.normal(size=count)), 3 * random.normal(size=count)
    return (random.normal(size=(rows, count)) * spread + middle).astype(np.float32)


def test_codes_of_channels_are_those_of_the_tensor_afterwards() -> None:
    """The paper's claim: code((x - v) / s; d~, z~) = code(x; d, z), for every channel."""
    x = _channels()
    scale, point = repq_vit.channel_codes(x, 6)
    r, shift = repq_vit.reparametrised(scale, point)
    own = np.clip(np.rint(x / scale + point), 0, 63)
    shared = np.clip(np.rint((x - shift) / r / scale.mean() + point.mean()), 0, 63)
    assert (own == shared).mean() > 0.999  # but for ties
    assert r.mean() == pytest.approx(1)


def test_norm_and_linear_of_the_papers_equations() -> None:
    """beta / r - b and W r, bias + W r b: with x = beta + gamma n they give what they gave."""
    scale, point = np.array([0.1, 0.4]), np.array([3.0, -20.0])
    r, shift = repq_vit.reparametrised(scale, point)
    b = -point * scale / r - -point.mean() * scale.mean()
    np.testing.assert_allclose(r, [0.4, 1.6])
    np.testing.assert_allclose(shift, r * b)


@pytest.mark.parametrize("bits", [4, 8])
def test_each_channel_has_the_central_share_with_the_least_error(bits: int) -> None:
    x = _channels()
    x[:3, 1] += 500.0
    scale, point = repq_vit.channel_codes(x, bits)
    for j, column in enumerate(x.T):
        tried = []
        for share in (0.999, 0.9999, 0.99999):
            low, high = np.quantile(column, [1 - share, share])
            delta = (high - low) / (2**bits - 1)
            zero = round(-low / delta)
            made = (np.clip(np.round(column / delta) + zero, 0, 2**bits - 1) - zero) * delta
            tried.append((np.square(made - column).sum(), delta, zero))
        assert (scale[j], point[j]) == pytest.approx(min(tried)[1:], rel=1e-5)


def test_weights_too() -> None:
    weights = _channels(3).T.copy()
    weights[0, 0] = 60.0
    found = repq_vit.central_scales(weights, 4)
    errors = [
        np.square(codes.decode(codes.encode(weights, 0), 0) - weights).sum(axis=1)
        for codes in (WeightCodes(tuple((found * factor).tolist()), 4) for factor in (1.0, 4.0))
    ]
    assert found[0] < 5 and (errors[0] < errors[1]).all()


def test_log_codes_of_base_root_two() -> None:
    """methods of log codes, k = 4, s = 0.9, tau = 2; with the clamp, the smallest code stands for all below it."""
    inputs = np.array([1, 0.8, 0.5, 0.3, 0.143, 0.05, 0.01], np.float32)
    expected = [0.9, 0.9, 0.45, 0.318198, 0.159099, 0.05625, 0.009944]
    np.testing.assert_allclose(LogCodes(0.9, 2, 4).fake_quantize(inputs), expected, rtol=1e-4)


def test_the_scale_of_a_map_is_one_of_three_quantiles() -> None:
    random = np.random.default_rng(1)
    rows = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    rows.update(*(2 * random.normal(size=(2, 50, 8)).astype(np.float32) for _ in range(3)))
    values = np.concatenate([maps.ravel() for maps, _ in rows.samples])
    codes = SITE_OBSERVERS["log-sqrt2"].observe(rows, 4, TENSOR_OBSERVERS["minmax"])
    assert isinstance(codes, LogCodes) and codes.tau == 2
    tried = [float(np.quantile(values, share)) for share in (0.999, 0.9999, 0.99999)]

    def error(scale: float) -> float:
        code = np.clip(np.round(-2 * np.log2(np.maximum(values, 1e-20) / scale)), 0, 15)
        return float(np.square(scale * 2 ** (-code / 2) - values, dtype=np.float64).sum())

    assert codes.scale == pytest.approx(min(tried, key=error))


def test_ranges_leave_out_more_than_a_thousandth_never() -> None:
    stats = TensorStats("x")
    stats.update(np.append(np.random.default_rng(2).normal(size=100_000), np.full(5, 60.0)).astype(np.float32))
    codes = repq_vit.central_range(stats, 4)
    high = (15 - codes.zero_point) * codes.scale
    assert 2.5 < high < 5
