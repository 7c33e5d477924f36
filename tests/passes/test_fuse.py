# SPDX-License-Identifier: Apache-2.0
"""What follows an integer node is fused where nothing else reads between; outputs and, undone, names stay the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.fuse import float_outputs, fuse, unfuse
from samq_onnx.runtime import open_session

RANDOM = np.random.default_rng(0)
CODES, ZERO = ir.DataType.UINT8, np.uint8(130)
CONSTANTS = {
    "scale": np.float32(0.02), "zero": ZERO, "y_scale": np.float32(0.011), "y_zero": np.uint8(120),
    "channel_scale": np.full(8, 0.011, np.float32), "channel_zero": np.full(8, 120, np.uint8),
    "w": RANDOM.integers(-9, 9, (8, 8)).astype(np.int8), "bias": RANDOM.integers(-500, 500, 8).astype(np.int32),
    "row": RANDOM.standard_normal((1, 8), dtype=np.float32), "gain": RANDOM.standard_normal(8, dtype=np.float32),
}  # fmt: skip
SHAPES = {"x": (1, 6, 8), "r": (1, 6, 8), "middle": (1, 6, 8), "y": (1, 6, 8), "other": (1, 6, 8)}
ATTENTION = "samq.LogRowAttention <scale = 0.3, tau = 4, bits = 6> (x, scale, zero, x, scale, zero, x, scale, zero)"
LINEAR = "samq.QLinear (x, w, bias, scale)"
EXACT = {
    "residual": (LINEAR, "Add (middle, r)", "float", "QLinearResidual"),
    "residual first": (LINEAR, "Add (r, middle)", "float", "QLinearResidual"),
    "quantized": (ATTENTION, "QuantizeLinear (middle, y_scale, y_zero)", "uint8", "LogRowAttentionQuantize"),
}
REFUSED = {
    "broadcast": (LINEAR, "Add (middle, row)", "float"),
    "twice the same": (LINEAR, "Add (middle, middle)", "float"),
    "scale per channel": (ATTENTION, "QuantizeLinear <axis = 2> (middle, channel_scale, channel_zero)", "uint8"),
    "linear quantized": (LINEAR, "QuantizeLinear (middle, y_scale, y_zero)", "uint8"),
}


def _model(first: str, second: str, dtype: str, extra: str = "") -> ir.Model:
    outputs = f"{dtype}[1, 6, 8] y" + (", float[1, 6, 8] other" if extra else "")
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 17, "samq" : 1]>
    fusing (uint8[1, 6, 8] x, float[1, 6, 8] r) => ({outputs}) {{
      middle = {first}
      y = {second}
      {extra}
    }}""")
    for name, array in CONSTANTS.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    made = ir.from_proto(model)
    for value in (value for node in made.graph for value in node.outputs):
        assert value.name is not None
        value.shape = ir.Shape(SHAPES[value.name])
        value.type = ir.TensorType(CODES if value.name == "y" and dtype == "uint8" else ir.DataType.FLOAT)
    ops.add_functions(made)
    return made


def _run(model: ir.Model, native: bool = True) -> list[np.ndarray]:
    ops.add_functions(model)
    random = np.random.default_rng(1)
    shape = model.graph.inputs[0].shape
    assert shape is not None
    size = shape.numpy()
    feed = {"x": random.integers(0, 256, size, np.uint8), "r": random.standard_normal(size, dtype=np.float32)}
    session = open_session(ir.to_proto(model).SerializeToString(), native=native)
    return session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("name", EXACT)
def test_one_node_gives_the_same(name: str) -> None:
    *parts, fused = EXACT[name]
    model = _model(*parts)
    kinds, before = _kinds(model), _run(model)
    assert not float_outputs(model.graph)
    fuse(Builder(model.graph))
    assert _kinds(model) == [fused]
    assert float_outputs(model.graph) == {"middle"}
    for native in (True, False):
        np.testing.assert_array_equal(_run(model, native), before)
    unfuse(model)
    assert _kinds(model) == kinds
    assert [value.name for node in model.graph for value in node.outputs] == ["middle", "y"]
    np.testing.assert_array_equal(_run(model), before)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_same_stays(name: str) -> None:
    model = _model(*REFUSED[name])
    kinds = _kinds(model)
    fuse(Builder(model.graph))
    assert _kinds(model) == kinds


def test_a_norm_of_the_sum_is_the_same_in_the_function_body() -> None:
    """ONNX Runtime would make one node of an Add and the norm, which rounds otherwise, as it does before."""
    model = _model(LINEAR, "Add (middle, r)", "float", extra="other = LayerNormalization (y, gain)")
    model.graph.outputs.pop(0)
    (before,) = _run(model)
    fuse(Builder(model.graph))
    assert _kinds(model) == ["QLinearResidual", "LayerNormalization"]
    (native,), (body,) = _run(model), _run(model, native=False)
    np.testing.assert_array_equal(native, body)
    np.testing.assert_allclose(native, before, atol=1e-5)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("reader", ["node", "output"])
def test_a_second_reader_keeps_the_float(name: str, reader: str) -> None:
    model = _model(*EXACT[name][:3], extra="other = Relu (middle)" if reader == "node" else "")
    if reader == "output":
        model.graph.outputs.append(model.graph[0].outputs[0])
    kinds = _kinds(model)
    fuse(Builder(model.graph))
    assert _kinds(model) == kinds
