# SPDX-License-Identifier: Apache-2.0
"""Fusions of ONNX Runtime, taken apart, compute what they computed; what is left alone is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from samq_onnx.errors import UserError
from samq_onnx.passes.lift import lift, simplify
from samq_onnx.passes.lift.expand import expand
from samq_onnx.passes.normal import normalise
from samq_onnx.runtime import open_session
from tests.fuzz import tiny

HEADER = '<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\nagraph ({inputs}) => (float y)\n'
RANDOM = np.random.default_rng(0)

FUSIONS: list[tuple[str, str]] = [
    ("float[2, 3, 5] x, float[2, 4, 5] z", "y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.3> (x, z)"),
    ("float[2, 5, 3] x, float[2, 5, 4] z", "y = com.microsoft.FusedMatMul <transA = 1> (x, z)"),
    ("float[n, 5, 3] x, float[5, 4] z", "t = Transpose <perm = [0, 2, 1]> (x)\n y = com.microsoft.FusedMatMul (t, z)"),
    ("float[3, 2, 5] x, float[4, 2, 5] z",
     "y = com.microsoft.FusedMatMul <transBatchA = 1, transBatchB = 1, transB = 1> (x, z)"),
    ("float[5, 2, 3] x, float[2, 5, 4] z", "y = com.microsoft.FusedMatMul <transBatchA = 1, transA = 1> (x, z)"),
    ("float[3, 5] x, float[4, 5] z, float[4] b",
     "y = com.microsoft.FusedGemm <transB = 1, alpha = 0.5, activation = \"Relu\"> (x, z, b)"),
    ("float[3, 5] x, float[5, 4] z",
     "y = com.microsoft.FusedGemm <activation = \"LeakyRelu\", activation_alpha = 0.2> (x, z)"),
    ("float[1, 3, 6, 6] x, float[4, 3, 3, 3] z, float[4] b",
     "y = com.microsoft.FusedConv <activation = \"Relu\", pads = [1, 1, 1, 1]> (x, z, b)"),
    ("float[1, 3, 6, 6] x, float[4, 3, 3, 3] z, float[4] b, float[1, 4, 4, 4] s",
     "y = com.microsoft.FusedConv <activation = \"Relu\"> (x, z, b, s)"),
    ("float[1, 3, 6, 6] x, float[4, 3, 3, 3] z",
     "y = com.microsoft.FusedConv <activation = \"Clip\", activation_params = [-0.1, 0.4]> (x, z)"),
    ("float[2, 3, 5] x", "y = com.microsoft.Gelu (x)"),
    ("float[2, 3, 5] x, float[5] b", "y = com.microsoft.BiasGelu (x, b)"),
    ("float[2, 3, 5] x, float[5] b", "y = com.microsoft.FastGelu (x, b)"),
    ("float[2, 3, 5] x", "y = com.microsoft.QuickGelu <alpha = 1.5> (x)"),
    ("float[2, 3, 8] x, float[2, 3, 8] s, float[8] g, float[8] b, float[8] c",
     "y = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (x, s, g, b, c)"),
    ("float[2, 3, 8] x, float[2, 3, 8] s, float[8] g, float[8] b",
     "n, m, i, t = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (x, s, g, b)\n y = Add (n, t)"),
    ("float[2, 3, 8] x, float[2, 3, 8] s, float[8] g",
     "y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (x, s, g)"),
    ("float[2, 3, 8] x, float[8] g, float[8] b", "y = LayerNormalization <axis = -1, epsilon = 0.01> (x, g, b)"),
    ("float[2, 3, 8] x, float[8] g", "y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01> (x, g)"),
    ("float[b, t, 8] x",
     "y = com.microsoft.Attention <num_heads = 2, scale = 0.4> (x, w24, b24)"),
    ("float[2, 3, 8] x, float[1, 2, 3, 3] a",
     "y = com.microsoft.Attention <num_heads = 2, qkv_hidden_sizes = [8, 8, 8]> (x, w24, b24, , , a)"),
    ("float[2, 3, 8] x, float[2, 5, 8] k, float[2, 5, 4] v",
     "y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, k, v)"),
    ("float[2, 3, 8] x, float[2, 5, 8] k, float[2, 5, 8] v",
     "y = com.microsoft.MultiHeadAttention <num_heads = 4, scale = 0.3> (x, k, v, b24)"),
]  # fmt: skip


def _model(inputs: str, body: str, opset: int = 17) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER.format(inputs=inputs, opset=opset) + "{\n" + body + "\n}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, shape in {"w24": (8, 24), "b24": (24,)}.items():
        array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def _feed(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    shapes = {i.name: [dim.dim_value or 2 for dim in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _assert_same(before: onnx.ModelProto, after: ir.Model) -> None:
    feed = _feed(before)
    expected = open_session(before.SerializeToString()).run(None, feed)
    actual = open_session(ir.to_proto(after).SerializeToString()).run(None, feed)
    for one, two in zip(expected, actual, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [12, 17, 20])
@pytest.mark.parametrize(("inputs", "body"), FUSIONS)
def test_a_fusion_is_taken_apart(inputs: str, body: str, opset: int) -> None:
    before = _model(inputs, body, opset)
    after = ir.from_proto(before)
    assert expand(after) == []
    left = {(node.domain, node.op_type) for node in after.graph}
    assert all(not domain for domain, _ in left) and ("", "SimplifiedLayerNormalization") not in left
    assert opset > 16 or ("", "LayerNormalization") not in left
    _assert_same(before, after)


LEFT = [
    ("float[2, 3, 8] x, int32[2] m", "y = com.microsoft.Attention <num_heads = 2> (x, w24, b24, m)"),
    ("float[2, 3, 8] x", "y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w24, b24)"),
    ("float[2, 3, 2, 3, 4] x", "y = com.microsoft.MultiHeadAttention <num_heads = 2> (x)"),
    ("float[2, 3, 8] x, float[2, 3, 8] s, float[8] g, float[8] b",
     "n, m, i, t = com.microsoft.SkipLayerNormalization (x, s, g, b)\n y = Add (n, m)"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "body"), LEFT)
def test_what_is_left_is_told_and_as_it_was(inputs: str, body: str) -> None:
    before = _model(inputs, body)
    after = ir.from_proto(before)
    names = set(after.graph.initializers)
    (line,) = expand(after)
    assert (
        "of com.microsoft stay in float: a fusion of ONNX Runtime" in line and "the model that it was made from" in line
    )
    assert set(after.graph.initializers) == names
    kept = [(node.domain, node.op_type, *node.input) for node in before.graph.node]
    assert [(node.domain, node.op_type, *node.input) for node in ir.to_proto(after).graph.node] == kept


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SAM as ONNX Runtime saves it at each level."""
    folder = tmp_path_factory.mktemp("saved")
    for name, model in {"encoder": tiny.encoder(), "decoder": tiny.decoder()}.items():
        for level in ("BASIC", "EXTENDED", "ALL"):
            options = ort.SessionOptions()
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
            options.optimized_model_filepath = str(folder / f"{name}_{level}.onnx")
            options.log_severity_level = 3
            ort.InferenceSession(model.SerializeToString(), options)
    return folder


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_all_is_found_in_what_onnxruntime_saved(saved: Path, part: str, level: str) -> None:
    plain = ir.from_proto(getattr(tiny, part)())
    simplify(plain)
    expected = lift(plain)
    model = ir.load(saved / f"{part}_{level}.onnx")
    assert not normalise(model, 8).refused
    found = lift(model)
    assert [site.kind for site in found.attentions] == [site.kind for site in expected.attentions]
    assert all(site.q and site.k and site.v for site in found.attentions)
    for what in ("linears", "norms", "gelus"):
        assert len(getattr(found, what)) == len(getattr(expected, what))


def test_a_layout_of_one_machine_is_refused(saved: Path) -> None:
    with pytest.raises(
        UserError, match=r"laid it out for the machine that saved it \(.*Conv.*nchwc\).*ORT_ENABLE_EXTENDED"
    ):
        normalise(ir.load(saved / "encoder_ALL.onnx"), 8)
