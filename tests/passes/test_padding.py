# SPDX-License-Identifier: Apache-2.0
"""Padding moves behind an integer linear where rows stay whole and nothing else reads them; outputs stay the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.padding import pad_later
from samq_onnx.runtime import open_session

WINDOWS = """
      padded = Pad{mode} (x, pads, fill)
      grid = Reshape (padded, grid_shape)
      by_window = Transpose <perm = {perm}> (grid)
      rows = Reshape (by_window, rows_shape)
"""
SHAPES = {
    "padded": (1, 6, 6, 4), "grid": (1, 2, 3, 2, 3, 4), "by_window": (1, 2, 2, 3, 3, 4), "rows": (4, 3, 3, 4),
    "y": (4, 3, 3, 8),
}  # fmt: skip


def _model(
    mode: str = "", perm: str = "[0, 1, 3, 2, 4, 5]", pads: tuple[int, ...] = (0, 0, 0, 0, 0, 1, 1, 0)
) -> ir.Model:
    """Window partition of 3 x 3 on x [1, 5, 5, 4], then a linear to 8 channels."""
    random = np.random.default_rng(0)
    constants = {
        "pads": np.array(pads), "fill": np.uint8(7),
        "grid_shape": np.array(SHAPES["grid"]), "rows_shape": np.array(SHAPES["rows"]),
        "zero": np.uint8(7), "w": random.integers(-9, 9, (4, 8)).astype(np.int8),
        "bias": random.integers(-500, 500, 8).astype(np.int32), "factor": np.float32(0.1), "y_zero": np.float32(120),
    }  # fmt: skip
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 17, "samq" : 1]>
    padding (uint8[1, 5, 5, 4] x) => (uint8[4, 3, 3, 8] y) {{
      {WINDOWS.format(mode=mode, perm=perm)}
      y = samq.QLinearQuantize <bits = 8> (rows, w, bias, factor, y_zero)
    }}""")
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    made = ir.from_proto(model)
    for node in made.graph:
        for output in node.outputs:
            assert output.name is not None
            output.shape, output.type = ir.Shape(SHAPES[output.name]), ir.TensorType(ir.DataType.UINT8)
    ops.add_functions(made)
    return made


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _codes(model: ir.Model) -> np.ndarray:
    x = np.random.default_rng(1).integers(0, 256, (1, 5, 5, 4), np.uint8)
    return open_session(ir.to_proto(model).SerializeToString()).run(None, {"x": x})[0]


def test_padding_is_computed_once() -> None:
    model = _model()
    before = _codes(model)
    pad_later(Builder(model.graph))
    assert _kinds(model) == ["Reshape", "Pad", "QLinearQuantize", "Gather"]
    linear = next(node for node in model.graph if node.op_type == "QLinearQuantize")
    assert linear.outputs[0].shape == (26, 8)  # 25 rows and one of padding, instead of 36
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_array_equal(_codes(model), before)
    pad_later(Builder(model.graph))
    assert len(_kinds(model)) == 4  # nothing is left to do


@pytest.mark.parametrize(
    "options",
    [
        {"mode": ' <mode = "edge">'},
        {"pads": (0, 0, 0, -1, 0, 1, 1, 1)},  # of channels
        {"perm": "[0, 1, 3, 2, 5, 4]"},  # channels become rows
    ],
)
def test_what_is_no_padding_of_rows_stays(options: dict[str, str]) -> None:
    model = _model(**options)  # type: ignore[arg-type]
    before = _kinds(model)
    pad_later(Builder(model.graph))
    assert _kinds(model) == before


def test_a_shape_that_is_computed_keeps_the_padding() -> None:
    model = _model()
    before = _kinds(model)
    model.graph.initializers["rows_shape"].const_value = None
    pad_later(Builder(model.graph))
    assert _kinds(model) == before


def test_a_transpose_without_perm_keeps_the_padding() -> None:
    model = _model()
    before = _kinds(model)
    del next(node for node in model.graph if node.op_type == "Transpose").attributes["perm"]
    pad_later(Builder(model.graph))
    assert _kinds(model) == before


@pytest.mark.parametrize("name", ["padded", "by_window", "rows"])
def test_a_second_reader_keeps_the_padding(name: str) -> None:
    model = _model()
    before = _kinds(model)
    read = next(value for node in model.graph for value in node.outputs if value.name == name)
    model.graph.outputs.append(read)
    pad_later(Builder(model.graph))
    assert _kinds(model) == before
