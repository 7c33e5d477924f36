# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from samq_onnx import reference
from samq_onnx.calibrate import AttentionStats
from samq_onnx.calibrate.products import small_products

SIDE, KEY_SIDE, WIDTH = 6, 5, 8


def _operands(maps: int, queries: int, keys: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(2, maps, count, WIDTH)).astype(np.float32) for count in (queries, keys, keys)]


def _tables() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(9)
    shape = (SIDE, KEY_SIDE, WIDTH)
    return random.normal(size=shape).astype(np.float32), random.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("with_tables", [False, True])
def test_a_small_map_is_looked_at_whole(with_tables: bool) -> None:
    q, k, v = _operands(3, SIDE**2, KEY_SIDE**2)
    tables = _tables() if with_tables else None
    stats = AttentionStats(("q", "k", "v"), scale=0.3, tables=tables, bits=8, finest=4)
    stats.update(q, k, v)
    logits = 0.3 * (q @ k.swapaxes(-1, -2))
    if tables:
        logits = logits + reference.rel_pos(q, *tables)
    probabilities = reference.softmax(logits)
    assert stats.probabilities.counts.sum() == probabilities.size
    assert stats.probabilities.lows == pytest.approx([probabilities.min()], rel=1e-4)
    assert stats.probabilities.highs == pytest.approx([probabilities.max()], rel=1e-4)
    step = stats.uniform_scale
    uniform = np.clip(np.rint(probabilities / step), 0, 255) * step
    assert stats.uniform_error == pytest.approx(np.square((uniform - probabilities) @ v).sum(), rel=0.02)


def test_sampled_rows_are_spread_over_rows_and_columns_of_the_image() -> None:
    """Each query row has its own probability: with few rows of a map, all columns of the image must still be met."""
    side, keys = 32, 2048
    q = np.zeros((4, side * side, 1), np.float32)
    q[:, :, 0] = np.arange(side * side) % side  # the column
    k = np.zeros((4, keys, 1), np.float32)
    k[:, 0] = 0.3
    v = np.ones((4, keys, 1), np.float32)
    stats = AttentionStats(("q", "k", "v"), scale=1.0, tables=None, bits=8, finest=1)
    for _ in range(8):
        stats.update(q, k, v)
    seen = stats.probabilities
    assert seen.counts.sum() < 8 * q.shape[0] * q.shape[1] * keys / 10
    expected = np.exp(0.3 * np.arange(side))
    expected = expected / (expected + keys - 1)
    bins = np.unique(np.floor(expected / seen.width).astype(int) - seen.first)
    assert (seen.counts[bins] > 0).all()


def test_more_maps_than_can_be_looked_at() -> None:
    q, k, v = _operands(300, 7, 2048)
    stats = AttentionStats(("q", "k", "v"), scale=0.3, tables=None, bits=4, finest=4)
    stats.update(q, k, v)
    assert 0 < stats.probabilities.counts.sum() <= 200_000
    tau, scale = stats.best()
    assert tau in (1, 2, 4) and 0 < scale <= 1


def test_uniform_codes_are_nearer_where_no_probability_is_small() -> None:
    """Two keys of like weight: 2^-c/tau has no value near, uniform codes have."""
    q, k, v = _operands(1, 40, 2)
    stats = AttentionStats(("q", "k", "v"), scale=0.02, tables=None, bits=8, finest=1)
    stats.update(q, k, v)
    assert stats.uniform_is_nearer


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 40, 300, 64), (2, 700, 33, 900)])
def test_small_products(shape: tuple[int, int, int, int]) -> None:
    batch, rows, inner, columns = shape
    random = np.random.default_rng(0)
    left = random.normal(size=(batch, rows, inner)).astype(np.float32)
    right = random.normal(size=(batch, columns, inner)).astype(np.float32).swapaxes(1, 2)
    np.testing.assert_allclose(small_products(left, right), left.astype(np.float64) @ right, atol=1e-3)
