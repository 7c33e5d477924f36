# SPDX-License-Identifier: Apache-2.0
"""What is not finite in a float input is not finite in any float output behind codes; finite runs keep their bits."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from samq_onnx import ops
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.carry_nan import carry_nan
from samq_onnx.runtime import open_session

RANDOM = np.random.default_rng(0)
CONSTANTS: dict[str, Any] = {
    "s": np.float32(0.02), "z": np.uint8(130), "ws": np.float32(0.01), "wz": np.int8(0),
    "w": RANDOM.integers(-90, 90, (8, 8)).astype(np.int8), "bias": RANDOM.integers(-500, 500, 8).astype(np.int32),
    "image": np.array([1, 2, 3, 8]), "row": np.ones(8, np.float32),
    "larger": np.array([1, 1, 4, 4], np.float32), "from": np.array([0]), "to": np.array([5]), "axis": np.array([2]),
}  # fmt: skip
GRAPHS = {
    # what the sum stands behind, how often it is added, graph
    "linear": ("QLinear", 1, "float[1,6,8] x", "float[1,6,8] y", """
        codes = QuantizeLinear (x, s, z)
        y = samq.QLinear (codes, w, bias, s)"""),
    "product": ("MatMul", 1, "float[6,8] x", "float[6,8] y", """
        codes = QuantizeLinear (x, s, z)
        near = DequantizeLinear (codes, s, z)
        weight = DequantizeLinear (w, ws, wz)
        y = MatMul (near, weight)"""),
    "product and bias": ("Add", 1, "float[6,8] x", "float[6,8] y", """
        codes = QuantizeLinear (x, s, z)
        near = DequantizeLinear (codes, s, z)
        weight = DequantizeLinear (w, ws, wz)
        product = MatMul (near, weight)
        y = Add (product, row)"""),
    "masks": ("QLinear", 1, "float[1,6,8] x, float[2] unread", "float[1,2,5,32] masks, float[1,2,3,8] low", """
        codes = QuantizeLinear (x, s, z)
        flat = samq.QLinear (codes, w, bias, s)
        low = Reshape (flat, image)
        large = Resize <mode = "linear"> (low, , larger)
        masks = Slice (large, from, to, axis)"""),
    "two inputs, two outputs": ("QLinear", 2, "float[1,6,8] x, float[1,6,8] r", "float[1,6,8] y, float[1,6,8] t", """
        codes = QuantizeLinear (x, s, z)
        others = QuantizeLinear (r, s, z)
        y = samq.QLinear (codes, w, bias, s)
        q = samq.QLinear (others, w, bias, s)
        t = samq.QLinearResidual (codes, w, bias, s, q)"""),
    "read by more than the output": ("QLinear", 2, "float[1,6,8] x", "float[1,6,8] y, float[1,6,8] t", """
        codes = QuantizeLinear (x, s, z)
        y = samq.QLinear (codes, w, bias, s)
        again = QuantizeLinear (y, s, z)
        t = samq.QLinear (again, w, bias, s)"""),
}  # fmt: skip


def _model(name: str) -> ir.Model:
    _, _, inputs, outputs, body = GRAPHS[name]
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 17, "samq" : 1]> carrying ({inputs}) => ({outputs}) {{ {body} }}'
    )
    for constant, array in CONSTANTS.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), constant))
    model = onnx.shape_inference.infer_shapes(model)
    made = ir.from_proto(model)
    for node in made.graph:
        for value in node.outputs:
            if value.dtype is None:
                value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 6, 8])
    ops.add_functions(made)
    return made


def _feed(model: ir.Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {value.name: random.standard_normal(value.shape.numpy(), dtype=np.float32) for value in model.graph.inputs}  # type: ignore[misc, union-attr]


def _run(model: ir.Model, feed: dict[str, np.ndarray], native: bool) -> list[np.ndarray]:
    return open_session(ir.to_proto(model).SerializeToString(), native=native, threads=1).run(None, feed)


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_outputs(name: str, native: bool) -> None:
    behind, count, *_ = GRAPHS[name]
    model = _model(name)
    feed = _feed(model)
    names = [value.name for value in model.graph.outputs]
    shapes = [value.shape for value in model.graph.outputs]
    added = _kinds(model).count("Add")
    before = _run(model, feed, native)
    carry_nan(Builder(model.graph))
    assert [value.name for value in model.graph.outputs] == names
    assert [value.shape for value in model.graph.outputs] == shapes
    assert _kinds(model).count("Add") == added + count
    sums = [node for node in model.graph if node.op_type == "Add" and node.outputs[0].name not in ("product",)][-count:]
    assert {node.inputs[0].producer().op_type for node in sums} <= {behind, "QLinearResidual"}  # type: ignore[union-attr]
    for one, two in zip(before, _run(model, feed, native), strict=True):
        np.testing.assert_array_equal(one, two)
    for value in feed:
        if value == "unread":
            continue
        for bad in (np.nan, np.inf, -np.inf):
            changed = feed[value].copy()
            changed.flat[5] = bad
            for output in _run(model, feed | {value: changed}, native):
                assert np.isnan(output).all()


@pytest.mark.parametrize("name", GRAPHS)
def test_once_is_enough(name: str) -> None:
    model = _model(name)
    carry_nan(Builder(model.graph))
    kinds = _kinds(model)
    carry_nan(Builder(model.graph))
    assert _kinds(model) == kinds


@pytest.mark.parametrize("name", GRAPHS)
def test_integer_kernels_stay(name: str, tmp_path: Path) -> None:
    def kernels(model: ir.Model) -> collections.Counter[str]:
        options = ort.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
        open_session(ir.to_proto(model).SerializeToString(), options=options)
        return collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    model = _model(name)
    before = kernels(model)
    carry_nan(Builder(model.graph))
    further = kernels(model) - before
    assert not before - kernels(model)
    assert set(further) <= {"Mul", "ReduceSum", "Sum", "Add"}


@pytest.mark.parametrize("body", [
    "y = samq.Attention <scale = 1.0> (x, x, x)", "y = Relu (x)", "codes = QuantizeLinear (x, s, z) y = Relu (x)",
])  # fmt: skip
def test_models_without_codes_before_their_outputs_stay(body: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 17, "samq" : 1]> plain (float[1,6,8] x) => (float[1,6,8] y) {{ {body} }}'
    )
    for constant in ("s", "z"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(CONSTANTS[constant]), constant))
    made = ir.from_proto(model)
    kinds = _kinds(made)
    carry_nan(Builder(made.graph))
    assert _kinds(made) == kinds
