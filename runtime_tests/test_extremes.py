# SPDX-License-Identifier: Apache-2.0
"""Empty tensors, huge dimensions of nothing, and numbers that are none: kernel and body alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_tests.one_node import code_feed, code_tables, float_feed, plain, run, scalar, without_scale
from runtime_tests.test_layer_norm import feed as norm_feed
from runtime_tests.test_linear import feed as linear_feed
from samq_onnx import reference

HUGE = 2**36
OUTPUT = {"y_scale": scalar(0.1), "y_zero_point": scalar(7, np.uint8)}
LOG, UNIFORM = {"scale": 0.3, "tau": 2, "bits": 8}, {"scale": 0.3, "bits": 8}
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, 3.4e38, -3.4e38, 1e-45, 0.7], np.float32)


def codes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> dict[str, Any]:
    """Empty operands of these shapes."""
    shapes = {"q": q, "k": k, "v": v}
    feed = code_feed((1, 1), 1, 1)
    return feed | {name: np.empty(shape, np.uint8) for name, shape in shapes.items()}


@pytest.mark.parametrize(("op", "feed", "attributes", "shape"), [
    ("UniformRowAttention", without_scale(codes((HUGE, 0, 0), (HUGE, 1, 0), (HUGE, 1, 0))), UNIFORM, (HUGE, 0, 0)),
    ("QAttention", codes((1, HUGE, 0), (1, 1, 0), (1, 1, 0)), LOG, (1, HUGE, 0)),
    ("QAttention", codes((1, 0, 0), (1, HUGE, 0), (1, HUGE, 0)), LOG, (1, 0, 0)),
    ("Attention", {name: np.empty((1, HUGE, 0), np.float32) for name in "qkv"}, {"scale": 1.0}, (1, HUGE, 0)),
    ("ShiftLutMatMul", {"codes": np.empty((1, HUGE, 0), np.uint8), "v": np.empty((1, 0, 0), np.uint8),
                        "p_scale": scalar(1), "v_scale": scalar(1), "v_zero_point": scalar(0, np.uint8)},
     {"tau": 1, "bits": 8}, (1, HUGE, 0)),
    ("QLinear", linear_feed((1,), 1, 1) | {"x": np.empty((HUGE, 0), np.uint8), "w": np.empty((0, 0), np.int8),
                                           "bias": np.empty(0, np.int32), "scale": scalar(1)}, {}, (HUGE, 0)),
])  # fmt: skip
def test_nothing_ends_at_once(
    op: str, feed: dict[str, Any], attributes: dict[str, Any], shape: tuple[int, ...]
) -> None:
    assert run(op, feed, attributes, native=True).shape == shape


def same(op: str, feed: dict[str, Any], attributes: dict[str, Any]) -> np.ndarray:
    native, body = (run(op, feed, attributes, native=native) for native in (True, False))
    np.testing.assert_array_equal(native, body)
    assert native.shape == body.shape
    return native


@pytest.mark.parametrize(("rows", "keys", "depth", "width"), [(0, 6, 4, 3), (6, 0, 4, 3), (6, 6, 0, 3), (6, 6, 4, 0)])
@pytest.mark.parametrize("op", ["Q", "Uniform", "LogRow", "UniformRow"])
@pytest.mark.parametrize("leading", [(2,), (1, 2), (0,)])
def test_empty_dimensions(op: str, leading: tuple[int, ...], rows: int, keys: int, depth: int, width: int) -> None:
    feed = code_feed((*leading, rows), keys, depth)
    feed["v"] = np.resize(np.arange(200, dtype=np.uint8), (*leading, keys, width))
    feed = without_scale(feed) if "Row" in op else feed
    attributes = UNIFORM if "Uniform" in op else LOG
    out = same(f"{op}Attention", feed, attributes)
    assert out.shape == (*leading, rows, width)
    assert keys or not out.any()
    quantized = same(f"{op}AttentionQuantize", feed | OUTPUT, attributes)
    np.testing.assert_array_equal(quantized, reference.quantize(out, **plain(OUTPUT)))
    tables = code_tables(rows, 1, keys, 1, depth)
    assert same(f"{op}AttentionRelPos", feed | tables, attributes).shape == out.shape


@pytest.mark.parametrize(("rows", "depth", "columns"), [(3, 0, 40), (0, 3, 4), (3, 4, 0), (0, 0, 0)])
def test_empty_linears(rows: int, depth: int, columns: int) -> None:
    feed = linear_feed((rows,), depth, columns)
    np.testing.assert_array_equal(same("QLinear", feed, {}), reference.linear(**plain(feed)))
    assert same("QLinear", feed | {"scale": scalar(0.1)}, {}).shape == (rows, columns)


def test_codes_of_what_is_no_number_are_0() -> None:
    p = np.resize(SPECIAL, (3, 7))
    for p_scale in (0.9, np.nan, np.inf, 0.0):
        feed = {"p": p, "p_scale": scalar(p_scale)}
        made = same("LogQuantize", feed, {"tau": 2, "bits": 6})
        np.testing.assert_array_equal(made, reference.log_quantize(p, p_scale, tau=2, bits=6))
        assert made[0, 0] == 0

    for name in ("x", "weight", "bias"):
        given = norm_feed((5, 24))
        given[name].reshape(-1)[:8] = SPECIAL
        made = same("LayerNormQuantize", given, {"epsilon": 1e-6, "bits": 8})
        assert np.all(made[0] == 0) if name == "x" else np.all(made[:, 0] == 0)

    for name in ("scale", "y_zero"):
        given = linear_feed((5,), 6, 24) | {"y_zero": np.full(24, 100, np.float32)}
        given[name][:8] = SPECIAL
        with np.errstate(all="ignore"):
            expected = reference.linear_quantize(**plain(given), bits=8)
            looked_up = reference.linear_lut(**plain(given), table=np.arange(10, 20).astype(np.uint8))
        np.testing.assert_array_equal(same("QLinearQuantize", given, {"bits": 8}), expected)
        table = {"table": np.arange(10, 20).astype(np.uint8)}
        np.testing.assert_array_equal(same("QLinearLut", given | table, {}), looked_up)

    for v_scale in (np.nan, np.inf):
        given = without_scale(code_feed((1, 5), 9, 8)) | OUTPUT | {"v_scale": scalar(v_scale)}
        given["v"][..., 0] = given["v_zero_point"]
        assert np.all(same("LogRowAttentionQuantize", given, LOG)[..., 0] == 0)


def test_floats_carry_what_is_no_number() -> None:
    for name in "qkv":
        for bad in (np.nan, np.inf):
            feed = float_feed((1, 30), 60, 16)
            feed[name][0, 3, 2] = bad
            native, body = (run("Attention", feed, {"scale": 1.0}, native=native) for native in (True, False))
            np.testing.assert_array_equal(np.isfinite(native), np.isfinite(body))
            assert not np.isfinite(native).all()
            if name == "q":
                assert np.isnan(native[0, 3]).all() and np.isfinite(native[0, 4]).all()

    given = linear_feed((5,), 6, 24) | {"residual": np.ones((5, 24), np.float32)}
    given["residual"][0, :8], given["scale"][8:16] = SPECIAL, SPECIAL
    same("QLinearResidual", given, {})


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
@pytest.mark.parametrize("name", ["p_scale", "y_scale", "q_scale"])
def test_scales_that_are_none_are_refused(name: str, bad: float, native: bool) -> None:
    if name == "q_scale" and np.isfinite(bad):
        return
    feed = code_feed((1, 5), 9, 8) | OUTPUT | {name: scalar(bad)}
    with pytest.raises(Exception, match=r"must be|out of data bounds"):
        run("QAttentionQuantize", feed, LOG, native=native)
