# SPDX-License-Identifier: Apache-2.0
"""Valid models that few exporters write: they are quantized rightly, or what cannot be is left as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from samq_onnx import ops, verify
from samq_onnx.models import load_model
from samq_onnx.passes.lift import Lifted, lift, simplify
from samq_onnx.runtime import open_session
from tests.conftest import Feed, quantized_outcome, run_model
from tests.passes.plans import Lowered, quantized

ATTENTION = """
<ir_version: 9, opset_import: ["" : 17]>
attention (float[2, 16, 8] x INPUTS) => (float[2, 16, 8] y)
<float[8, 8] wq, float[8, 8] wk, float[8, 8] wv, float scale = {0.5}, float[1] zero = {0.0},
 int64[1] first = {0}, int64[3] folded = {2, 8, 32}, int64[3] flat = {2, 16, 16}>
{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    BODY
}
"""
PLAIN = "kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt) t = Mul (s, scale)"
END = "p = Softmax <axis = -1> (t) y = MatMul (p, v)"


def _model(text: str, folder: Path) -> Path:
    """A model of random weights, saved."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    held = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.value_info:
        if value.name not in held:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            values = random.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, value.name))
    del model.graph.value_info[:]
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def _lifted(path: Path) -> tuple[ir.Model, Lifted]:
    model = load_model(path)
    simplify(model)
    structure = lift(model)
    ops.add_functions(model)
    return model, structure


def _quantized(path: Path, feed: Feed) -> Lowered:
    return quantized(path, [feed])


