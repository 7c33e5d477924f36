# SPDX-License-Identifier: Apache-2.0
"""The same attention as different exporters write it: each is found, computes the same, and its operands are traced."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Lifted, lift, simplify
from tests.conftest import quantized_outcome, relative_error, run_model
from tests.fuzz.tiny import Graph

WINDOWS, HEADS, DEPTH, SIDE = 4, 2, 8, 3
TOKENS, WIDTH, MAPS = SIDE * SIDE, HEADS * DEPTH, WINDOWS * HEADS
HALF = DEPTH**-0.25  # of the scale, in octaves
Spelling = Callable[[Graph, str, str, str], str]


def _heads(g: Graph, x: str) -> str:
    """[W, N, C] -> [W, heads, N, d]."""
    return g.op("Transpose", g.op("Reshape", x, g.ints(WINDOWS, TOKENS, HEADS, DEPTH)), perm=[0, 2, 1, 3])


def _keys_between_reshapes(g: Graph, q: str, k: str) -> str:
    """As PyTorch's newer exporter writes scaled_dot_product_attention."""
    flat = g.op("Reshape", _heads(g, k), g.ints(MAPS, TOKENS, DEPTH))
    turned = g.op("Reshape", g.op("Transpose", flat, perm=[0, 2, 1]), g.ints(WINDOWS, HEADS, DEPTH, TOKENS))
    half = g.held([HALF])
    return g.op("MatMul", g.op("Mul", _heads(g, q), half), g.op("Mul", turned, half))


def _product(g: Graph, q: str, k: str) -> str:
    columns = g.op("Transpose", g.op("Reshape", k, g.ints(WINDOWS, TOKENS, HEADS, DEPTH)), perm=[0, 2, 3, 1])
    return g.op("Mul", g.op("MatMul", _heads(g, q), columns), g.held(HALF**2))


def _out(g: Graph, scores: str, v: str) -> str:
    return g.op("MatMul", g.op("Softmax", scores, axis=-1), _heads(g, v))


def between(g: Graph, q: str, k: str, v: str) -> str:
    return _out(g, _keys_between_reshapes(g, q, k), v)


def factor_before_views(g: Graph, q: str, k: str, v: str) -> str:
    q, k = (g.op("Mul", x, g.held(HALF)) for x in (q, k))
    columns = g.op("Transpose", g.op("Reshape", k, g.ints(WINDOWS, TOKENS, HEADS, DEPTH)), perm=[0, 2, 3, 1])
    return _out(g, g.op("MatMul", _heads(g, q), columns), v)


def untransposed(g: Graph, q: str, k: str, v: str) -> str:
    """A factor that no transposition makes: one head, whose columns are reshaped tokens."""
    q, k, v = (g.op("Reshape", x, g.ints(WINDOWS * TOKENS, HEADS, DEPTH)) for x in (q, k, v))
    columns = g.op("Reshape", k, g.ints(WINDOWS * TOKENS, DEPTH, HEADS))
    return g.op("MatMul", g.op("Softmax", g.op("MatMul", q, columns), axis=-1), v)


def guarded(g: Graph, q: str, k: str, v: str) -> str:
    """A mask that hides nothing, and what is done for rows that a mask hides."""
    p = g.op("Softmax", g.op("Add", _product(g, q, k), g.held(np.zeros((1, 1, TOKENS, TOKENS)))), axis=-1)
    return g.op("MatMul", g.op("Where", g.op("IsNaN", p), g.held(0.0), p), _heads(g, v))


def relative_position(g: Graph, q: str, k: str, v: str) -> str:
    """Scaled q, and position from unscaled q through a reshape of its own, in other axes than the scores."""
    scores = _keys_between_reshapes(g, q, k)
    grid = g.op("Reshape", _heads(g, q), g.ints(MAPS, SIDE, SIDE, DEPTH))
    table_h, table_w = g.drawn(SIDE, SIDE, DEPTH), g.drawn(SIDE, SIDE, DEPTH)
    rows = g.op("Einsum", grid, table_h, equation="bhwc,hkc->bhwk")
    columns = g.op("Einsum", grid, table_w, equation="bhwc,wkc->bhwk")
    both = g.op("Add", g.op("Unsqueeze", rows, g.ints(4)), g.op("Unsqueeze", columns, g.ints(3)))
    position = g.op("Reshape", both, g.ints(WINDOWS, HEADS, TOKENS, TOKENS))
    return _out(g, g.op("Add", scores, position), v)


