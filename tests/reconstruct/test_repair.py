# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.codes import UniformCodes
from samq_onnx.reconstruct.moments import InputMoments
from samq_onnx.reconstruct.repair import LARGEST_FACTOR, SMALLEST_FACTOR, repair

ROWS, WIDTH, OUT = 500, 12, 20


def _layer(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, InputMoments]:
    """x, what is quantized in its place, weights, coarse ones, and the moments of both inputs."""
    random = np.random.default_rng(seed)
    x = (random.standard_normal((ROWS, WIDTH)) + 0.5).astype(np.float32)
    codes = UniformCodes.of_range(-2.0, 2.0, 4)
    given = (x * 0.9 + noise * random.standard_normal(x.shape)).astype(np.float32)
    weight = random.standard_normal((WIDTH, OUT))
    moments = InputMoments("x", codes)
    moments.add(x, given)
    return x, codes.fake_quantize(given), weight, np.rint(weight), moments


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("seed", "noise"), [(0, 0.0), (1, 0.3), (2, 1.0), (3, 3.0)])
def test_no_channel_gets_worse_on_the_rows_seen(seed: int, noise: float, centred: bool) -> None:
    x, given, weight, rounded, moments = _layer(seed, noise)
    bias = np.linspace(-3, 3, OUT) if centred else np.zeros(OUT)
    found = repair(weight, rounded, moments, centred=centred)
    new_bias = found.bias(found.factor, bias) if centred else bias
    wanted = x @ weight + bias
    before = np.mean((given @ rounded + bias - wanted) ** 2, axis=0)
    after = np.mean((given @ rounded * found.factor + new_bias - wanted) ** 2, axis=0)
    assert (after <= before * (1 + 1e-5)).all()
    changed = found.factor != 1
    assert (after[changed] < before[changed]).all() and changed.any() == (noise < 3)
    assert found.left == (~changed).sum()
    assert found.factor.min() >= SMALLEST_FACTOR and found.factor.max() <= LARGEST_FACTOR


def test_what_is_repaired_needs_no_repair() -> None:
    _, _, weight, rounded, moments = _layer(1, 0.3)
    bias = np.linspace(-3, 3, OUT)
    first = repair(weight, rounded, moments, centred=True)
    second = repair(weight, rounded * first.factor, moments, centred=True)
    np.testing.assert_allclose(second.factor, 1.0, atol=1e-9)
    np.testing.assert_allclose(second.bias(second.factor, bias), first.bias(first.factor, bias), atol=1e-9)


def test_a_scaled_and_shifted_output_is_restored() -> None:
    x, _, weight, _, _ = _layer(0, 0.0)
    fine = InputMoments("x", UniformCodes.of_range(-8.0, 8.0, 8))
    fine.add(x, x)
    found = repair(weight, weight / 1.25, fine, centred=True)
    np.testing.assert_allclose(found.factor, 1.25, rtol=0.01)


def test_channels_without_signal_are_left_alone() -> None:
    _, _, weight, rounded, moments = _layer(0, 0.0)
    rounded[:, 0], rounded[:, 1] = 0.0, -rounded[:, 1]
    found = repair(weight, rounded, moments, centred=True)
    assert found.factor[:2].tolist() == [1.0, 1.0] and found.left == 2
