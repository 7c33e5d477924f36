# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.codes import UniformCodes
from samq_onnx.reconstruct.gptq import compensate
from samq_onnx.reconstruct.moments import InputMoments

WIDTH, OUT, BITS = 48, 24, 4


@pytest.fixture
def layer() -> tuple[np.ndarray, np.ndarray, np.ndarray, InputMoments, np.ndarray, np.ndarray]:
    """A linear with correlated inputs: x, W, b, moments, quantized x, weight scale."""
    random = np.random.default_rng(3)
    mixing = random.normal(size=(WIDTH, WIDTH)) * np.exp(random.normal(size=WIDTH))
    x = (random.normal(size=(4096, WIDTH)) @ mixing / np.sqrt(WIDTH) + 0.4).astype(np.float32)
    weight = random.normal(size=(WIDTH, OUT))
    bias = random.normal(size=OUT)
    codes = UniformCodes(scale=float(x.max() - x.min()) * 0.6 / 15, zero_point=7, bits=4)
    moments = InputMoments("x", codes)
    for part in np.split(x, 16):
        moments.update(part)
    quantized = (np.clip(np.rint(x / codes.scale) + 7, 0, 15) - 7) * codes.scale
    scale = np.abs(weight).max(axis=0) / 7.5
    return x, weight, bias, moments, quantized, scale


def _error(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, xq: np.ndarray, wq: np.ndarray, bq: np.ndarray
) -> float:
    return float(np.mean((x @ weight + bias - xq @ wq - bq) ** 2))


def test_compensated_weights_lie_on_the_grid(layer) -> None:  # type: ignore[no-untyped-def]
    _, weight, bias, moments, _, scale = layer
    rounded, _ = compensate(weight, bias, scale, BITS, moments)
    codes = rounded / scale
    assert np.abs(codes - np.rint(codes)).max() < 1e-6
    assert codes.min() >= -8 and codes.max() <= 7


def test_output_error_is_well_below_that_of_nearest_rounding(layer) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, moments, quantized, scale = layer
    nearest = np.clip(np.rint(weight / scale), -8, 7) * scale
    rounded, new_bias = compensate(weight, bias, scale, BITS, moments)
    assert new_bias is not None
    before = _error(x, weight, bias, quantized, nearest, bias)
    after = _error(x, weight, bias, quantized, rounded, new_bias)
    assert after < 0.75 * before


def test_bias_makes_the_mean_output_exact(layer) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, moments, quantized, scale = layer
    rounded, new_bias = compensate(weight, bias, scale, BITS, moments)
    assert new_bias is not None
    difference = (x @ weight + bias).mean(axis=0) - (quantized @ rounded + new_bias).mean(axis=0)
    assert np.abs(difference).max() < 1e-4


def test_a_linear_without_bias_keeps_none(layer) -> None:  # type: ignore[no-untyped-def]
    _, weight, _, moments, _, scale = layer
    assert compensate(weight, None, scale, BITS, moments)[1] is None
