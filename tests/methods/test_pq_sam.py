# SPDX-License-Identifier: Apache-2.0
"""PQ-SAM's truncation, groups, and what their shifts and scales do."""

from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.methods.pq_sam import GroupChannels, affine_of_groups, groups, one_scale, truncated
from samq_onnx.observers.weight import mse_scales


def test_outliers_end_ten_interquartile_ranges_beyond_the_quartiles() -> None:
    values = np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [-900.0, 1.0, 2.0, 3.0, 50.0]])
    low, high = np.quantile(values, [0.25, 0.75])
    cut = truncated(values, 10.0)
    assert (low, high) == (1.0, 3.0)
    assert cut.min() == 1 - 20 and cut.max() == 3 + 20
    assert (cut[0] == values[0]).all()


def _rows() -> np.ndarray:
    """Six narrow channels about zero, two wide ones, and one far away."""
    random = np.random.default_rng(0)
    spread, middle = np.array([1, 1, 1, 1, 1, 1, 12, 12, 1]), np.array([0, 0.1, -0.1, 0, 0.1, -0.1, 0, 0, 40])
    return random.normal(size=(3000, 9)) * spread + middle


def _by_loop(rows: np.ndarray, alpha: float) -> list[set[int]]:
    """The grouping as it is described, one channel at a time."""
    left, found = set(range(rows.shape[1])), []
    while left:
        together = np.concatenate([rows[:, c] for c in sorted(left)])
        low, high = np.quantile(together, alpha), np.quantile(together, 1 - alpha)
        group = {
            c for c in left if np.quantile(rows[:, c], alpha) >= low and np.quantile(rows[:, c], 1 - alpha) <= high
        }
        if not group:
            group = {min(sorted(left), key=lambda c: abs(np.median(rows[:, c]) - (low + high) / 2))}
        found.append(group)
        left -= group
    return found


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.3, 0.5])
def test_groups_are_those_of_the_loop(alpha: float) -> None:
    rows = _rows()
    labels = groups(rows, alpha)
    expected = _by_loop(rows, alpha)
    assert [set(np.flatnonzero(labels == number)) for number in range(labels.max() + 1)] == expected
    assert len(expected) > 1


def test_outliers_are_cut_before_channels_are_grouped_or_after() -> None:
    """A third of a channel lies far away: its group is another one if that is not cut first."""
    rows = _rows()
    rows[:1000, 0] = 500.0
    made = {order: GroupChannels(2.0, 0.25, order).labels_and_rows(rows) for order in ("first", "last")}
    cut = truncated(rows, 2.0)
    for _, values in made.values():
        np.testing.assert_array_equal(values, cut)
    np.testing.assert_array_equal(made["first"][0], groups(cut, 0.25))
    np.testing.assert_array_equal(made["last"][0], groups(rows, 0.25))
    assert (made["first"][0] != made["last"][0]).any()


def test_a_channel_far_away_and_wide_ones_are_not_with_the_narrow_ones() -> None:
    labels = groups(_rows(), 0.25)
    assert labels[8] not in labels[:8]
    assert not set(labels[:6]) & set(labels[6:8])


@pytest.mark.parametrize("shift", [True, False])
def test_groups_have_mean_zero_and_deviation_one(shift: bool) -> None:
    rows = _rows()
    labels = groups(rows, 0.25)
    scale, moved = affine_of_groups(rows, labels, shift=shift)
    made = (rows - moved) / scale
    for number in range(labels.max() + 1):
        values = made[:, labels == number]
        assert np.sqrt(np.square(values).mean()) == pytest.approx(1)
        assert shift == (abs(values.mean()) < 1e-9)


def test_a_constant_has_a_scale() -> None:
    scale, shift = affine_of_groups(np.full((4, 2), 3.0), np.array([0, 1]), shift=True)
    assert (scale > 0).all() and (shift == 3).all()


def test_one_scale_is_that_of_all_weights_in_a_row() -> None:
    weights = np.random.default_rng(3).normal(size=(3, 40)).astype(np.float32) * [[1], [2], [9]]
    found = one_scale(weights.astype(np.float32), 4)
    assert found.shape == (3,) and len(set(found)) == 1
    assert found[0] == mse_scales(weights.astype(np.float32).reshape(1, -1), 4)[0]
