# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from samq_onnx.calibrate.statistics import ChannelMean, ChannelRange, KeySamples, RowSamples, TensorStats


def test_histogram_grows_with_the_range_in_one_pass() -> None:
    random = np.random.default_rng(0)
    feeds = [random.normal(size=5000) * 10.0**power for power in (-3, 0, 2)] + [np.full(100, -900.0)]
    stats = TensorStats("x")
    for feed in feeds:
        stats.update(feed.astype(np.float32))
    everything = np.concatenate(feeds)
    assert stats.lows == pytest.approx([feed.min() for feed in feeds])
    assert stats.highs == pytest.approx([feed.max() for feed in feeds])
    assert stats.counts.sum() == everything.size
    assert 1024 <= len(stats.counts) <= 4096
    edges = (np.arange(len(stats.counts) + 1) + stats.first) * stats.width
    expected = np.searchsorted(np.sort(everything), edges[1:])
    assert np.abs(np.cumsum(stats.counts) - expected).max() <= 3  # float32 rounding at the edges


def test_histogram_of_a_constant_and_of_zeros_first() -> None:
    stats = TensorStats("x")
    stats.update(np.zeros((2, 3), np.float32))
    stats.update(np.full((2, 3), 5.0, np.float32))
    assert stats.counts.sum() == 12
    assert stats.counts[stats.counts > 0].tolist() == [6, 6]
    assert stats.centres[stats.counts > 0] == pytest.approx([0, 5], abs=stats.width)


@pytest.mark.parametrize("channels", [768, 1024, 3072])
def test_samples_see_every_channel_alike(channels: int) -> None:
    """A plain step through a large tensor would meet the same few channels again and again."""
    x = np.zeros((4_000_000 // channels, channels), np.float32)
    x[:, 1::4] = 7.0
    stats, keys = TensorStats("x"), KeySamples("x")
    stats.update(x)
    keys.update(x)
    share = stats.counts[stats.centres > 3].sum() / stats.counts.sum()
    assert share == pytest.approx(0.25, abs=0.01)
    assert (keys.values > 3).mean() == pytest.approx(0.25, abs=0.01)


def test_keys_are_those_of_one_feed() -> None:
    keys = KeySamples("k")
    keys.update(np.ones((2, 3)))
    assert keys.values.tolist() == [1.0] * 6 and keys.inputs == 1


def test_channel_statistics() -> None:
    feeds = [np.random.default_rng(seed).normal(size=(2, 5, 7, 3)) + seed for seed in range(3)]
    stats, ranges = ChannelMean("x"), ChannelRange("x")
    for feed in feeds:
        stats.update(feed)
        ranges.update(feed)
    rows = np.concatenate([feed.reshape(-1, feed.shape[-1]) for feed in feeds])
    assert stats.mean == pytest.approx(rows.mean(axis=0))
    assert ranges.lows == pytest.approx(rows.min(axis=0)) and ranges.highs == pytest.approx(rows.max(axis=0))


def test_few_rows_are_all_kept() -> None:
    feeds = [np.random.default_rng(seed).normal(size=(2, 5, 3)).astype(np.float32) for seed in range(3)]
    samples = RowSamples("x")
    for feed in feeds:
        samples.update(feed)
    rows = np.concatenate([feed.reshape(-1, 3) for feed in feeds])
    assert sorted(samples.rows.tolist()) == sorted(rows.tolist())


@pytest.mark.parametrize(("channels", "inputs"), [(768, 40), (1 << 18, 11)])
def test_rows_of_all_inputs_and_places_are_kept_alike_within_the_bound(channels: int, inputs: int) -> None:
    """Of a grid of 64 columns too, where a plain step would see the same columns again and again."""
    side = 64 if channels == 768 else 3
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).astype(np.float32)
    samples = RowSamples("x")
    for number in range(inputs):
        x = np.zeros((1, side, side, channels), np.float32)
        x[..., :2], x[..., 2] = grid, number
        samples.update(x)
        assert samples.rows.nbytes <= 4 << 20
    found = samples.rows
    if channels == 768:
        assert found.nbytes > 2 << 20
        assert set(np.bincount(found[:, 2].astype(int), minlength=inputs)) == {len(found) // inputs}
        for axis in (0, 1):
            each = np.bincount(found[:, axis].astype(int), minlength=side)
            assert each.min() > 0.6 * each.mean() and each.max() < 1.4 * each.mean()
    else:  # rows of a quarter of the bound
        assert 2 <= len(found) <= 4 and len(set(found[:, 2])) == len(found)
