# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from samq_onnx import reference
from samq_onnx.calibrate.statistics import AttentionRows
from samq_onnx.calibrate.statistics.attention import KEPT
from samq_onnx.products import small_products

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
    rows = AttentionRows(("q", "k", "v"), scale=0.3, tables=tables)
    rows.update(q, k, v)
    logits = 0.3 * (q @ k.swapaxes(-1, -2))
    if tables:
        logits = logits + reference.rel_pos(q, *tables)
    expected = reference.softmax(logits).reshape(-1, SIDE**2, KEY_SIDE**2)
    ((probabilities, values),) = rows.samples
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    np.testing.assert_array_equal(values, v.reshape(-1, KEY_SIDE**2, WIDTH))


def test_maps_and_rows_that_are_looked_at_keep_their_bias() -> None:
    queries, keys = 40, 4096  # few rows of some maps
    q, k, v = (array.reshape(-1, *array.shape[2:]) for array in _operands(30, queries, keys))
    bias = np.random.default_rng(3).normal(size=(3, queries, keys)).astype(np.float32)
    rows = AttentionRows(("q", "k", "v"), scale=0.3, tables=None, bias=bias)
    rows.update(q, k, v)
    wanted = reference.softmax(0.3 * (q @ k.swapaxes(-1, -2)) + np.tile(bias, (20, 1, 1)))
    ((probabilities, _),) = rows.samples
    assert len(probabilities) < len(q)
    for row in probabilities[:, 0]:
        assert np.abs(wanted - row).max(axis=-1).min() < 1e-6


def test_sampled_rows_are_spread_over_rows_and_columns_of_the_image() -> None:
    """Each query row has its own probability: with few rows of a map, all columns of the image must still be met."""
    side, keys = 32, 2048
    q = np.zeros((4, side * side, 1), np.float32)
    q[:, :, 0] = np.arange(side * side) % side  # the column
    k = np.zeros((4, keys, 1), np.float32)
    k[:, 0] = 0.3
    v = np.ones((4, keys, 1), np.float32)
    rows = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    for _ in range(8):
        rows.update(q, k, v)
    seen = np.concatenate([probabilities[..., 0].ravel() for probabilities, _ in rows.samples])
    assert seen.size < 8 * q.shape[0] * q.shape[1] / 10
    expected = np.exp(0.3 * np.arange(side))
    expected = expected / (expected + keys - 1)
    assert np.abs(seen[:, None] / expected - 1).min(axis=0).max() < 1e-3


def test_more_maps_than_can_be_looked_at() -> None:
    rows = AttentionRows(("q", "k", "v"), scale=0.3, tables=None)
    rows.update(*_operands(300, 7, 2048))
    ((probabilities, values),) = rows.samples
    assert len(probabilities) == len(values)
    assert 0 < probabilities.size <= 200_000


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 40, 300, 64), (2, 700, 33, 900)])
def test_small_products(shape: tuple[int, int, int, int]) -> None:
    batch, rows, inner, columns = shape
    random = np.random.default_rng(0)
    left = random.normal(size=(batch, rows, inner)).astype(np.float32)
    right = random.normal(size=(batch, columns, inner)).astype(np.float32).swapaxes(1, 2)
    np.testing.assert_allclose(small_products(left, right), left.astype(np.float64) @ right, atol=1e-3)


def test_samples_stay_bounded_and_evenly_spread_over_feeds() -> None:
    rows = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    for number in range(40):
        q, k, v = _operands(4, 16, 2048, seed=number)
        v[:] = number
        rows.update(q, k, v)
    kept = [int(v[0, 0, 0]) for _, v in rows.samples]
    assert sum(p.nbytes + v.nbytes for p, v in rows.samples) <= KEPT
    assert len(kept) > 4 and kept == list(range(0, 40, kept[1]))
    assert rows.probabilities.counts.sum() > 0 and len(rows.probabilities.lows) == 40


def test_a_restored_statistic_holds_what_was_saved() -> None:
    rows = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    rows.update(*_operands(3, 5, 7))
    again = AttentionRows(("q", "k", "v"), scale=1.0, tables=None)
    again.restore({name: np.array(array) for name, array in rows.state().items()})
    for one, two in zip(rows.samples, again.samples, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    assert again.probabilities.lows == rows.probabilities.lows and again.key == rows.key
