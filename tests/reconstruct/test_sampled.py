# SPDX-License-Identifier: Apache-2.0
"""Rows of a block that are computed alone are what they are among all; where they cannot be known, they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samq_onnx.calibrate.stream import run
from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths
from samq_onnx.methods.step import Work
from samq_onnx.methods.steps import Ranges, Select
from samq_onnx.pipeline import Preparation, begin
from samq_onnx.reconstruct.activation_cache import ActivationCache
from samq_onnx.reconstruct.engine import reconstruct_units
from samq_onnx.reconstruct.recipe import Phase, Recipe
from samq_onnx.reconstruct.sampled import sampled
from samq_onnx.reconstruct.simulate import Simulation, Twins
from samq_onnx.reconstruct.units import Unit, between, entering, find_units
from tests.fuzz.tiny import Graph

TOKENS, WIDTH, HEADS = 12, 8, 2
Operands = tuple[str, str, str]


def _rows(g: Graph, y: str, first: int) -> str:
    """Every other row."""
    return g.op("Slice", y, g.ints(first), g.ints(TOKENS), g.ints(1), g.ints(2))


def _plain(g: Graph, x: str) -> Operands:
    q, k, v = (g.linear(x, WIDTH, WIDTH) for _ in "qkv")
    return q, k, v


def _other_keys_than_values(g: Graph, x: str) -> Operands:
    q, k, v = _plain(g, x)
    return q, _rows(g, k, 0), _rows(g, v, 1)


def _counted_from_the_end(g: Graph, x: str) -> Operands:
    y = g.op("Reshape", g.linear(x, WIDTH, 3 * WIDTH), g.ints(1, TOKENS, 3, WIDTH))
    q, k, v = (g.op("Gather", y, g.held(place - 3, np.int64), axis=2) for place in range(3))
    return q, k, v


def _a_row_joined_and_cut(g: Graph, y: str) -> str:
    joined = g.op("Concat", g.held(np.zeros((1, 1, WIDTH))), y, axis=1)
    return g.op("Slice", joined, g.ints(1), g.ints(TOKENS + 1), g.ints(1))


def _turned(g: Graph, y: str) -> str:
    return g.op("Slice", y, g.ints(-1), g.ints(-100), g.ints(1), g.ints(-1))


def _matrix_of_each(g: Graph, y: str) -> str:
    return g.op("MatMul", y, g.drawn(2, WIDTH, WIDTH))


def _same(g: Graph, y: str) -> str:
    return y


def _norm_of_rank_2(g: Graph) -> str:
    return g.op("LayerNormalization", "x", g.drawn(1, WIDTH), g.drawn(1, WIDTH), axis=-1)


def _norm(g: Graph) -> str:
    return g.norm("x")


def work_of(
    operands: Callable[[Graph, str], Operands],
    behind: Callable[[Graph, str], str],
    norm: Callable[[Graph], str],
    batch: int = 1,
) -> Work:
    """A block: norm, attention and a residual sum."""
    g = Graph(WIDTH, HEADS)
    q, k, v = operands(g, norm(g))

    def heads(y: str) -> str:
        split = g.op("Reshape", y, g.ints(batch, -1, HEADS, WIDTH // HEADS))
        return g.op("Transpose", split, perm=[0, 2, 1, 3])

    product = g.op("MatMul", heads(q), g.op("Transpose", heads(k), perm=[0, 1, 3, 2]))
    p = g.op("Softmax", g.op("Div", product, g.held((WIDTH / HEADS) ** 0.5)), axis=-1)
    joined = g.op("Transpose", g.op("MatMul", p, heads(v)), perm=[0, 2, 1, 3])
    out = g.linear(g.op("Reshape", joined, g.ints(batch, TOKENS, WIDTH)), WIDTH, WIDTH)
    made = g.op("Add", "x", behind(g, out))
    shape = f"float[{batch},{TOKENS},{WIDTH}]"
    model = ir.from_proto(g.model(f"{shape} x", f"{shape} y", {"y": made}))
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)} for _ in range(2)]
    work = begin(Preparation(model, 8), identify(model, "block"), feeds, Scheme(Widths(8, 8)), target="samq")
    work.run([Select(), Ranges("minmax", "mse", "uniform")], work)
    return work


def whole(work: Work) -> Unit:
    """All of it."""
    graph = work.model.graph
    nodes = between(graph, [node for node, _ in graph.inputs[0].uses()], graph.outputs, graph.inputs[:1])
    given = entering(nodes, graph.outputs, graph.inputs[:1])
    return Unit("all", "block", tuple(graph.outputs), tuple(nodes), tuple(given))


@pytest.mark.parametrize("operands", [_plain, _other_keys_than_values])
def test_some_queries_are_what_they_are_among_all(operands: Callable[[Graph, str], Operands], tmp_path: Path) -> None:
    work = work_of(operands, _same, _norm)
    unit = whole(work)
    simulation = Simulation(work.lifted, work.plan, unit.outputs, unit.inputs, Twins(free=False))
    few, cache = sampled(work.lifted, simulation, unit), ActivationCache(unit.tensors, tmp_path)
    assert few is not None
    run(work.model, work.feeds, [cache], label="x")
    x = cache[0][0]
    with torch.no_grad():
        among_all = simulation({unit.inputs[0]: x})[0].flatten(0, -2)
        for rows in (1, 4, 11):
            choice = few.draw(np.random.default_rng(rows), rows)
            assert choice is not None and len(choice.rows) == rows
            made = few(x.flatten(0, -2)[choice.tokens][None], choice)[0]
            torch.testing.assert_close(made, among_all[choice.rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("operands", "behind", "norm", "batch"),
    [
        (_counted_from_the_end, _same, _norm, 1),
        (_plain, _a_row_joined_and_cut, _norm, 1),
        (_plain, _turned, _norm, 1),
        (_plain, _matrix_of_each, _norm, 2),
        (_plain, _same, _norm_of_rank_2, 1),
    ],
)
def test_what_cannot_be_known_is_seen_whole(
    operands: Callable[[Graph, str], Operands],
    behind: Callable[[Graph, str], str],
    norm: Callable[[Graph], str],
    batch: int,
) -> None:
    """And learning goes on, or says which operator has no gradient."""
    work = work_of(operands, behind, norm, batch)
    unit = whole(work)
    simulation = Simulation(work.lifted, work.plan, unit.outputs, unit.inputs, Twins(free=False))
    assert sampled(work.lifted, simulation, unit) is None
    recipe = Recipe("block", (Phase(20_000, rounding=True, scales=True),), 2)
    found = reconstruct_units(
        work.lifted, work.plan, recipe, work.feeds, work.feeds, exact=work.exact, label="block"
    )  # fmt: skip
    assert len(found) == len(find_units(work.lifted, work.plan, "block"))
    assert all(one.refused == "" or "no gradient here" in one.refused for one in found)
