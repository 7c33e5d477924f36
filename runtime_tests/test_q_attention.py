# SPDX-License-Identifier: Apache-2.0
"""Attention on codes: kernels, function bodies and numpy reference to the last bit, and all near float attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime_tests.one_node import (
    code_bias,
    code_feed,
    code_tables,
    float_logits,
    narrow,
    plain,
    run,
    scalar,
    without_scale,
)
from samq_onnx import reference
from samq_onnx.codes.log import FRACTION_BITS, code_weights
from samq_onnx.codes.row import row_weights

# A probability this near to the border between two codes (in code steps) may get either: what float32 logits and the
# fixed-point powers may be off.
TIE = 2e-4
# The same of uniform codes relative to their row, in codes: powers of two in 16 bits are off by that much.
ROW_TIE = 0.2
OUTPUT_BOUND = 2.0**-23  # of the weighted sum of |v|: the output is rounded once

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
    ((1, 9), 3, 3, 64, 64, 64),
]


def check_bits(op: str, feed: dict[str, Any], attributes: dict[str, Any], expected: np.ndarray) -> None:
    """Native kernel and function body must give ``expected`` to the last bit; the body also with constant scales and
    tables, as models hold them, which ONNX Runtime optimizes further. The operator's form that quantizes likewise."""
    held = [name for name, x in feed.items() if x.ndim == 0 or name in ("table_h", "table_w")]
    for native, constants in ((True, []), (False, []), (False, held)):
        actual = run(op, feed, attributes, native=native, constants=constants)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected, err_msg=f"native={native}, constants={constants}")
    if op.endswith("Quantize"):
        return
    output = {
        "y_scale": scalar(np.ptp(expected) / 200 + 1e-3),
        "y_zero_point": scalar(101, np.uint8),
    }
    check_bits(f"{op}Quantize", feed | output, attributes, reference.quantize(expected, **plain(output)))


def check_log(op: str, feed: dict[str, Any], scale: float, tau: int, bits: int) -> None:
    """The same bits three times, and the codes of float64 probabilities but for ties."""
    given = plain(feed)
    expected = reference.q_attention(**given, scale=scale, tau=tau, bits=bits)
    check_bits(op, feed, {"scale": scale, "tau": tau, "bits": bits}, expected)
    with np.errstate(divide="ignore"):
        steps = -tau * np.log2(reference.softmax(float_logits(feed, scale)) / given["p_scale"])
    weights = code_weights(tau, bits)

    def weigh(x: np.ndarray) -> np.ndarray:
        return weights[np.clip(np.rint(x), 0, 2**bits - 1).astype(np.int64)]

    centred = given["v"].astype(np.int64) - given["v_zero_point"]
    unit = given["p_scale"] * given["v_scale"] * 2.0**-FRACTION_BITS
    ties = np.abs(weigh(steps - TIE) - weigh(steps + TIE)) @ np.abs(centred) * unit
    total = weigh(steps) @ np.abs(centred) * unit
    np.testing.assert_array_less(np.abs(expected - weigh(steps) @ centred * unit), ties + OUTPUT_BOUND * total + 1e-30)


def check_uniform(op: str, feed: dict[str, Any], scale: float, bits: int) -> None:
    """As `check_log`."""
    given = plain(feed)
    expected = reference.uniform_attention(**given, scale=scale, bits=bits)
    check_bits(op, feed, {"scale": scale, "bits": bits}, expected)
    steps = reference.softmax(float_logits(feed, scale)) / given["p_scale"]
    codes = np.clip(np.rint(steps), 0, 2**bits - 1)
    doubtful = np.abs(steps - np.floor(steps) - 0.5) < TIE * np.maximum(1, steps)
    centred = given["v"].astype(np.int64) - given["v_zero_point"]
    unit = given["p_scale"] * given["v_scale"]
    bound = (doubtful + OUTPUT_BOUND * codes) @ np.abs(centred) * unit
    np.testing.assert_array_less(np.abs(expected - codes @ centred * unit), bound + 1e-30)


