# SPDX-License-Identifier: Apache-2.0
"""LogQuantize and ShiftLutMatMul alone: native, body, numpy, and PTQ4SAM's published values."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_tests.one_node import run, scalar
from samq_onnx import reference
from samq_onnx.codes.row import row_weights, uniform_row_codes

TIE = 1e-5  # in code steps: the ratio p / p_scale is rounded to float32

# Softmax values and what 4-bit AGQ codes with s = 0.9 make of them; small ones end at the largest code.
PROBABILITIES = [1, 0.8, 0.5, 0.3, 0.143, 0.05, 0.01, 0.004, 0.0002, 0]
QUANTIZED = {
    1: [0.9, 0.9, 0.45, 0.225, 0.1125, 0.05625, 0.0140625, 0.003515625, 0.00021972656, 0.9 * 2.0**-15],
    2: [0.9, 0.9, 0.45, 0.31819805, 0.15909903, 0.05625, 0.009943689, *[0.9 * 2.0**-7.5] * 3],
    4: [0.9, 0.75680746, 0.53514296, 0.31819805, 0.13378574, *[0.9 * 2.0**-3.75] * 5],
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("tau", [1, 2, 4])
def test_published_values(tau: int, native: bool) -> None:
    p = np.array(PROBABILITIES, np.float32).reshape(1, 1, -1)
    attributes = {"tau": tau, "bits": 4}
    codes = run("LogQuantize", {"p": p, "p_scale": scalar(0.9)}, attributes, native=native)
    one_hot = np.eye(p.size, dtype=np.uint8)[None]
    feed = {
        "codes": codes,
        "v": one_hot,
        "p_scale": scalar(0.9),
        "v_scale": scalar(1.0),
        "v_zero_point": scalar(0, np.uint8),
    }
    out = run("ShiftLutMatMul", feed, attributes, native=native)
    np.testing.assert_allclose(out.ravel(), QUANTIZED[tau], rtol=1e-6)


@pytest.mark.parametrize(("tau", "bits"), [(1, 8), (2, 6), (4, 4), (4, 8)])
def test_log_quantize(tau: int, bits: int) -> None:
    p = np.random.default_rng(0).random((2, 3, 40, 50), dtype=np.float32) ** 12
    p[0, 0, 0, :3] = 0, 1, 1e-38
    p_scale = scalar(0.7)
    codes = reference.log_quantize(p, p_scale.item(), tau=tau, bits=bits)
    for native in (True, False):
        actual = run("LogQuantize", {"p": p, "p_scale": p_scale}, {"tau": tau, "bits": bits}, native=native)
        np.testing.assert_array_equal(actual, codes)
    with np.errstate(divide="ignore"):
        steps = -tau * np.log2(p.astype(np.float64) / p_scale)
    lowest, highest = (np.clip(np.rint(steps + x), 0, 2**bits - 1) for x in (-TIE, TIE))
    assert np.all((codes >= lowest) & (codes <= highest))
    assert codes[0, 0, 0, 0] == 2**bits - 1


@pytest.mark.parametrize(("tau", "bits"), [(1, 8), (2, 6), (4, 4), (4, 8)])
def test_shift_lut_matmul(tau: int, bits: int) -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 2**bits, (2, 2, 9, 301), dtype=np.uint8)
    v = random.integers(0, 256, (2, 2, 301, 13), dtype=np.uint8)
    feed = {
        "codes": codes,
        "v": v,
        "p_scale": scalar(0.3),
        "v_scale": scalar(0.02),
        "v_zero_point": scalar(119, np.uint8),
    }
    given = (feed["p_scale"].item(), feed["v_scale"].item())
    expected = reference.shift_lut_matmul(codes, v, *given, 119, tau=tau, bits=bits)
    held = ["p_scale", "v_scale", "v_zero_point"]
    for native, constants in ((True, []), (False, []), (False, held)):
        out = run("ShiftLutMatMul", feed, {"tau": tau, "bits": bits}, native=native, constants=constants)
        np.testing.assert_array_equal(out, expected)


def test_a_weight_is_its_power_of_two_but_for_truncation() -> None:
    for tau in (1, 2, 4, 8, 16):
        weights = reference.code_weights(tau, 8) * 2.0**-reference.FRACTION_BITS
        np.testing.assert_allclose(weights, 2.0 ** (-np.arange(256) / tau), rtol=0, atol=2.0**-29)


def test_a_weight_relative_to_its_row_is_its_power_of_two_in_14_bits() -> None:
    for tau in (1, 2, 4, 8, 16):
        weights = row_weights(tau, 8)
        assert weights[0] == 2**14 and weights[-1] == 0
        np.testing.assert_allclose(weights[:-1], 2.0 ** (14 - np.arange(255) / tau), rtol=0, atol=0.75)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_uniform_code_relative_to_its_row_is_near_its_power_of_two(bits: int) -> None:
    distance = np.linspace(0, 40, 200_001, dtype=np.float32)
    codes, exact = uniform_row_codes(distance, bits), (2**bits - 1) * 2.0 ** -distance.astype(np.float64)
    assert codes[0] == 2**bits - 1 and codes[-1] == 0 and np.all(np.diff(codes) <= 0)
    assert np.abs(codes - exact).max() < 0.5 + 0.2 * 2.0 ** (bits - 8)
