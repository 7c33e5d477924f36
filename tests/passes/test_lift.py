# SPDX-License-Identifier: Apache-2.0
"""Lifting finds SAM's parts by topology, and what it outlines computes the same."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from samq_onnx import ops
from samq_onnx.models import load_model
from samq_onnx.passes.lift import Lifted, lift, simplify
from tests.conftest import Feed, relative_error, run_model

KINDS = {
    "encoder": {"encoder_window": 4, "encoder_global": 2},
    "decoder": {
        "decoder_self": 2,
        "decoder_token_to_image": 2,
        "decoder_image_to_token": 2,
        "decoder_final": 1,
    },
}
LINEARS = {"encoder": 27, "decoder": 51}
NORMS = {"encoder": 14, "decoder": 12}
GELUS = {"encoder": 6, "decoder": 4}


def lifted(path: Path) -> tuple[ir.Model, Lifted]:
    model = load_model(path)
    simplify(model)
    return model, lift(model)


@pytest.mark.parametrize("part", list(KINDS))
def test_everything_is_found(part: str, nano: Path) -> None:
    _, structure = lifted(nano / f"{part}.onnx")
    assert collections.Counter(site.kind for site in structure.attentions) == KINDS[part]
    assert len(structure.linears) == LINEARS[part]
    assert len(structure.norms) == NORMS[part]
    assert len(structure.gelus) == GELUS[part]
    assert all(site.kind != "generic" for site in structure.attentions) and not structure.refused
    assert all(site.q and site.k and site.v for site in structure.attentions)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("part", list(KINDS))
def test_lifted_graph_computes_the_same(part: str, native: bool, nano: Path, request: pytest.FixtureRequest) -> None:
    feed: Feed = request.getfixturevalue(f"{part}_feed")
    path = nano / f"{part}.onnx"
    model, _ = lifted(path)
    ops.add_functions(model)
    assert relative_error(run_model(path, feed), run_model(model, feed, native=native)) < 5e-5


@pytest.mark.parametrize("part", list(KINDS))
def test_lifting_twice_changes_nothing(part: str, nano: Path) -> None:
    model, first = lifted(nano / f"{part}.onnx")
    nodes = [node.name for node in model.graph]
    second = lift(model)
    assert [node.name for node in model.graph] == nodes
    for one, two in zip(first.attentions, second.attentions, strict=True):
        assert one.kind == two.kind and (one.q.channels == two.q.channels).all()


@pytest.mark.parametrize("part", list(KINDS))
def test_graph_interface_is_kept(part: str, nano: Path) -> None:
    original = ir.to_proto(load_model(nano / f"{part}.onnx")).graph
    model, _ = lifted(nano / f"{part}.onnx")
    made = ir.to_proto(model).graph
    assert list(original.input) == list(made.input)
    assert list(original.output) == list(made.output)


def test_channels_are_those_of_the_linear(nano: Path) -> None:
    _, structure = lifted(nano / "encoder.onnx")
    site = structure.attentions[0]
    assert site.heads == 3 and site.head_dim == 64 and site.scale == pytest.approx(1 / 8)
    for offset, projection in enumerate((site.q, site.k, site.v)):
        assert projection is not None
        assert (projection.channels.ravel() == np.arange(192) + 192 * offset).all()


def _attention_net(masked: bool) -> ir.Model:
    """x W_q, x W_k, x W_v, one head, with a mask input added to the scores if ``masked``."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 5, 8] x, float[5, 5] mask, float[8, 8] wq, float[8, 8] wk, float[8, 8] wv) => (float[1, 5, 8] y)
    <float s = {0.5}>
    {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        kt = Transpose <perm = [0, 2, 1]> (k)
        scores = MatMul(q, kt)
        scaled = Mul(s, scores)
        logits = TERM
        p = Softmax <axis = -1> (logits)
        y = MatMul(p, v)
    }
    """.replace("TERM", "Add(scaled, mask)" if masked else "Identity(scaled)")
    model = ir.from_onnx_text(text)
    random = np.random.default_rng(0)
    for value in [value for value in model.graph.inputs if value.name not in ("x", "mask")]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(random.normal(size=(8, 8)).astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


def test_another_spelling_is_lifted() -> None:
    model = _attention_net(masked=False)
    feed = {
        "x": np.random.default_rng(1).normal(size=(1, 5, 8)).astype(np.float32),
        "mask": np.zeros((5, 5), np.float32),
    }
    expected = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feed)
    simplify(model)
    structure = lift(model)
    ops.add_functions(model)
    assert [site.kind for site in structure.attentions] == ["generic"]
    assert structure.attentions[0].scale == 0.5
    assert relative_error(expected, run_model(model, feed)) < 1e-5


def test_masked_attention_is_refused_with_a_reason() -> None:
    model = _attention_net(masked=True)
    simplify(model)
    structure = lift(model)
    assert not structure.attentions
    assert len(structure.refused) == 1 and "added to the scores" in structure.refused[0]
    assert any(node.op_type == "Softmax" for node in model.graph)
