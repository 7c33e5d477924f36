# SPDX-License-Identifier: Apache-2.0
"""AdaRound's variables, QDrop's drops, and phases of recipes, by numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samq_onnx.codes import UniformCodes, WeightCodes
from samq_onnx.errors import UserError
from samq_onnx.reconstruct.drop import Dropped, mixed
from samq_onnx.reconstruct.effort import Effort
from samq_onnx.reconstruct.fake_quant import FakeQuantActivation
from samq_onnx.reconstruct.recipe import Phase, Recipe
from samq_onnx.reconstruct.rounding import AdaRoundWeight, first_alpha, share_up


def test_first_alphas_are_those_of_the_paper() -> None:
    fractions = torch.tensor([0.0, 0.1, 0.5, 0.9])
    assert first_alpha(fractions).tolist() == pytest.approx([-2.3979, -1.6094, 0.0, 1.6094], abs=1e-4)
    torch.testing.assert_close(share_up(first_alpha(fractions)), fractions)


def test_rounding_begins_at_the_weight_and_ends_on_codes() -> None:
    weight = np.array([[0.13, -0.31], [0.5, -0.76], [9.0, -9.0]], np.float32)
    codes = WeightCodes((0.1, 0.2), 4)
    rounded = AdaRoundWeight(weight, codes, out_axis=1)
    clipped = np.clip(weight, np.array([-0.8, -1.6]), np.array([0.7, 1.4]))
    np.testing.assert_allclose(rounded().detach().numpy(), clipped, atol=1e-6)
    assert rounded.undecided(2.0).item() > 1
    rounded.hard = True
    expected = np.array([[0.1, -0.4], [0.5, -0.8], [0.7, -1.6]], np.float32)
    np.testing.assert_allclose(rounded().detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(rounded.held(), expected, atol=1e-6)
    with torch.no_grad():
        rounded.alpha.neg_()
    assert rounded.held()[0].tolist() == pytest.approx([0.2, -0.2])
    np.testing.assert_array_equal(rounded.held(), codes.decode(codes.encode(rounded.held(), 1), 1))


def test_rounding_may_begin_at_codes_that_are_not_the_nearest() -> None:
    weight = np.array([[0.13, 0.13, 0.13, 0.13]], np.float32)
    given = np.array([[1, 2, 3, -1]])
    rounded = AdaRoundWeight(weight, WeightCodes((0.1,), 4), out_axis=0, given=given)
    np.testing.assert_allclose(rounded.held(), given * np.float32(0.1), atol=1e-7)
    with torch.no_grad():
        rounded.alpha.neg_()
    np.testing.assert_allclose(rounded.held(), np.array([[0.2, 0.1, 0.2, 0.0]]), atol=1e-7)


def test_drops_keep_that_share_and_none_once_they_are_off() -> None:
    codes = Dropped(FakeQuantActivation(UniformCodes(1.0, 0, 4)), 0.25)
    x = torch.full((1000,), 0.4)
    torch.manual_seed(0)
    assert 0.18 < (codes(x) == 0).float().mean() < 0.32
    codes.probability = 0.0
    assert (codes(x) == x).all()
    codes.dropping = False
    assert (codes(x) == 0).all()
    assert codes.current() == UniformCodes(1.0, 0, 4)
    assert 0.18 < mixed(torch.ones(1000), torch.zeros(1000), 0.25).mean() < 0.32


def test_the_regulariser_waits_and_then_hardens() -> None:
    phase = Phase(100, rounding=True)
    assert [phase.power(progress) for progress in (0.0, 0.19)] == [None, None]
    assert [phase.power(progress) for progress in (0.2, 0.6, 1.0)] == pytest.approx([20, 11, 2])
    assert Phase(100, scales=True).power(0.9) is None
    assert phase.rates(200) == phase.rates(100) == (1e-3, 4e-5)
    assert phase.rates(50) == pytest.approx((2e-3, 8e-5)) and phase.rates(1) == pytest.approx((1e-2, 4e-3))
    assert Phase(100, rate=0.1, scale_rate=0.1).rates(1) == (0.1, 0.1)


def test_phases_share_the_iterations_of_a_unit() -> None:
    recipe = Recipe("block", (Phase(20_000), Phase(5000)), 1000)
    assert recipe.shares(1000) == [800, 200]
    assert recipe.shares(1) == [1, 1]


@pytest.mark.parametrize(
    "words", [(0.0, 1.0, "cpu"), (float("nan"), 1.0, "cpu"), (1e307, 1.0, "cpu"), (1.0, -1.0, "cpu"), (1.0, 1.0, "tpu")]
)
def test_efforts_that_cannot_be_are_refused(words: tuple[float, float, str]) -> None:
    with pytest.raises(UserError, match=r"wanted|choose"):
        Effort.of(*words)
