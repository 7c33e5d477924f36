# SPDX-License-Identifier: Apache-2.0
"""Inputs that do not fit: a message that says so, and no crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_tests.one_node import (
    build,
    code_bias,
    code_feed,
    code_tables,
    float_bias,
    float_feed,
    run,
    scalar,
    tables,
    without_scale,
)
from samq_onnx.errors import UserError
from samq_onnx.runtime import open_session

LOG = {"scale": 1.0, "tau": 2, "bits": 8}


def changed(feed: dict[str, Any], **arrays: Any) -> dict[str, Any]:
    return feed | arrays


FLOATS = float_feed((2, 6), 6, 8)
CODES = code_feed((2, 6), 6, 8)


@pytest.mark.parametrize(("op", "feed", "attributes", "message"), [
    ("Attention", changed(FLOATS, k=FLOATS["k"][..., :7]), {"scale": 1.0}, "q and k must have equal last dimensions"),
    ("Attention", changed(FLOATS, v=FLOATS["v"][:, :5]), {"scale": 1.0}, "k and v must have equally many rows"),
    ("Attention", changed(FLOATS, k=FLOATS["k"][:1]), {"scale": 1.0}, "equal leading dimensions"),
    ("Attention", changed(FLOATS, v=FLOATS["v"][0]), {"scale": 1.0}, "one rank of at least 3"),
    ("AttentionRelPos", FLOATS | tables(2, 2, 2, 3, 8), {"scale": 1.0}, "the tables must be for 6 queries"),
    ("AttentionRelPos", FLOATS | tables(2, 3, 2, 2, 8), {"scale": 1.0}, "the tables must be for 6 keys"),
    ("AttentionRelPos", FLOATS | tables(2, 3, 2, 3, 7), {"scale": 1.0}, "table_h must be [queries, keys, 8]"),
    ("AttentionBias", FLOATS | float_bias(2, 5, 6), {"scale": 1.0}, "bias must be [groups, 6, 6], got [2, 5, 6]"),
    ("QAttentionBias", CODES | code_bias(4, 6, 6), LOG, "the groups of bias must divide a batch of 2, got 4"),
    ("QAttentionBias", CODES | code_bias(1, 6, 6) | {"bias_scale": scalar(np.inf)}, LOG, "bias_scale must be finite"),
    ("QAttentionRelPos", code_feed((2, 6), 6, 257) | code_tables(2, 3, 2, 3, 257), LOG, "q of at most 256"),
    ("QAttention", changed(CODES, q_scale=np.ones(2, np.float32)), LOG, "q_scale must hold one number"),
    ("QAttention", changed(CODES, q_scale=scalar(np.nan)), LOG, "q_scale * k_scale * scale must be finite"),
    ("LogRowAttention", changed(without_scale(CODES), k_scale=scalar(np.inf)), LOG, "must be finite"),
    ("QAttention", changed(CODES, p_scale=scalar(0.0)), LOG, "p_scale must be above 0"),
    ("QAttention", changed(CODES, p_scale=scalar(np.nan)), LOG, "p_scale must be above 0"),
    ("QAttention", changed(CODES, v=CODES["v"][:, :5]), LOG, "k and v must have equally many rows"),
    ("ShiftLutMatMul", {"codes": np.zeros((2, 3, 4), np.uint8), "v": np.zeros((2, 5, 4), np.uint8),
                        "p_scale": scalar(1), "v_scale": scalar(1), "v_zero_point": scalar(0, np.uint8)},
     {"tau": 1, "bits": 8}, "do not fit"),
])  # fmt: skip
def test_shapes_that_do_not_fit(op: str, feed: dict[str, Any], attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as caught:
        run(op, feed, attributes, native=True)
    assert message in str(caught.value)
    assert f"the_{op}" in str(caught.value)


@pytest.mark.parametrize(("attributes", "message"), [
    ({"scale": 1.0, "tau": 3, "bits": 8}, "tau must be 1, 2, 4, 8 or 16"),
    ({"scale": 1.0, "tau": 32, "bits": 8}, "tau must be from 1 to 16"),
    ({"scale": 1.0, "tau": 2, "bits": 9}, "bits must be from 1 to 8"),
    ({"scale": 1.0, "bits": 8}, "tau"),
])  # fmt: skip
def test_attributes_out_of_range(attributes: dict[str, Any], message: str) -> None:
    model = build("QAttention", CODES, attributes).SerializeToString()
    with pytest.raises(UserError, match=message):
        open_session(model)


def test_numbers_that_are_none_do_not_crash() -> None:
    feed = float_feed((1, 30), 60, 16)
    feed["q"][0, 3] = np.nan
    feed["k"][0, 5] = np.inf
    assert run("Attention", feed, {"scale": 1.0}, native=True).shape == (1, 30, 16)
