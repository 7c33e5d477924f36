# SPDX-License-Identifier: Apache-2.0
"""Models of old opsets compute the same after they are raised, whatever form their operators had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from samq_onnx.errors import UserError
from samq_onnx.passes.lower import raise_opset

HEADER = '<ir_version: {ir_version}, opset_import: ["" : {opset}]>\nagraph (float[1, 3, 8, 8] x) => (float y)\n'

BODIES: list[tuple[int, str]] = [
    (7, "{ a = Constant <value = float[4] {1, 1, 2, 2}> ()\n y = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (x) }"),
    (7, "{ y = Dropout <ratio = 0.3> (x) }"),
    (8, "{ y = Slice <starts = [1, -5], ends = [3, 9000], axes = [1, 3]> (x) }"),
    (8, "{ y = Slice <starts = [0, 1], ends = [1, 3]> (x) }"),
    (9, "{ y, indices = TopK <k = 3, axis = 2> (x) }"),
    (9, "{ s = Constant <value = float[4] {1, 1, 2, 3}> ()\n y = Upsample <mode = \"linear\"> (x, s) }"),
    (9, "{ s = Constant <value = float[4] {1, 1, 2, 3}> ()\n y = Upsample <mode = \"nearest\"> (x, s) }"),
    (10, "{ s = Constant <value = float[4] {1, 1, 2.5, 3}> ()\n y = Resize <mode = \"nearest\"> (x, s) }"),
    (10, "{ s = Constant <value = float[4] {1, 1, 0.4, 1}> ()\n y = Resize <mode = \"nearest\"> (x, s) }"),
    (10, "{ s = Constant <value = float[4] {1, 1, 0.5, 0.3}> ()\n y = Resize <mode = \"linear\"> (x, s) }"),
    (10, "{ y = Clip <min = -0.3, max = 0.5> (x) }"),
    (10, "{ y = Clip <max = 0.5> (x) }"),
    (10, "{ y = Pad <pads = [0, 0, 1, 2, 0, 0, 3, 0], value = 1.5> (x) }"),
    (10, "{ y = Pad <pads = [0, 0, 1, 2, 0, 0, 3, 0], mode = \"reflect\"> (x) }"),
    (10, "{ y, m = Dropout <ratio = 0.3> (x) }"),
    (
        10,
        "{ i = Constant <value = int64[1, 1, 1, 2] {1, 0}> ()\n u = Constant <value = float[1, 1, 1, 2] {9, 8}> ()\n"
        " y = Scatter <axis = 3> (x, i, u) }",
    ),
    (
        10,
        "{ r = Constant <value = float[1, 4] {1, 1, 6, 6}> ()\n b = Constant <value = int64[1] {0}> ()\n"
        " y = RoiAlign <output_height = 3, output_width = 3> (x, r, b) }",
    ),
    (
        12,
        "{ s = Constant <value = float[3] {1, 2, 3}> ()\n y = BatchNormalization (x, s, s, s, s) }",
    ),
    (12, "{ y = ReduceSum <axes = [1, -1], keepdims = 0> (x) }"),
    (12, "{ y = ReduceSum (x) }"),
    *((12, f"{{ y = Reduce{kind} <axes = [1, -1]> (x) }}") for kind in ("Max", "Mean", "L2", "SumSquare")),
    (12, "{ a = Unsqueeze <axes = [0, 5]> (x)\n y = Squeeze <axes = [1, -1]> (a) }"),
    (12, "{ a = ReduceMax <axes = [1]> (x)\n y = Squeeze (a) }"),
    (12, "{ a, y = Split <axis = 1, split = [1, 2]> (x) }"),
    (12, "{ a, y = Split <axis = 2> (x) }"),
    (11, "{ y = Softmax <axis = 3> (x) }"),
    (11, "{ y = Softmax <axis = -1> (x) }"),
    (11, "{ y = Softmax (x) }"),
    (11, "{ a = Softmax <axis = 2> (x)\n y = Add (a, x) }"),
    (11, "{ y = LogSoftmax <axis = -2> (x) }"),
    (11, "{ y = Hardmax (x) }"),
    (11, "{ d = Shape (x)\n r = Reshape (x, d)\n y = Softmax <axis = 3> (r) }"),
    (
        11,
        "{ c = Constant <value = bool {1}> ()\n"
        " y = If (c) <then_branch = g () => (t) { t = ReduceSum <axes = [1]> (x) },"
        " else_branch = h () => (t) { t = ReduceSum <axes = [2]> (x) }> }",
    ),
    (19, "{ y = ReduceSum (x) }"),
]  # fmt: skip


def _model(opset: int, body: str) -> onnx.ModelProto:
    """A model whose output is of the rank that it has."""
    model = onnx.parser.parse_model(HEADER.format(opset=opset, ir_version=3 if opset < 9 else 6) + body)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def _run(model: onnx.ModelProto, x: np.ndarray) -> Sequence[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})


@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize(("opset", "body"), BODIES)
def test_operators_compute_the_same(opset: int, body: str, weight_bits: int) -> None:
    old = _model(opset, body)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)
    model = ir.from_proto(old)
    raise_opset(model, weight_bits)
    new = ir.to_proto(model)
    assert [value.name for value in new.graph.output] == ["y"]
    for expected, actual in zip(_run(old, x), _run(new, x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "body", "reason"),
    [
        (10, '{ s = Identity (scales)\n y = Resize <mode = "nearest"> (x, s) }', "a scale that is no constant"),
        (10, '{ y = Resize <mode = "nearest"> (x, mixed) }', "grows one side and shrinks another"),
        (6, "{ y = Add <axis = 1, broadcast = 1> (x, three) }", "Add has no axis, broadcast"),
        (9, "{ y = BatchNormalization (x, three, three, three, three), z = Foo (x) }", "Foo does not exist"),
    ],
)
def test_what_has_no_newer_form_is_named(opset: int, body: str, reason: str) -> None:
    model = _model(opset, body.replace(", z =", "\n z ="))
    weights = {"scales": [1, 1, 2, 2], "mixed": [1, 1, 2, 0.5], "three": [1, 2, 3]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.float32(w), name) for name, w in weights.items())
    with pytest.raises(UserError, match=rf"opset {opset} cannot be raised to 13 \(.*{reason}"):
        raise_opset(ir.from_proto(model), 8)


def test_initializers_that_had_to_be_inputs_are_none_any_more() -> None:
    model = _model(8, "{ y = Mul (x, two) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([2]), "two"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("two", onnx.TensorProto.FLOAT, [1]))
    raised = ir.from_proto(model)
    raise_opset(raised, 8)
    assert [value.name for value in raised.graph.inputs] == ["x"]
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(_run(ir.to_proto(raised), x)[0], 2 * x)


def test_the_default_domain_has_another_name() -> None:
    model = _model(11, "{ y = Softmax <axis = 3> (x) }")
    model.opset_import[0].domain = "ai.onnx"
    raised = ir.from_proto(model)
    raise_opset(raised, 8)
    assert dict(raised.opset_imports) == {"": 13}
    assert [node.op_type for node in raised.graph] == ["Softmax"]


def test_softmax_over_the_last_axis_stays_one_node() -> None:
    """Attention is found by it, though no shape is known."""
    for body in ("y = Softmax <axis = 3> (x)", "d = Shape (x)\n r = Reshape (x, d)\n y = Softmax <axis = 3> (r)"):
        model = ir.from_proto(_model(11, f"{{ {body} }}"))
        raise_opset(model, 8)
        assert "Flatten" not in [node.op_type for node in model.graph]


def test_weights_are_not_read(tmp_path: Path) -> None:
    """Models above 2 GB hold them in files of their own, which stay there."""
    model = _model(12, "{ a = MatMul (x, w)\n y = ReduceSum <axes = [1]> (a) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((8, 8), np.float32), "w"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [8, 1 << 27]  # 4 GB that nobody wrote
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="missing.data")
    onnx.save(model, tmp_path / "model.onnx")
    raised = ir.load(tmp_path / "model.onnx")
    raise_opset(raised, 4)
    assert raised.opset_imports[""] == 21
    assert isinstance(raised.graph.initializers["w"].const_value, ir.ExternalTensor)
