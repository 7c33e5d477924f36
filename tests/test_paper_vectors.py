# SPDX-License-Identifier: Apache-2.0
"""Worked numbers of the papers, through every piece of code that computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samq_onnx import reference
from samq_onnx.codes import LogCodes, UniformCodes
from samq_onnx.codes.log import FRACTION_BITS, code_weights
from samq_onnx.passes.fold import is_bimodal
from samq_onnx.reconstruct.fake_quant import FakeQuantActivation, fake_quant_probabilities

# uniform codes of 4 bits over (-1, 2): scale 0.2, zero point 5; halves go to the even code
UNIFORM_X = np.array([-1.2, -0.4, 0.0, 0.07, 0.5, 1.9, 3.0], np.float32)
UNIFORM_Y = [-1.0, -0.4, 0.0, 0.0, 0.4, 2.0, 2.0]

# AGQ (PTQ4SAM, eq. 8 and 9) of 4 bits, scale 0.9: what lies below the last code is clamped to it
AGQ_SCALE, AGQ_BITS = 0.9, 4
AGQ_A = np.array([1, 0.8, 0.5, 0.3, 0.143, 0.05, 0.01, 0.004, 0.0002, 0], np.float32)
LAST = {tau: AGQ_SCALE * 2 ** (-15 / tau) for tau in (1, 2, 4)}
AGQ = {
    1: [0.9, 0.9, 0.45, 0.225, 0.1125, 0.05625, 0.0140625, 0.003515625, 0.0002197266, LAST[1]],
    2: [0.9, 0.9, 0.45, 0.318198, 0.159099, 0.05625, 0.009943689, LAST[2], LAST[2], LAST[2]],
    4: [0.9, 0.756807, 0.535143, 0.318198, 0.133786, *[LAST[4]] * 5],
}

# BIG's detector (PTQ4SAM's released code): two peaks are found as long as both are high and far enough apart
MODES = {
    "spread 1": (1.0, 0.461, True),
    "spread 3": (3.0, 0.461, True),
    "spread 5": (5.0, 0.461, True),
    "one mode of a fifth": (2.0, 0.2, False),
    "one mode of a tenth": (2.0, 0.1, False),
}


def test_range_to_scale_and_zero_point() -> None:
    codes = UniformCodes.of_range(-1.0, 2.0, 4)
    assert (codes.scale, codes.zero_point) == (pytest.approx(0.2), 5)


def test_uniform_codes() -> None:
    assert UniformCodes(0.2, 5, 4).fake_quantize(UNIFORM_X) == pytest.approx(UNIFORM_Y)


def test_uniform_codes_of_the_simulation() -> None:
    """Away from halves: float32 does not hold 0.2, nor the logarithm that learns."""
    sure = np.array([0, 1, 2, 3, 6])
    with torch.no_grad():
        made = FakeQuantActivation(UniformCodes(0.2, 5, 4))(torch.tensor(UNIFORM_X[sure])).numpy()
    assert made == pytest.approx(np.array(UNIFORM_Y)[sure], abs=1e-6)


@pytest.mark.parametrize("tau", AGQ)
def test_agq_codes_and_their_integer_weights(tau: int) -> None:
    assert LogCodes(AGQ_SCALE, tau, AGQ_BITS).fake_quantize(AGQ_A) == pytest.approx(AGQ[tau], rel=1e-5)
    codes = reference.log_quantize(AGQ_A, AGQ_SCALE, tau=tau, bits=AGQ_BITS)
    assert AGQ_SCALE * 2.0 ** (-codes.astype(np.float64) / tau) == pytest.approx(AGQ[tau], rel=1e-5)
    weights = code_weights(tau, AGQ_BITS)[codes] * 2.0**-FRACTION_BITS  # shifts of a table, eq. 10 to 13
    assert AGQ_SCALE * weights == pytest.approx(AGQ[tau], rel=1e-5)


@pytest.mark.parametrize("tau", AGQ)
def test_agq_codes_of_the_simulation(tau: int) -> None:
    with torch.no_grad():
        made = fake_quant_probabilities(LogCodes(AGQ_SCALE, tau, AGQ_BITS))(torch.tensor(AGQ_A)).numpy()
    assert made == pytest.approx(AGQ[tau], rel=1e-5)


@pytest.mark.parametrize("name", MODES)
def test_two_modes_of_keys(name: str) -> None:
    spread, positive, found = MODES[name]
    random = np.random.default_rng(0)
    keys = np.where(random.random(40_000) < positive, 8.0, -8.0) + spread * random.normal(size=40_000)
    assert is_bimodal(keys) == found


def test_three_modes_are_not_two() -> None:
    random = np.random.default_rng(0)
    assert not is_bimodal(random.choice([-8.0, 0.0, 8.0], 40_000) + random.normal(size=40_000))