def check_rows(feed: dict[str, Any], scale: float, tau: int, bits: int) -> None:
    """As `check_log`, of both kinds of codes that are relative to their row."""
    feed = without_scale(feed)
    suffix = "RelPos" if "table_h" in feed else "Bias" if "bias" in feed else ""
    given = plain(feed)
    relative = reference.softmax(float_logits(feed, scale))
    relative /= relative.max(axis=-1, keepdims=True)
    weights, top = row_weights(tau, bits), 2**bits - 1

    def weigh_log(shift: float) -> np.ndarray:
        with np.errstate(divide="ignore"):
            steps = -tau * np.log2(relative) + shift * tau
        return weights[np.clip(np.rint(steps), 0, top).astype(np.int64)]

    def weigh_uniform(shift: float) -> np.ndarray:
        return np.clip(np.rint(top * relative + shift / TIE * ROW_TIE), 0, top).astype(np.int64)

    expected = reference.log_row_attention(**given, scale=scale, tau=tau, bits=bits)
    check_bits(f"LogRowAttention{suffix}", feed, {"scale": scale, "tau": tau, "bits": bits}, expected)
    check_mean(expected, given, weigh_log)
    expected = reference.uniform_row_attention(**given, scale=scale, bits=bits)
    check_bits(f"UniformRowAttention{suffix}", feed, {"scale": scale, "bits": bits}, expected)
    check_mean(expected, given, weigh_uniform)


def check_mean(actual: np.ndarray, given: dict[str, Any], weigh: Callable[[float], np.ndarray]) -> None:
    """``actual`` is the mean of v with the weights of exact probabilities, but for those that a shift moves."""
    weights, moved = weigh(0.0), np.abs(weigh(-TIE) - weigh(TIE))
    total = weights.sum(axis=-1, keepdims=True)
    centred = given["v"].astype(np.int64) - given["v_zero_point"]
    mean = weights @ centred / total
    # a weight that moves by d takes the mean d / (sum of weights) of the way to its v
    farthest = np.abs(centred).max(axis=-2, keepdims=True) + np.abs(mean)
    bound = moved.sum(axis=-1, keepdims=True) / np.maximum(total - moved.sum(axis=-1, keepdims=True), 1) * farthest
    error = np.abs(actual - mean * given["v_scale"])
    np.testing.assert_array_less(error, given["v_scale"] * (bound + OUTPUT_BOUND * np.abs(mean)) + 1e-30)


@pytest.mark.parametrize(("tau", "bits"), [(1, 4), (2, 6), (4, 8), (1, 8), (4, 4), (2, 1)])
@pytest.mark.parametrize(("shape", "keys", "depth"), SHAPES)
def test_log_codes(shape: tuple[int, ...], keys: int, depth: int, tau: int, bits: int) -> None:
    check_log("QAttention", code_feed(shape, keys, depth), 0.5 * depth**-0.5, tau, bits)
    check_rows(code_feed(shape, keys, depth), 0.5 * depth**-0.5, tau, bits)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("op", ["LogRowAttention", "UniformRowAttentionQuantize"])
def test_many_entries_give_what_each_gives(op: str, bits: int) -> None:
    """More k and v than are packed at a time."""
    feed = without_scale(code_feed((131, 2), 4096, 16))
    feed = narrow(feed, bits) if bits < 8 else feed
    attributes: dict[str, Any] = {"scale": 0.2, "bits": bits}
    if op.endswith("Quantize"):
        feed |= {"y_scale": scalar(0.01), "y_zero_point": scalar(101, np.uint8)}
    else:
        attributes |= {"tau": 2}
    found = run(op, feed, attributes, native=True)
    for entry in (0, 63, 64, 127, 128, 130):
        one = {name: x[entry : entry + 1] if name in ("q", "k", "v") else x for name, x in feed.items()}
        np.testing.assert_array_equal(found[entry : entry + 1], run(op, one, attributes, native=True))


@pytest.mark.parametrize(("shape", "hq", "wq", "hk", "wk", "depth"), GRIDS)
def test_log_codes_with_relative_position(
    shape: tuple[int, ...], hq: int, wq: int, hk: int, wk: int, depth: int
) -> None:
    feed = code_feed(shape, hk * wk, depth) | code_tables(hq, wq, hk, wk, depth)
    check_log("QAttentionRelPos", feed, depth**-0.5, tau=2, bits=8)
    check_rows(feed, depth**-0.5, tau=16, bits=8)


@pytest.mark.parametrize(("shape", "groups", "keys", "depth"), [
    ((2, 3, 9), 3, 9, 16), ((2, 3, 25), 6, 33, 7), ((4, 30), 2, 130, 32), ((1, 1), 1, 1, 1), ((3, 4, 7), 1, 300, 8),
])  # fmt: skip
def test_codes_with_a_bias(shape: tuple[int, ...], groups: int, keys: int, depth: int) -> None:
    bias = code_bias(groups, shape[-1], keys)
    check_log("QAttentionBias", code_feed(shape, keys, depth) | bias, depth**-0.5, tau=2, bits=8)
    check_rows(code_feed(shape, keys, depth) | bias, depth**-0.5, tau=16, bits=8)
    check_uniform("UniformAttentionBias", code_feed(shape, keys, depth, p_scale=0.1 / 255) | bias, depth**-0.5, bits=8)


