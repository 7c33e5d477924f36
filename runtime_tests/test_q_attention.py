# SPDX-License-Identifier: Apache-2.0
"""Attention on codes: native kernels and function bodies against the numpy integer reference and the float graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_tests.one_node import Feed, code_feed, code_logits, plain, run, scalar, tables
from samq_onnx import reference

# The kernel's products are exact; its output is one float32 rounding away from the reference.
NATIVE_BOUND = 2.0**-23
# The body multiplies probabilities by v in float32: off by this share of sum p |v|.
BODY_BOUND = 4e-6
# A probability this near to the border between two codes (in code steps) may get either.
TIE = 2e-4

SHAPES = [
    ((1, 1), 1, 1),
    ((2, 3), 5, 7),
    ((1, 7), 4096, 16),
    ((2, 25), 33, 8),
    ((1, 50), 255, 80),
    ((1, 3, 24), 257, 32),
    ((2, 2, 61), 1030, 64),
]
GRIDS = [
    ((3, 196), 14, 14, 14, 14, 64),
    ((2, 15), 3, 5, 7, 2, 5),
    ((1, 2, 64), 4, 16, 8, 33, 80),
]


def log_bounds(feed: Feed, scale: float, tau: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest admissible error of kernel and body for each output."""
    given = plain(feed)
    with np.errstate(divide="ignore"):
        steps = -tau * np.log2(reference.softmax(code_logits(feed, scale)) / given["p_scale"])
    weights = reference.code_weights(tau, bits)

    def weigh(x: np.ndarray) -> np.ndarray:
        return weights[np.clip(np.rint(x), 0, 2**bits - 1).astype(np.int64)]

    values = np.abs(given["v"].astype(np.int64) - given["v_zero_point"])
    unit = given["p_scale"] * given["v_scale"] * 2.0**-reference.FRACTION_BITS
    ties = np.abs(weigh(steps - TIE) - weigh(steps + TIE)) @ values * unit
    total = weigh(steps) @ values * unit
    return ties + NATIVE_BOUND * total + 1e-30, ties + BODY_BOUND * total + 1e-30


def check_log(op: str, feed: dict[str, Any], scale: float, tau: int, bits: int) -> None:
    expected = reference.q_attention(**plain(feed), scale=scale, tau=tau, bits=bits)
    attributes = {"scale": scale, "tau": tau, "bits": bits}
    for native, bound in zip((True, False), log_bounds(feed, scale, tau, bits), strict=True):
        actual = run(op, feed, attributes, native=native)
        assert actual.shape == expected.shape
        np.testing.assert_array_less(np.abs(actual - expected), bound)


def check_uniform(op: str, feed: dict[str, Any], scale: float, bits: int) -> None:
    given = plain(feed)
    expected = reference.uniform_attention(**given, scale=scale, bits=bits)
    steps = reference.softmax(code_logits(feed, scale)) / given["p_scale"]
    doubtful = np.abs(steps - np.floor(steps) - 0.5) < TIE * np.maximum(1, steps)
    values = np.abs(given["v"].astype(np.int64) - given["v_zero_point"])
    ties = doubtful.astype(np.int64) @ values * (given["p_scale"] * given["v_scale"])
    for native in (True, False):
        actual = run(op, feed, {"scale": scale, "bits": bits}, native=native)
        np.testing.assert_array_less(
            np.abs(actual - expected), ties + 2 * NATIVE_BOUND * np.abs(expected).max() + 1e-30
        )


@pytest.mark.parametrize(("tau", "bits"), [(1, 4), (2, 6), (4, 8), (1, 8), (4, 4), (2, 1)])
@pytest.mark.parametrize(("shape", "keys", "depth"), SHAPES)
def test_log_codes(shape: tuple[int, ...], keys: int, depth: int, tau: int, bits: int) -> None:
    check_log("QAttention", code_feed(shape, keys, depth), 0.5 * depth**-0.5, tau, bits)


@pytest.mark.parametrize(("shape", "hq", "wq", "hk", "wk", "depth"), GRIDS)
def test_log_codes_with_relative_position(
    shape: tuple[int, ...], hq: int, wq: int, hk: int, wk: int, depth: int
) -> None:
    feed = code_feed(shape, hk * wk, depth) | tables(hq, wq, hk, wk, depth)
    check_log("QAttentionRelPos", feed, depth**-0.5, tau=2, bits=8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("shape", "keys", "depth"), SHAPES)
def test_uniform_codes(shape: tuple[int, ...], keys: int, depth: int, bits: int) -> None:
    feed = code_feed(shape, keys, depth, p_scale=0.8 / (2**bits - 1))
    check_uniform("UniformAttention", feed, 0.5 * depth**-0.5, bits)


@pytest.mark.parametrize(("shape", "hq", "wq", "hk", "wk", "depth"), GRIDS)
def test_uniform_codes_with_relative_position(
    shape: tuple[int, ...], hq: int, wq: int, hk: int, wk: int, depth: int
) -> None:
    feed = code_feed(shape, hk * wk, depth, p_scale=0.1 / 255) | tables(hq, wq, hk, wk, depth)
    check_uniform("UniformAttentionRelPos", feed, depth**-0.5, bits=8)


def test_equal_scores_give_equal_codes() -> None:
    feed = code_feed((1, 5), 1024, 64, p_scale=1 / 1024)
    feed["k"][:] = 7
    check_log("QAttention", feed, 1.0, tau=4, bits=4)
    feed["v"][:] = feed["v"][:, :1]
    actual = run("QAttention", feed, {"scale": 1.0, "tau": 4, "bits": 4}, native=True)
    expected = 0.01 * (feed["v"][0, 0].astype(np.float64) - 5)
    np.testing.assert_allclose(actual, np.broadcast_to(expected, actual.shape), rtol=1e-6, atol=1e-9)


def test_one_key_takes_all() -> None:
    feed = code_feed((1, 40), 500, 64)
    feed["k_scale"] = scalar(3.0)  # logits of thousands: all other probabilities are 0
    check_log("QAttention", feed, 1.0, tau=2, bits=8)


def test_saturated_operands_stay_exact() -> None:
    feed = code_feed((1, 30), 4096, 256, p_scale=1e-6)
    feed["q"][:] = 255
    feed["q_zero_point"] = scalar(0, np.uint8)
    feed["k"][:] = 127
    feed["k_zero_point"] = scalar(-128, np.int8)
    feed["v"][:] = 127
    feed["v_zero_point"] = scalar(-128, np.int8)
    check_log("QAttention", feed, 1e-9, tau=4, bits=8)


def test_near_the_float_graph() -> None:
    feed = code_feed((2, 64), 300, 32)
    given = plain(feed)
    scale = 0.2
    q, k, v = (given[f"{x}_scale"] * (given[x].astype(np.float32) - given[f"{x}_zero_point"]) for x in "qkv")
    expected = run("Attention", {"q": q, "k": k, "v": v}, {"scale": scale}, native=True)
    weight = reference.softmax(code_logits(feed, scale)) @ np.abs(v)
    log = run("QAttention", feed, {"scale": scale, "tau": 4, "bits": 8}, native=True)
    # A code of tau = 4 is at most an eighth of an octave off, and p > p_scale is clipped.
    assert np.all(np.abs(log - expected) < 0.11 * weight)
    feed["p_scale"] = scalar(1 / 255)
    uniform = run("UniformAttention", feed, {"scale": scale, "bits": 8}, native=True)
    assert np.all(np.abs(uniform - expected) < 0.51 / 255 * np.abs(v).sum(axis=-2, keepdims=True))
