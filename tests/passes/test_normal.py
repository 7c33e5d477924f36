# SPDX-License-Identifier: Apache-2.0
"""Models as people have them, half of precision and with weights among the inputs, become what lifting knows."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from samq_onnx.passes.aside import outputs_aside
from samq_onnx.passes.lift import lift, simplify
from samq_onnx.passes.normal import normalise
from samq_onnx.runtime import open_session
from tests.conftest import relative_error
from tests.fuzz import tiny

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _normal(model: onnx.ModelProto) -> ir.Model:
    found = ir.from_proto(model)
    with outputs_aside(found):
        normalise(found, 8)
    return found


def _declared(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.output]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("float_io", [True, False])
def test_half_precision_is_computed_in_single(part: str, float_io: bool) -> None:
    half = convert_float_to_float16(getattr(tiny, part)(), keep_io_types=float_io, disable_shape_infer=True)
    normal = _normal(half)
    assert _declared(ir.to_proto(normal)) == _declared(half)
    inside = {
        value.dtype
        for node in normal.graph
        for value in node.inputs
        if value is not None and not value.is_graph_input()
    }
    assert not inside & set(HALVES)
    plain = ir.from_proto(getattr(tiny, part)())
    simplify(plain)
    with outputs_aside(normal):
        found, expected = lift(normal), lift(plain)
    assert [site.kind for site in found.attentions] == [site.kind for site in expected.attentions]
    assert len(found.linears) == len(expected.linears) and len(found.norms) == len(expected.norms)


def _run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return open_session(model.SerializeToString()).run(None, feed)


def test_half_precision_says_the_same() -> None:
    half = convert_float_to_float16(tiny.encoder(), keep_io_types=False, disable_shape_infer=True)
    size = half.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    feed = {"image": np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float16)}
    before, after = _run(half, feed), _run(ir.to_proto(_normal(half)), feed)
    assert after[0].dtype == np.float16
    assert relative_error([before[0].astype(np.float32)], [after[0].astype(np.float32)]) < 5e-3


def test_bfloat16_in_weights_attributes_and_subgraphs() -> None:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2, 2], np.array([1, 2, 3, 4], np.float32))
    half = helper.make_tensor("h", TensorProto.BFLOAT16, [1], np.array([0.5], np.float32))
    branch = [
        helper.make_graph([helper.make_node(kind, ["p", "c"], [f"t_{kind}"])], kind, [], [
            helper.make_tensor_value_info(f"t_{kind}", TensorProto.BFLOAT16, [2, 2])
        ])
        for kind in ("Add", "Mul")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["n", "w"], ["p"]),
        helper.make_node("Constant", [], ["c"], value=half),
        helper.make_node("If", ["yes"], ["q"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [2, 2]), helper.make_tensor_value_info("yes", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, [2, 2])], [weight])
    normal = ir.to_proto(_normal(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)))
    x = np.array([[1, 0], [0, 1]], np.float32)
    for yes, expected in ((True, [[1.5, 2.5], [3.5, 4.5]]), (False, [[0.5, 1], [1.5, 2]])):
        np.testing.assert_array_equal(_run(normal, {"x": x, "yes": np.array(yes)})[0], expected)


def _listed(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if not names or tensor.name in names:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def test_weights_listed_among_the_inputs_are_weights() -> None:
    plain = ir.from_proto(tiny.encoder())
    simplify(plain)
    model = ir.from_proto(_listed(tiny.encoder()))
    with outputs_aside(model):
        report = normalise(model, 8)
    assert [value.name for value in model.graph.inputs] == ["image"]
    assert list(report.facts.values()) == [len(tiny.encoder().graph.initializer)]
    assert len(lift(model).linears) == len(lift(plain).linears)


def test_a_single_default_may_still_be_fed() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x, float[1] s) => (float[2, 4] y) <float[1] s = {2}> '
        "{ p = MatMul (x, w)\n y = Mul (p, s) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 4), np.float32), "w"))
    normal = _normal(model)
    assert [value.name for value in normal.graph.inputs] == ["x", "s"]
    fed = _run(ir.to_proto(normal), {"x": np.ones((2, 3), np.float32), "s": np.array([5], np.float32)})
    assert (fed[0] == 15).all()


def test_the_default_domain_has_another_name() -> None:
    model = tiny.encoder()
    for opset in model.opset_import:
        opset.domain = opset.domain or "ai.onnx"
    assert len(lift(_normal(model)).attentions) == 1