def test_each_entry_of_a_batch_keeps_its_bias() -> None:
    """Also where more k and v come than are packed at a time."""
    feed = without_scale(code_feed((132, 2), 4096, 16)) | code_bias(3, 2, 4096)
    attributes: dict[str, Any] = {"scale": 0.2, "bits": 8}
    found = run("UniformRowAttentionBias", feed, attributes, native=True)
    for entry in (0, 64, 65, 127, 131):
        one = {name: x[entry : entry + 1] if name in ("q", "k", "v") else x for name, x in feed.items()}
        one["bias"] = feed["bias"][entry % 3 : entry % 3 + 1]
        alone = run("UniformRowAttentionBias", one, attributes, native=True)
        np.testing.assert_array_equal(found[entry : entry + 1], alone)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("shape", "keys", "depth"), SHAPES)
def test_uniform_codes(shape: tuple[int, ...], keys: int, depth: int, bits: int) -> None:
    feed = code_feed(shape, keys, depth, p_scale=0.8 / (2**bits - 1))
    check_uniform("UniformAttention", feed, 0.5 * depth**-0.5, bits)


@pytest.mark.parametrize(("shape", "hq", "wq", "hk", "wk", "depth"), GRIDS)
def test_uniform_codes_with_relative_position(
    shape: tuple[int, ...], hq: int, wq: int, hk: int, wk: int, depth: int
) -> None:
    feed = code_feed(shape, hk * wk, depth, p_scale=0.1 / 255) | code_tables(hq, wq, hk, wk, depth)
    check_uniform("UniformAttentionRelPos", feed, depth**-0.5, bits=8)


@pytest.mark.parametrize(("bits", "lowest"), [(4, 0), (4, 200), (6, 0), (6, 90), (7, 128), (1, 255 - 1)])
@pytest.mark.parametrize(("shape", "keys", "depth"), SHAPES)
def test_narrow_codes(shape: tuple[int, ...], keys: int, depth: int, bits: int, lowest: int) -> None:
    """Codes narrow enough for sums in 16 bits, wherever they lie."""
    feed = narrow(code_feed(shape, keys, depth, p_scale=0.8 / (2**bits - 1)), bits, lowest)
    check_uniform("UniformAttention", feed, 0.5 * depth**-0.5, bits)
    check_log("QAttention", feed, 0.5 * depth**-0.5, tau=2, bits=bits)
    check_rows(feed, 0.5 * depth**-0.5, tau=2, bits=bits)


def test_narrow_extremes_stay_exact() -> None:
    for q, k in ((15, 15), (15, 0), (63, 63), (63, 0)):
        feed = narrow(code_feed((1, 30), 4096, 256, p_scale=1e-6), 4 if q == 15 else 6)
        feed["q"][:], feed["k"][:], feed["v"][:] = q, k, k
        feed["k"][:, 0], feed["v"][:, 0] = q - k, q - k
        check_uniform("UniformAttention", feed, 1e-9, bits=4 if q == 15 else 6)
        check_rows(feed, 1e-9, tau=2, bits=4 if q == 15 else 6)


def test_equal_scores_give_equal_codes() -> None:
    feed = code_feed((1, 5), 1024, 64, p_scale=1 / 1024)
    feed["k"][:] = 135
    check_log("QAttention", feed, 1.0, tau=4, bits=4)
    check_uniform("UniformAttention", feed, 1.0, bits=8)
    check_rows(feed, 1.0, tau=4, bits=4)
    feed["v"][:] = feed["v"][:, :1]
    actual = run("QAttention", feed, {"scale": 1.0, "tau": 4, "bits": 4}, native=True)
    expected = 0.01 * (feed["v"][0, 0].astype(np.float64) - 133)
    np.testing.assert_allclose(actual, np.broadcast_to(expected, actual.shape), rtol=1e-6, atol=1e-9)


def test_one_key_takes_all() -> None:
    feed = code_feed((1, 40), 500, 64)
    feed["k_scale"] = scalar(3.0)  # logits of thousands: all other probabilities are 0
    check_log("QAttention", feed, 1.0, tau=2, bits=8)
    check_uniform("UniformAttention", feed, 1.0, bits=8)
    check_rows(feed, 1.0, tau=2, bits=8)


@pytest.mark.parametrize("keys", range(1, 68))
def test_every_number_of_keys(keys: int) -> None:
    """Vectors of every width end inside a row."""
    check_log("QAttention", code_feed((1, 7), keys, 9), 0.3, tau=4, bits=8)
    check_uniform("UniformAttention", code_feed((1, 7), keys, 9, p_scale=0.002), 0.3, bits=8)
    check_rows(code_feed((1, 7), keys, 9), 0.3, tau=16, bits=8)


