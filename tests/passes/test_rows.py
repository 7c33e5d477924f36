# SPDX-License-Identifier: Apache-2.0
"""Views move before a linear only where rows stay whole and nothing else reads them; the function stays the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.rows import move_rows_first
from samq_onnx.runtime import open_session

SHAPE = (2, 6, 4)


def _model(view: str, attributes: dict[str, list[int]], constants: list[list[int]], after: list[int]) -> ir.Model:
    """x -> QLinear, square -> one view -> y."""
    random = np.random.default_rng(0)
    held: list[ir.Value] = []

    def constant(name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        held.append(value)
        return value

    width = SHAPE[-1]
    x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=ir.TensorType(ir.DataType.UINT8))
    weight = constant("w", random.integers(-9, 9, (width, width)).astype(np.int8))
    bias, scale = constant("b", np.zeros(width, np.int32)), constant("s", np.float32(0.1))
    linear = ir.node("QLinear", [x, weight, bias, scale], domain=ops.DOMAIN)
    made = linear.outputs[0]
    made.name, made.shape, made.type = "made", ir.Shape(SHAPE), ir.TensorType(ir.DataType.FLOAT)
    numbers = [constant(f"c{i}", np.array(entry, np.int64)) for i, entry in enumerate(constants)]
    node = ir.node(view, [made, *numbers], attributes)
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(after), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[linear, node], initializers=held, opset_imports={"": 17})
    model = ir.Model(graph, ir_version=10)
    ops.add_functions(model)
    return model


VIEWS = {
    "reshape": ("Reshape", {}, [[3, 4, 4]], [3, 4, 4]),
    "transpose": ("Transpose", {"perm": [1, 0, 2]}, [], [6, 2, 4]),
    "slice rows": ("Slice", {}, [[1], [5], [1], [2]], [2, 2, 4]),
    "slice of the last axis, backwards": ("Slice", {}, [[3], [-5], [2], [-1]], [2, 6, 4]),
    "slice of the last axis, counted from behind": ("Slice", {}, [[3], [-5], [-1], [-1]], [2, 6, 4]),
    "transpose of the last axis": ("Transpose", {"perm": [0, 2, 1]}, [], [2, 4, 6]),
}
MOVE = ("reshape", "transpose", "slice rows")


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_whole_rows_move(name: str) -> None:
    model = _model(*VIEWS[name])
    before = ir.to_proto(model).SerializeToString()
    move_rows_first(Builder(model.graph))
    assert [node.op_type for node in model.graph][-1] == ("QLinear" if name in MOVE else VIEWS[name][0])
    assert [value.name for value in model.graph.outputs] == ["y"]
    feed = {"x": np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)}
    after = open_session(ir.to_proto(model).SerializeToString()).run(None, feed)
    np.testing.assert_array_equal(after, open_session(before).run(None, feed))


@pytest.mark.parametrize("reader", ["output", "node"])
def test_a_second_reader_keeps_the_order(reader: str) -> None:
    model = _model(*VIEWS["reshape"])
    linear, view = model.graph
    made = linear.outputs[0]
    if reader == "output":
        model.graph.outputs.append(made)
    else:
        other = ir.node("Relu", [made])
        other.outputs[0].name = "other"
        other.outputs[0].shape, other.outputs[0].type = made.shape, made.type
        model.graph.append(other)
        model.graph.outputs.append(other.outputs[0])
    move_rows_first(Builder(model.graph))
    assert view.inputs[0] is made and next(iter(model.graph)) is linear


def test_a_linear_that_changes_its_width_stays() -> None:
    model = _model(*VIEWS["reshape"])
    weight = model.graph.initializers["w"]
    weight.shape = ir.Shape((4, 5))
    move_rows_first(Builder(model.graph))
    assert next(iter(model.graph)).op_type == "QLinear"