def scaled_position(g: Graph, q: str, k: str, v: str) -> str:
    """Scores and position, scaled together."""
    grid = g.op("Reshape", _heads(g, q), g.ints(MAPS, SIDE, SIDE, DEPTH))
    table_h, table_w = g.drawn(SIDE, SIDE, DEPTH), g.drawn(SIDE, SIDE, DEPTH)
    rows = g.op("Unsqueeze", g.op("Einsum", grid, table_h, equation="bhwc,hkc->bhwk"), g.ints(4))
    columns = g.op("Unsqueeze", g.op("Einsum", grid, table_w, equation="bhwc,wkc->bhwk"), g.ints(3))
    position = g.op("Reshape", g.op("Add", rows, columns), g.ints(WINDOWS, HEADS, TOKENS, TOKENS))
    return _out(g, g.op("Mul", g.op("Add", _product(g, q, k), position), g.held(0.5)), v)


def learned_bias(g: Graph, q: str, k: str, v: str) -> str:
    """TinyViT: one bias for each head."""
    return _out(g, g.op("Add", _product(g, q, k), g.drawn(HEADS, TOKENS, TOKENS, scale=2.0)), v)


def shifted_windows(g: Graph, q: str, k: str, v: str) -> str:
    """Swin: a bias for each head, and a mask for each window, added in five axes."""
    scores = g.op("Add", _product(g, q, k), g.drawn(1, HEADS, TOKENS, TOKENS, scale=2.0))
    apart = np.arange(WINDOWS).reshape(WINDOWS, 1, 1, 1) * (np.arange(TOKENS) > SIDE).reshape(1, 1, TOKENS, 1)
    mask = np.where((apart % 2 == 1) & (np.arange(TOKENS) % 2 == 0), -100.0, 0.0)
    wide = g.op("Reshape", scores, g.ints(1, WINDOWS, HEADS, TOKENS, TOKENS))
    masked = g.op("Add", wide, g.held(mask[None]))
    return _out(g, g.op("Reshape", masked, g.ints(WINDOWS, HEADS, TOKENS, TOKENS)), v)


def _model(spelling: Spelling) -> onnx.ModelProto:
    g = Graph(WIDTH, HEADS)
    q, k, v = (g.linear("x", WIDTH, WIDTH) for _ in range(3))
    merged = spelling(g, q, k, v)
    if spelling is not untransposed:
        merged = g.op("Transpose", merged, perm=[0, 2, 1, 3])
    tokens = g.op("Reshape", merged, g.ints(WINDOWS, TOKENS, WIDTH))
    y = g.linear(tokens, WIDTH, WIDTH)
    shape = f"float[{WINDOWS}, {TOKENS}, {WIDTH}]"
    return g.model(f"{shape} x", f"{shape} y", {"y": y})


def _lifted(spelling: Spelling) -> tuple[ir.Model, Lifted]:
    model = ir.from_proto(_model(spelling))
    simplify(model)
    structure = lift(model)
    ops.add_functions(model)
    return model, structure


def _feed(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((WINDOWS, TOKENS, WIDTH)).astype(np.float32)}


