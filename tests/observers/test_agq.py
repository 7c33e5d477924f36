# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from samq_onnx import reference
from samq_onnx.calibrate.statistics import AttentionRows
from samq_onnx.observers.agq import TAUS, agq, log_errors
from samq_onnx.observers.minmax import minmax


def _maps(sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [3, 10, 50] and v [3, 50, 8]."""
    random = np.random.default_rng(seed)
    probabilities = reference.softmax(random.normal(size=(3, 10, 50)) * sharpness).astype(np.float32)
    return probabilities, random.normal(size=(3, 50, 8)).astype(np.float32)


def _rows(*feeds: tuple[np.ndarray, np.ndarray]) -> AttentionRows:
    """A statistic that has seen these probabilities and values."""
    rows = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    rows.samples = list(feeds)
    return rows


@pytest.mark.parametrize("bits", [4, 8])
def test_errors_are_those_of_the_codes(bits: int) -> None:
    """Every candidate, over two feeds, against codes and values taken from the definition."""
    feeds = [_maps(2.0, seed=0), _maps(3.0, seed=1)]
    scales, errors = log_errors(_rows(*feeds), bits)
    assert errors.shape == (len(TAUS), len(scales))
    for row, tau in enumerate(TAUS):
        for column, scale in enumerate(scales):
            expected = 0.0
            for probabilities, v in feeds:
                codes = reference.log_quantize(probabilities, scale, tau=tau, bits=bits)
                values = scale * 2.0 ** (-codes.astype(np.float64) / tau)
                expected += np.square((values - probabilities) @ v).sum()
            # a probability half-way between two codes may fall to either
            assert errors[row, column] == pytest.approx(expected, rel=0.02)


def test_values_of_a_worked_example() -> None:
    """One-hot v reads single values: s = 0.5, four bits, clamped to the last code instead of zero."""
    probabilities = np.array([[[0.5, 0.3, 0.15, 0.04, 0.0099, 0.0001]]], np.float32)
    rebuilt = {
        1: [0.5, 0.25, 0.125, 0.03125, 0.0078125, 2.0**-13],
        2: [0.5, 0.353553, 0.176777, 0.0441942, 0.0110485, 0.5 * 2.0**-7.5],
        4: [0.5, 0.297302, 0.148651, 0.5 * 2.0**-3.75, 0.5 * 2.0**-3.75, 0.5 * 2.0**-3.75],
    }
    for place in range(probabilities.size):
        v = np.zeros((1, 6, 1), np.float32)
        v[0, place] = 1
        scales, errors = log_errors(_rows((probabilities, v)), 4)
        column = int(np.abs(scales - 0.5).argmin())
        assert scales[column] == 0.5
        for row, tau in enumerate((1, 2, 4)):
            error = (rebuilt[tau][place] - probabilities.ravel()[place]) ** 2
            assert errors[row, column] == pytest.approx(error, rel=1e-3, abs=1e-12)


def test_few_bits_choose_coarse_codes_for_peaked_maps_and_fine_ones_for_flat_maps() -> None:
    found = {}
    for sharpness in (0.3, 4.0):
        found[sharpness] = agq(_rows(_maps(sharpness)), 4, minmax)
    assert found[0.3].tau == 4 and found[0.3].scale < 0.2
    assert found[4.0].tau < 4 and found[4.0].scale > 0.4
