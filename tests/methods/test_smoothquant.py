# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant's scales against its equation, and outliers that it moves into weights."""

from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.methods.smoothquant import smoothing


def test_the_papers_example() -> None:
    """Figure 5 of the paper: X of two tokens and four channels, W of three outputs, alpha = 0.5."""
    x = np.array([[1, -16, 2, 6], [-2, 8, -1, -9]], np.float32)
    w = np.array([[2, 1, -2], [1, -1, -1], [2, -1, -2], [-1, -1, 1]], np.float32)
    found = smoothing(np.abs(x).max(axis=0), w, 0.5)
    np.testing.assert_allclose(found, [1, 4, 1, 3], rtol=1e-6)
    np.testing.assert_allclose((x / found) @ (found[:, None] * w), x @ w, rtol=1e-6)
    np.testing.assert_allclose(np.abs(x / found).max(axis=0), [2, 4, 2, 3], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.75, 1.0])
def test_equation_4(alpha: float) -> None:
    random = np.random.default_rng(0)
    largest, weights = np.exp(random.normal(size=7)), random.normal(size=(7, 5)).astype(np.float32)
    for j, scale in enumerate(smoothing(largest, weights, alpha)):
        assert scale == pytest.approx(largest[j] ** alpha / max(abs(weights[j])) ** (1 - alpha))


def test_channels_that_are_zero_are_scaled_by_numbers() -> None:
    found = smoothing(np.array([0.0, 1.0, 0.0]), np.array([[1.0], [0.0], [0.0]]), 0.5)
    assert np.isfinite(found).all() and (found > 0).all()
