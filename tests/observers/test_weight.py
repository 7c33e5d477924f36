# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.codes import UniformCodes
from samq_onnx.observers import WEIGHT_OBSERVERS
from samq_onnx.observers.weight import scales_for_bias, weight_scales


def test_codes_of_a_range_and_round_trip_of_a_worked_example() -> None:
    codes = UniformCodes.of_range(-1.0, 2.0, 4)
    assert codes.scale == pytest.approx(0.2) and codes.zero_point == 5
    x = np.array([-1.2, -0.4, 0, 0.07, 0.5, 1.9, 3], np.float32)  # 1.9 / 0.2 is half-way
    assert UniformCodes(0.2, 5, 4).fake_quantize(x) == pytest.approx([-1.0, -0.4, 0, 0, 0.4, 2.0, 2.0])


@pytest.mark.parametrize(("low", "high", "zero_point"), [(1.0, 3.0, 0), (-3.0, -1.0, 255), (0.0, 0.0, 0)])
def test_range_is_widened_to_hold_zero(low: float, high: float, zero_point: int) -> None:
    codes = UniformCodes.of_range(low, high, 8)
    assert codes.zero_point == zero_point
    assert codes.scale == pytest.approx(max(3.0 if low or high else 0.0, 1e-8 * 255) / 255)


def _round_trip(rows: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    top = 2 ** (bits - 1)
    return np.clip(np.rint(rows / scale[:, None]), -top, top - 1) * scale[:, None]


@pytest.mark.parametrize("bits", [8, 4])
def test_minmax_weight_scales_clip_nothing_and_are_tight(bits: int) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 3, 3, 5)).astype(np.float32)
    rows = np.moveaxis(weight, 3, 0).reshape(5, -1)
    scale = weight_scales(weight, 3, bits, WEIGHT_OBSERVERS["minmax"])
    assert scale.shape == (5,)
    off = np.abs(_round_trip(rows, scale, bits) - rows).max(axis=1)
    assert (off <= scale * 0.5001).all()
    # a tenth less would push the outermost weight beyond the last code
    assert (np.abs(_round_trip(rows, scale * 0.9, bits) - rows).max(axis=1) > scale * 0.45).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_mse_weight_scales_are_as_good_as_an_exhaustive_search(bits: int) -> None:
    random = np.random.default_rng(1)
    rows = random.standard_t(4, size=(24, 512)).astype(np.float32) * random.uniform(0.1, 10, size=(24, 1))

    def error(scale: np.ndarray) -> np.ndarray:
        return (np.abs(_round_trip(rows, scale, bits) - rows) ** 2.4).mean(axis=1)

    widest = weight_scales(rows, 0, bits, WEIGHT_OBSERVERS["minmax"])
    exhaustive = np.min([error(widest * ratio) for ratio in np.linspace(0.2, 1, 161)], axis=0)
    found = error(weight_scales(rows, 0, bits, WEIGHT_OBSERVERS["mse"]))
    assert (found <= exhaustive * 1.05).all()
    if bits == 4:  # eight bits are rarely worth clipping for
        assert found.mean() < 0.8 * error(widest).mean()


def test_one_channel_of_many_weights() -> None:
    weight = np.random.default_rng(2).normal(size=(1, 140_000)).astype(np.float32)
    weight[0, 5] = 12.0
    assert weight_scales(weight, 0, 8, WEIGHT_OBSERVERS["minmax"]) == pytest.approx([12.0 / 127])
    clipped = weight_scales(weight, 0, 4, WEIGHT_OBSERVERS["mse"])
    assert clipped.shape == (1,) and 0.2 * 12 / 7 <= clipped[0] < 0.7 * 12 / 7


def test_a_bias_fits_31_bits_at_its_scale() -> None:
    bias = np.array([0.0, 3.0, -1e30], np.float32)
    scales = scales_for_bias(bias, 0.02)
    assert scales[0] == 0
    assert np.rint(np.abs(bias[1:]) / (0.02 * scales[1:])) == pytest.approx(2**30)
