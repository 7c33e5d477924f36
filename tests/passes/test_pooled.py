# SPDX-License-Identifier: Apache-2.0
"""Queries that are pooled by maximum, as in Hiera: they are traced, pooled as codes, and kept from edits of their
order."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx.passes.fold import fold_attention_scale, fold_key_scale, fold_sign
from samq_onnx.passes.lift import Lifted, lift, simplify
from tests.conftest import quantized_outcome, relative_error, run_model
from tests.fuzz.tiny import Graph

WINDOWS, SIDE, HEADS, DEPTH = 8, 8, 2, 8
TOKENS, WIDTH = SIDE * SIDE, HEADS * DEPTH


def _model(negative: bool = False) -> onnx.ModelProto:
    """One linear makes q, k and v of each window; q is pooled to a quarter of its places.

    Args:
        negative: whether the scale is below 0.
    """
    g = Graph()
    made = g.op("Add", g.op("MatMul", "x", g.drawn(WIDTH, 3 * WIDTH)), g.drawn(3 * WIDTH))
    parts = g.op("Reshape", made, g.ints(WINDOWS, TOKENS, 3, HEADS, DEPTH))
    q, k, v = (g.op("Squeeze", g.op("Slice", parts, g.ints(i), g.ints(i + 1), g.ints(2)), g.ints(2)) for i in range(3))
    places = g.op("Reshape", q, g.ints(WINDOWS, SIDE, SIDE, WIDTH))
    pooled = g.op("MaxPool", g.op("Transpose", places, perm=[0, 3, 1, 2]), kernel_shape=[2, 2], strides=[2, 2])
    back = g.op("Reshape", g.op("Transpose", pooled, perm=[0, 2, 3, 1]), g.ints(WINDOWS, TOKENS // 4, HEADS, DEPTH))
    rows = g.op("Transpose", back, perm=[0, 2, 1, 3])
    scores = g.op("MatMul", rows, g.op("Transpose", k, perm=[0, 2, 3, 1]))
    scaled = g.op("Mul", scores, g.held([DEPTH**-0.5 * (-1 if negative else 1)]))
    mixed = g.op("MatMul", g.op("Softmax", scaled, axis=-1), g.op("Transpose", v, perm=[0, 2, 1, 3]))
    joined = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(WINDOWS, TOKENS // 4, WIDTH))
    y = g.op("Add", g.op("MatMul", joined, g.drawn(WIDTH, WIDTH)), g.drawn(WIDTH))
    return g.model(f"float[{WINDOWS}, {TOKENS}, {WIDTH}] x", f"float[{WINDOWS}, {TOKENS // 4}, {WIDTH}] y", {"y": y})


def _feed(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((WINDOWS, TOKENS, WIDTH)).astype(np.float32)}


def _lifted(negative: bool = False) -> tuple[ir.Model, Lifted]:
    model = ir.from_proto(_model(negative))
    simplify(model)
    return model, lift(model)


def test_pooled_queries_are_traced() -> None:
    _, found = _lifted()
    (site,) = found.attentions
    assert not found.refused and site.q is not None and site.k is not None and site.v is not None
    assert (site.q.pooled, site.k.pooled, site.v.pooled) == (True, False, False)
    for offset, projection in enumerate((site.q, site.k, site.v)):
        wanted = WIDTH * offset + np.arange(WIDTH).reshape(HEADS, DEPTH)
        np.testing.assert_array_equal(projection.channels, wanted)


def test_what_is_not_the_same_everywhere_is_not_traced() -> None:
    """Channels that lie along a pooled axis are mixed by pooling."""
    model = ir.from_proto(_model())
    for node in model.graph:
        if node.op_type == "Transpose" and node.outputs[0].uses()[0].node.op_type == "MaxPool":
            node.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])
    simplify(model)
    assert all(site.q is None for site in lift(model).attentions)


def test_edits_that_keep_the_order_of_values_are_exact() -> None:
    model, found = _lifted()
    expected = run_model(model, _feed())
    assert fold_attention_scale(found).done
    (site,) = found.attentions
    scales = {site.name: np.exp(np.random.default_rng(1).standard_normal((HEADS, DEPTH)))}
    assert fold_key_scale(found, scales).done
    assert relative_error(expected, run_model(model, _feed())) < 1e-5


def test_edits_that_change_it_are_refused() -> None:
    _, found = _lifted()
    (site,) = found.attentions
    mean = {site.name: np.full((HEADS, DEPTH), -1.0)}
    refused = fold_sign(found, mean, {site.name: True}).refused
    assert len(refused) == 1 and "pooled" in refused[0]
    refused = fold_attention_scale(_lifted(negative=True)[1]).refused
    assert len(refused) == 1 and "pooled" in refused[0]


@pytest.mark.parametrize("target", ["samq", "qdq"])
def test_it_is_quantized(target: str) -> None:
    expected = run_model(ir.from_proto(_model()), _feed(5))
    outcome = quantized_outcome(ir.from_proto(_model()), [_feed(seed) for seed in range(3)], target=target)
    (pool,) = (node for node in outcome.model.graph if node.op_type == "MaxPool")
    if target == "samq":
        assert pool.inputs[0].dtype == ir.DataType.UINT8
    assert relative_error(expected, run_model(outcome.model, _feed(5))) < 0.05
    for one, two in zip(
        run_model(outcome.model, _feed(5)), run_model(outcome.model, _feed(5), native=False), strict=True
    ):
        np.testing.assert_array_equal(one, two)