@pytest.mark.parametrize("seed", range(20))
def test_any_scales(seed: int) -> None:
    """Scales, windows and codes as they come: products of scales do not round evenly."""
    random = np.random.default_rng(seed)
    side, depth = int(random.integers(2, 15)), int(random.integers(8, 81))
    feed = code_feed((int(random.integers(1, 4)), side * side), side * side, depth, seed)
    feed |= code_tables(side, side, side, side, depth, seed)
    for name in ("q_scale", "k_scale", "v_scale", "table_h_scale", "table_w_scale"):
        feed[name] = scalar(feed[name] * random.uniform(0.1, 1.0))
    feed["p_scale"] = scalar(random.uniform(0.1, 1.0))
    check_log("QAttentionRelPos", feed, depth**-0.5, tau=2 ** int(random.integers(0, 5)), bits=8)
    check_rows(feed, depth**-0.5, tau=2 ** int(random.integers(0, 5)), bits=8)
    feed["p_scale"] = scalar(random.uniform(0.001, 0.004))
    check_uniform("UniformAttentionRelPos", feed, depth**-0.5, bits=8)


def test_fixed_powers_are_powers_of_two() -> None:
    distance = np.linspace(0, 40, 100_001, dtype=np.float32)
    exact = 2.0 ** (23 - distance.astype(np.float64))
    np.testing.assert_array_less(np.abs(reference.fixed_powers(distance) - exact), 0.5 + 2e-7 * exact)


def test_saturated_operands_stay_exact() -> None:
    feed = code_feed((1, 30), 4096, 256, p_scale=1e-6)
    feed["q"][:] = 255
    feed["q_zero_point"] = scalar(0, np.uint8)
    feed["k"][:] = 255
    feed["k_zero_point"] = scalar(0, np.uint8)
    feed["v"][:] = 255
    feed["v_zero_point"] = scalar(0, np.uint8)
    check_log("QAttention", feed, 1e-9, tau=4, bits=8)
    check_uniform("UniformAttention", feed, 1e-9, bits=8)
    check_rows(feed, 1e-9, tau=4, bits=8)


def test_saturated_tables_stay_exact() -> None:
    feed = code_feed((1, 4), 4, 256) | code_tables(2, 2, 2, 2, 256)
    feed["q"][:, ::2], feed["q"][:, 1::2] = 255, 254
    feed["q_zero_point"] = scalar(0, np.uint8)
    feed["table_h"][:], feed["table_w"][:] = -32768, 32767
    feed["table_h"][:, 1:] += 1
    feed["table_h_scale"] = feed["table_w_scale"] = scalar(1e-7)
    check_log("QAttentionRelPos", feed, 0.001, tau=4, bits=8)
    check_rows(feed, 0.001, tau=4, bits=8)


def test_near_the_float_graph() -> None:
    feed = code_feed((2, 64), 300, 32)
    given = plain(feed)
    scale = 0.2
    q, k, v = (given[f"{x}_scale"] * (given[x].astype(np.float32) - given[f"{x}_zero_point"]) for x in "qkv")
    expected = run("Attention", {"q": q, "k": k, "v": v}, {"scale": scale}, native=True)
    weight = reference.softmax(float_logits(feed, scale)) @ np.abs(v)
    log = run("QAttention", feed, {"scale": scale, "tau": 4, "bits": 8}, native=True)
    # A code of tau = 4 is at most an eighth of an octave off, and p > p_scale is clipped.
    assert np.all(np.abs(log - expected) < 0.11 * weight)
    feed["p_scale"] = scalar(1 / 255)
    uniform = run("UniformAttention", feed, {"scale": scale, "bits": 8}, native=True)
    assert np.all(np.abs(uniform - expected) < 0.51 / 255 * np.abs(v).sum(axis=-2, keepdims=True))
    feed = without_scale(feed)
    fine = run("LogRowAttention", feed, {"scale": scale, "tau": 16, "bits": 8}, native=True)
    # A thirty-second of an octave, of each weight and of their sum; what is below 2^-15 of the largest is left out.
    assert np.all(np.abs(fine - expected) < 0.045 * weight + 2.0**-14 * np.abs(v).sum(axis=-2, keepdims=True))
    uniform = run("UniformRowAttention", feed, {"scale": scale, "bits": 8}, native=True)
    assert np.all(np.abs(uniform - expected) < 1.02 / 255 * np.abs(v).sum(axis=-2, keepdims=True))
