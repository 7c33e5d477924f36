# SPDX-License-Identifier: Apache-2.0
"""Float attention: native kernel and function body against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_tests.one_node import Feed, float_bias, float_feed, run, tables
from samq_onnx import reference

# A logit is off by some float32 steps of the largest logit, a probability by as much relative to itself; the output
# is then off by that share of sum p |v|.
RELATIVE_BOUND = 1e-6

SHAPES = [
    # leading dimensions and queries, keys, d
    ((1, 1), 1, 1),
    ((2, 3), 5, 7),
    ((1, 7), 300, 16),
    ((2, 25), 33, 8),
    ((1, 50), 17, 80),
    ((1, 3, 24), 49, 32),
    ((2, 2, 61), 1030, 64),
]


def bound(feed: Feed, scale: float) -> np.ndarray:
    """The largest admissible error of each output."""
    content = scale * (feed["q"].astype(np.float64) @ feed["k"].astype(np.float64).swapaxes(-1, -2))
    if "table_h" in feed:
        content = content + reference.rel_pos(feed["q"], feed["table_h"], feed["table_w"])
    if "bias" in feed:
        content = reference.add_bias(content, feed["bias"])
    return RELATIVE_BOUND * (2 + np.abs(content).max()) * (reference.softmax(content) @ np.abs(feed["v"]))


def check(op: str, feed: dict[str, Any], scale: float) -> None:
    expected = reference.attention(**feed, scale=scale)
    for native in (True, False):
        actual = run(op, feed, {"scale": scale}, native=native)
        assert actual.shape == expected.shape
        assert actual.dtype == np.float32
        np.testing.assert_array_less(np.abs(actual - expected), bound(feed, scale))


@pytest.mark.parametrize(("shape", "keys", "depth"), SHAPES)
def test_attention(shape: tuple[int, ...], keys: int, depth: int) -> None:
    check("Attention", float_feed(shape, keys, depth), depth**-0.5)


@pytest.mark.parametrize(("shape", "hq", "wq", "hk", "wk", "depth"), [
    ((3, 196), 14, 14, 14, 14, 64),
    ((1, 1), 1, 1, 1, 1, 8),
    ((2, 15), 3, 5, 7, 2, 5),
    ((1, 2, 64), 4, 16, 8, 33, 80),
])  # fmt: skip
def test_attention_with_relative_position(
    shape: tuple[int, ...], hq: int, wq: int, hk: int, wk: int, depth: int
) -> None:
    feed = float_feed(shape, hk * wk, depth) | tables(hq, wq, hk, wk, depth)
    check("AttentionRelPos", feed, depth**-0.5)


@pytest.mark.parametrize(("shape", "groups", "keys"), [
    ((2, 3, 9), 3, 9), ((2, 3, 25), 6, 33), ((4, 30), 2, 130), ((1, 1), 1, 1), ((3, 4, 7), 1, 300),
])  # fmt: skip
def test_attention_with_a_bias(shape: tuple[int, ...], groups: int, keys: int) -> None:
    check("AttentionBias", float_feed(shape, keys, 16) | float_bias(groups, shape[-1], keys), 0.25)


def test_one_key_takes_all() -> None:
    feed = float_feed((1, 30), 100, 16, spread=30.0)
    check("Attention", feed, 1.0)


def test_equal_scores_give_the_mean() -> None:
    feed = float_feed((2, 9), 777, 32)
    feed["k"][:] = feed["k"][:, :1]
    actual = run("Attention", feed, {"scale": 1.0}, native=True)
    np.testing.assert_allclose(actual, np.broadcast_to(feed["v"].mean(axis=1, keepdims=True), actual.shape), atol=1e-6)


def test_value_depth_of_its_own() -> None:
    feed = float_feed((2, 9), 20, 32)
    feed["v"] = feed["v"][..., :19].copy()
    check("Attention", feed, 0.2)


def test_nothing_in_nothing_out() -> None:
    feed = float_feed((2, 0), 5, 8)
    assert run("Attention", feed, {"scale": 1.0}, native=True).shape == (2, 0, 8)
    feed = float_feed((2, 3), 0, 8)
    assert not run("Attention", feed, {"scale": 1.0}, native=True).any()