def feed_of(path: Path, **given: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    session = open_session(path)
    feed = {v.name: random.standard_normal(v.shape).astype(np.float32) for v in session.get_inputs()}
    return feed | {name: np.array(value, np.float32) for name, value in given.items()}


def attention(folder: Path, body: str, inputs: str = "") -> Path:
    return _model(ATTENTION.replace("BODY", body).replace("INPUTS", inputs), folder)


def test_a_plain_attention_is_lifted(tmp_path: Path) -> None:
    path = attention(tmp_path, f"{PLAIN} {END}")
    model, structure = _lifted(path)
    assert len(structure.attentions) == 1
    assert np.allclose(run_model(path, feed_of(path))[0], run_model(model, feed_of(path))[0], atol=1e-4)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (f"{PLAIN} {END}", ", float scale"),  # a default that a feed replaces
        (f"{PLAIN.replace('Mul (s, scale)', 'Div (s, zero)')} {END}", ""),
        (f"{PLAIN.replace('scale', 'zero')} {END}", ""),
        (f"{PLAIN} c = Cast <to = 7> (t) f = Cast <to = 1> (c) {END.replace('(t)', '(f)')}", ""),
        (
            f"{PLAIN} r = Reshape (t, folded) o = Softmax <axis = -1> (r) p = Reshape (o, flat) y = MatMul (p, v)",
            "",
        ),
        (f"{PLAIN} r = Reshape (t, folded) u = Softmax <axis = -1> (r) p = Reshape (u, flat) y = MatMul (p, v)", ""),
        (f"{PLAIN} {END.replace('axis = -1', 'axis = 1')}", ""),
        (f"{PLAIN} {END.replace('axis = -1', 'axis = 0')}", ""),
    ],
    ids=["fed", "divided by 0", "times 0", "integers", "reshaped", "reshaped back", "axis 1", "axis 0"],
)
def test_what_is_no_attention_stays(tmp_path: Path, body: str, inputs: str) -> None:
    path = attention(tmp_path, body, inputs)
    model, structure = _lifted(path)
    assert not structure.attentions and structure.refused
    for scale in (0.5, 3.0):
        feed = feed_of(path, **({"scale": scale} if inputs else {}))
        assert np.allclose(run_model(path, feed)[0], run_model(model, feed)[0], atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("target", ["samq", "qdq"])
def test_a_scale_with_a_default_follows_its_feed(tmp_path: Path, target: str) -> None:
    path = attention(tmp_path, f"{PLAIN} {END}", ", float scale")
    feed = {"x": feed_of(path)["x"]}
    lowered = quantized(path, [feed], target).model
    for fed in (feed, {**feed, "scale": np.array(3.0, np.float32)}):
        assert verify.sqnr(run_model(path, fed)[0], run_model(lowered, fed)[0]) > 25


def test_reshaped_scores_are_another_softmax(tmp_path: Path) -> None:
    body = f"{PLAIN} r = Reshape (t, folded) {END.replace('(t)', '(r)')}"
    path = attention(tmp_path, body.replace("y = MatMul (p, v)", "b = Reshape (p, flat) y = MatMul (b, v)"))
    assert not _lifted(path)[1].attentions


GELU = """
<ir_version: 9, opset_import: ["" : 17]>
gelu (float[1, 300, 8] x INPUTS) => (float[1, 300, 8] y)
<float[8, 16] w1, float[16, 8] w2, float root = {ROOT}, float one = {ONE}, float half = {HALF}>
{
    u = MatMul (x, w1)
    d = Div (u, root)
    e = Erf (d)
    p = Add (e, one)
    m = Mul (u, p)
    g = Mul (m, half)
    y = MatMul (g, w2)
}
"""


@pytest.mark.parametrize(
    ("numbers", "inputs", "found"),
    [
        (("1.4142135", "1.0", "0.5"), "", 1),
        (("0.7", "1.0", "0.5"), "", 0),
        (("1.4142135", "2.0", "0.5"), "", 0),
        (("1.4142135", "1.0", "1.5"), "", 0),
        (("1.4142135", "1.0", "0.5"), ", float half", 0),
    ],
    ids=["gelu", "another root", "another summand", "another factor", "fed"],
)
def test_only_gelu_is_gelu(tmp_path: Path, numbers: tuple[str, str, str], inputs: str, found: int) -> None:
    text = GELU.replace("INPUTS", inputs)
    for name, number in zip(("ROOT", "ONE", "HALF"), numbers, strict=True):
        text = text.replace(name, number)
    path = _model(text, tmp_path)
    assert len(_lifted(path)[1].gelus) == found
    feed = {name: array for name, array in feed_of(path).items() if name == "x"}
    lowered = _quantized(path, feed).model
    for fed in (feed, {**feed, "half": np.array(0.7, np.float32)} if inputs else feed):
        assert verify.sqnr(run_model(path, fed)[0], run_model(lowered, fed)[0]) > 25


GEMM = """
<ir_version: 9, opset_import: ["" : 17]>
gemm (float[X] x) => (float[Y] y) <float[W] w, float[C] c>
{ y = Gemm <ATTRIBUTES> (x, w, c) }
"""


@pytest.mark.parametrize("attributes", ["alpha = 0.5", "beta = 3.0", "alpha = 0.25, beta = -2.0", "alpha = 1.0"])
@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("bias", ["5", "1", "1, 5", "1, 1"])
def test_a_gemm_is_a_linear_layer_whatever_its_factors(
    tmp_path: Path, attributes: str, transposed: tuple[int, int], bias: str
) -> None:
    shapes = {
        "X": "8, 6" if transposed[0] else "6, 8",
        "W": "5, 8" if transposed[1] else "8, 5",
        "Y": "6, 5",
        "C": bias,
    }
    text = GEMM.replace("ATTRIBUTES", f"{attributes}, transA = {transposed[0]}, transB = {transposed[1]}")
    for name, shape in shapes.items():
        text = text.replace(f"[{name}]", f"[{shape}]")
    path = _model(text, tmp_path)
    outcome = _quantized(path, feed_of(path))
    assert len(outcome.plan.linears) == 1 and not outcome.refused
    assert verify.sqnr(run_model(path, feed_of(path))[0], run_model(outcome.model, feed_of(path))[0]) > 30


@pytest.mark.parametrize("bias", ["6, 1", "6, 5"])
def test_a_gemm_that_adds_to_each_row_its_own_stays_float(tmp_path: Path, bias: str) -> None:
    text = GEMM.replace("<ATTRIBUTES>", "").replace("[C]", f"[{bias}]")
    for name, shape in {"X": "6, 8", "W": "8, 5", "Y": "6, 5"}.items():
        text = text.replace(f"[{name}]", f"[{shape}]")
    model = onnx.load(_model(text, tmp_path))
    model.graph.node.append(onnx.helper.make_node("MatMul", [model.graph.output[0].name, "further"], ["end"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(5, dtype=np.float32), "further"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("end", 1, [6, 5]))
    path = tmp_path / "two.onnx"
    onnx.save(model, path)
    outcome = _quantized(path, feed_of(path))
    assert len(outcome.plan.linears) == 1
    assert np.array_equal(run_model(path, feed_of(path))[0], run_model(outcome.model, feed_of(path))[0])


OUTSIDE = """
<ir_version: 9, opset_import: ["" : 17]>
outside (float[2, 8] x, float gain) => (float[2, 8] x, float[N, 5] y, float[8, 5] w, float[N, 5] y)
<float[8, 5] w, float gain = {2.0}>
{ z = MatMul (x, w) y = Mul (z, gain) }
"""


def test_inputs_and_outputs_stay_to_the_letter(tmp_path: Path) -> None:
    path = _model(OUTSIDE, tmp_path)
    before = onnx.load(path).graph
    before.output[1].doc_string = before.output[3].doc_string = "what it gives"
    model = onnx.load(path)
    model.graph.CopyFrom(before)
    onnx.save(model, path)
    feed = {"x": feed_of(path)["x"]}
    made = ir.to_proto(_quantized(path, feed).model)
    assert list(made.graph.input) == list(before.input) and list(made.graph.output) == list(before.output)
    for fed in (feed, {**feed, "gain": np.array(-1, np.float32)}):
        for expected, found in zip(run_model(path, fed), run_model(ir.from_proto(made), fed), strict=True):
            assert verify.sqnr(expected, found) > 30


def test_functions_of_a_model_are_quantized_too(tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    calls (float[2, 8] x) => (float[2, 5] y) <float[8, 5] w> { y = local.layer (x, w) }
    <domain: "local", opset_import: ["" : 17]> layer (x, w) => (y) { z = MatMul (x, w) y = Relu (z) }
    """
    path = _model(text, tmp_path)
    outcome = _quantized(path, feed_of(path))
    assert len(outcome.plan.linears) == 1
    assert verify.sqnr(run_model(path, feed_of(path))[0], run_model(outcome.model, feed_of(path))[0]) > 30


def test_sparse_weights_are_read(tmp_path: Path) -> None:
    path = _model(OUTSIDE.replace(", float[8, 5] w, float[N, 5] y)", ", float[N, 5] y)"), tmp_path)
    feed = {"x": feed_of(path)["x"]}
    expected = run_model(path, feed)
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    array = onnx.numpy_helper.to_array(weight)
    sparse = model.graph.sparse_initializer.add(dims=array.shape)
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(array.ravel(), "w"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.arange(array.size), "places"))
    model.graph.initializer.remove(weight)
    onnx.save(model, path)
    outcome = _quantized(path, feed)
    assert len(outcome.plan.linears) == 1
    assert verify.sqnr(expected[1], run_model(outcome.model, feed)[1]) > 30


@pytest.mark.parametrize("method", ["minmax", "samq"])
def test_weights_that_are_given_out_or_shared_are_not_edited(tmp_path: Path, method: str) -> None:
    path = attention(tmp_path, f"{PLAIN} {END}")
    model = onnx.load(path)
    for name in ("wq", "wk"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [8, 8]))
    onnx.save(model, path)
    outcome = quantized_outcome(load_model(path), [feed_of(path)], method)
    expected, found = run_model(path, feed_of(path)), run_model(outcome.model, feed_of(path))
    assert all(np.array_equal(one, two) for one, two in zip(expected[1:], found[1:], strict=True))
    assert verify.sqnr(expected[0], found[0]) > 15


FLAT = """
<ir_version: 9, opset_import: ["" : 17]>
flat (float[2, 2, 4] x) => (float[2, 5] y, float[4, 4] z) <float[8, 5] w>
{ a = Flatten <axis = 1> (x) b = Flatten <axis = 1> (x) z = Flatten <axis = 2> (x) y = MatMul (b, w) }
"""


def test_a_value_that_is_flattened_several_times(tmp_path: Path) -> None:
    path = _model(FLAT, tmp_path)
    outcome = _quantized(path, feed_of(path))
    assert len(outcome.plan.linears) == 1
    expected, found = run_model(path, feed_of(path)), run_model(outcome.model, feed_of(path))
    np.testing.assert_array_equal(expected[1], found[1])
    assert np.abs(expected[0] - found[0]).max() < 0.05 * np.abs(expected[0]).max()