SPELLINGS = {
    between: "Attention",
    factor_before_views: "Attention",
    untransposed: "Attention",
    guarded: "Attention",
    relative_position: "AttentionRelPos",
    scaled_position: "AttentionRelPos",
    learned_bias: "AttentionBias",
    shifted_windows: "AttentionBias",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_it_is_found_and_computes_the_same(spelling: Spelling) -> None:
    model, structure = _lifted(spelling)
    assert [site.node.op_type for site in structure.attentions] == [SPELLINGS[spelling]]
    expected = run_model(ir.from_proto(_model(spelling)), _feed())
    for native in (True, False):
        assert relative_error(expected, run_model(model, _feed(), native=native)) < 1e-5
    nodes = [node.name for node in model.graph]
    assert [site.name for site in lift(model).attentions] == [site.name for site in structure.attentions]
    assert [node.name for node in model.graph] == nodes


@pytest.mark.parametrize("spelling", [spelling for spelling in SPELLINGS if spelling is not untransposed])
def test_operands_are_traced(spelling: Spelling) -> None:
    _, structure = _lifted(spelling)
    site = structure.attentions[0]
    assert not [line for line in structure.refused if "factor" not in line]
    for projection in (site.q, site.k, site.v, site.out):
        if spelling is not factor_before_views or projection in (site.v, site.out):
            assert projection is not None
            np.testing.assert_array_equal(projection.channels, np.arange(WIDTH).reshape(HEADS, DEPTH))


@pytest.mark.parametrize("spelling", [between, relative_position])
def test_keys_are_transposed_no_more_often_than_needed(spelling: Spelling) -> None:
    _, structure = _lifted(spelling)
    value, between_them = structure.attentions[0].node.inputs[1], []
    while value is not None and value.producer() is not None and value.producer().op_type != "Add":
        node = value.producer()
        between_them.append(node.op_type)
        value = node.inputs[0]
    assert between_them.count("Transpose") == 1  # heads


def test_a_bias_is_kept_once_for_all_windows() -> None:
    _, structure = _lifted(learned_bias)
    held = constant(structure.attentions[0].bias)
    assert held.shape == (HEADS, TOKENS, TOKENS)
    assert (held.max(axis=-1) == 0).all()
    assert _lifted(shifted_windows)[1].attentions[0].bias.shape == (
        2 * HEADS,
        TOKENS,
        TOKENS,
    )  # every other window is alike


@pytest.mark.parametrize("target", ["samq", "qdq"])
@pytest.mark.parametrize("spelling", [relative_position, learned_bias, shifted_windows])
def test_it_is_quantized(spelling: Spelling, target: str) -> None:
    proto = _model(spelling)
    expected = run_model(ir.from_proto(proto), _feed(5))
    outcome = quantized_outcome(ir.from_proto(proto), [_feed(seed) for seed in range(3)], target=target)
    assert len(outcome.plan.attentions) == 1
    assert relative_error(expected, run_model(outcome.model, _feed(5))) < 0.05
    for one, two in zip(
        run_model(outcome.model, _feed(5)), run_model(outcome.model, _feed(5), native=False), strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("value", "reason"), [(-np.inf, "is not finite"), (-1e4, "reaches further than 256")])
def test_a_mask_that_codes_cannot_hold_is_refused(value: float, reason: str) -> None:
    def masked(g: Graph, q: str, k: str, v: str) -> str:
        mask = np.zeros((TOKENS, TOKENS))
        mask[:, 1] = value
        return _out(g, g.op("Add", _product(g, q, k), g.held(mask)), v)

    _, structure = _lifted(masked)
    assert not structure.attentions
    assert len(structure.refused) == 1 and reason in structure.refused[0]


def test_a_bias_beside_relative_position_is_refused() -> None:
    def both(g: Graph, q: str, k: str, v: str) -> str:
        grid = g.op("Reshape", _heads(g, q), g.ints(MAPS, SIDE, SIDE, DEPTH))
        rows = g.op("Einsum", grid, g.drawn(SIDE, SIDE, DEPTH), equation="bhwc,hkc->bhwk")
        columns = g.op("Einsum", grid, g.drawn(SIDE, SIDE, DEPTH), equation="bhwc,wkc->bhwk")
        position = g.op("Add", g.op("Unsqueeze", rows, g.ints(4)), g.op("Unsqueeze", columns, g.ints(3)))
        placed = g.op("Reshape", position, g.ints(WINDOWS, HEADS, TOKENS, TOKENS))
        biased = g.op("Add", g.op("Add", _product(g, q, k), placed), g.drawn(HEADS, TOKENS, TOKENS))
        return _out(g, biased, v)

    _, structure = _lifted(both)
    assert not structure.attentions and "scores with relative position" in structure.refused[0]
