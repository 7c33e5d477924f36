# SPDX-License-Identifier: Apache-2.0
"""Outlier Suppression+: its scales and its error, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.methods.outlier_suppression import output_error, thresholded


def test_channels_above_the_threshold_end_there() -> None:
    largest = np.array([0.5, 4.0, 8.0])
    np.testing.assert_allclose(thresholded(largest, 4.0), [1, 1, 2])
    np.testing.assert_allclose(largest / thresholded(largest, 1.0), [0.5, 1, 1])


@pytest.mark.parametrize("threshold", [8.0, 1.0])
def test_the_error_is_that_of_equation_5(threshold: float) -> None:
    random = np.random.default_rng(0)
    x, w = random.normal(size=(9, 4)).astype(np.float32), random.normal(size=(4, 3)).astype(np.float32)
    x[:, 2] *= 8
    largest = np.abs(x).max(axis=0)
    scales = thresholded(largest, threshold)
    ends = x.min(axis=0), x.max(axis=0)
    low, high = min(ends[0] / scales), max(ends[1] / scales)
    step, total = float(np.float32((high - low) / 15)), 0.0
    zero = round(-low / step)
    quantized = np.zeros_like(w, np.float64)
    for column in range(3):
        moved = w[:, column] * scales
        scale = max(max(moved) / 7, -min(moved) / 8)
        quantized[:, column] = np.clip(np.round(moved / scale), -8, 7) * scale
    for row in x:
        codes = np.clip(np.round(row / scales / step) + zero, 0, 15) - zero
        total += float(np.square(codes * step @ quantized - row @ w).sum())
    assert output_error(x, ends, w, scales, 4, 4) == pytest.approx(total / 9, rel=1e-4)


def test_a_channel_that_stands_out_pays() -> None:
    random = np.random.default_rng(1)
    x, w = random.normal(size=(200, 32)).astype(np.float32), random.normal(size=(32, 16)).astype(np.float32)
    x[:, 3] *= 50
    largest = np.abs(x).max(axis=0)
    plain, scaled = (
        output_error(x, (-largest, largest), w, thresholded(largest, t), 8, 8) for t in (largest.max(), 10.0)
    )
    assert scaled < plain / 4
