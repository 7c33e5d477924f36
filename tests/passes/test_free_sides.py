# SPDX-License-Identifier: Apache-2.0
"""Attention among prompts of any number, of any number of images, is found with all its projections.

The graphs are as TorchScript writes Hugging Face's decoders: heads go into the batch and out of it by sizes that are
computed from shapes, and the tokens are what the file has and what is fed, one behind the other.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.passes.lift import Lifted, lift, simplify
from samq_onnx.runtime import open_session

WIDTH, HEADS = 8, 2

SIZES = """
 zero = Constant <value = int64 {0}> ()
 one = Constant <value = int64 {1}> ()
 two = Constant <value = int64 {2}> ()
 first = Constant <value = int64[1] {0}> ()
 heads = Constant <value = int64[1] {2}> ()
 rest = Constant <value = int64[1] {-1}> ()
 sparse_dims = Shape (sparse)
 images = Gather (sparse_dims, zero)
 prompts = Gather (sparse_dims, one)
 i = Unsqueeze (images, first)
 p = Unsqueeze (prompts, first)
 width = Constant <value = int64[1] {8}> ()
 count = Constant <value = int64[1] {3}> ()
 many = Concat <axis = 0> (i, p, count, width)
 own = Expand (tokens, many)
 x = Concat <axis = 2> (own, sparse)
"""
OPERAND = """
 {0}_product = MatMul (x, w_{0})
 {0}_dims = Shape ({0}_product)
 {0}_images = Gather ({0}_dims, zero)
 {0}_prompts = Gather ({0}_dims, one)
 {0}_tokens = Gather ({0}_dims, two)
 {0}_batch = Mul ({0}_images, {0}_prompts)
 {0}_b = Unsqueeze ({0}_batch, first)
 {0}_t = Unsqueeze ({0}_tokens, first)
 {0}_apart = Concat <axis = 0> ({0}_b, {0}_t, heads, rest)
 {0}_heads = Reshape ({0}_product, {0}_apart)
 {0} = Transpose <perm = [0, 2, 1, 3]> ({0}_heads)
"""
BACK = """
 keys = Transpose <perm = [0, 1, 3, 2]> (k)
 scores = MatMul (q, keys)
 weights = Softmax <axis = -1> (scores)
 mixed = MatMul (weights, v)
 together = Transpose <perm = [0, 2, 1, 3]> (mixed)
 dims = Shape (together)
 batch = Gather (dims, zero)
 tokens_now = Gather (dims, one)
 images_now = Div (batch, q_prompts)
 i_now = Unsqueeze (images_now, first)
 p_now = Unsqueeze (q_prompts, first)
 t_now = Unsqueeze (tokens_now, first)
 apart = Concat <axis = 0> (i_now, p_now, t_now, rest)
 merged = Reshape (together, apart)
 projected = MatMul (merged, w_out)
 y = Add (projected, x)
"""
TEXT = (
    '<ir_version: 8, opset_import: ["" : 17]>\nagraph (float[SPARSE] sparse) => (float[a, b, c, 8] y) {'
    + SIZES
    + "".join(OPERAND.format(name) for name in "qkv")
    + BACK
    + "}"
)


def _model(sparse: str) -> ir.Model:
    model = ir.from_onnx_text(TEXT.replace("SPARSE", sparse))
    random = np.random.default_rng(0)
    used = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name in ("tokens", *(f"w_{one}" for one in ("q", "k", "v", "out"))):
        shape = (1, 1, 3, WIDTH) if name == "tokens" else (WIDTH, WIDTH)
        value = used[name]
        value.const_value = ir.tensor(random.standard_normal(shape).astype(np.float32), name=name)
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return model


def _lifted(sparse: str) -> tuple[ir.Model, Lifted]:
    model = _model(sparse)
    simplify(model)
    return model, lift(model)


SIDES = ["1, 1, n, 8", "b, 1, n, 8", "1, p, n, 8", "b, p, n, 8", "b, p, 2, 8"]


@pytest.mark.parametrize("sparse", SIDES)
def test_every_projection_is_traced(sparse: str) -> None:
    _, found = _lifted(sparse)
    (site,) = found.attentions
    assert not found.refused
    for projection in (site.q, site.k, site.v, site.out):
        assert projection is not None
        assert np.array_equal(projection.channels, np.arange(WIDTH).reshape(HEADS, WIDTH // HEADS))


@pytest.mark.parametrize("sparse", SIDES)
def test_the_lifted_graph_computes_the_same(sparse: str) -> None:
    model, _ = _lifted(sparse)
    ops.add_functions(model)
    sides = {"b": 2, "p": 3, "n": 4}
    shape = [sides.get(side.strip()) or int(side) for side in sparse.split(",")]
    feed = {"sparse": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    before = open_session(ir.to_proto(_model(sparse)).SerializeToString()).run(None, feed)
    after = open_session(ir.to_proto(model).SerializeToString()).run(None, feed)
    assert np.abs(before[0] - after[0]).max() < 1e-5 * np.abs(before[0]).max()
