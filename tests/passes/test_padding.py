# SPDX-License-Identifier: Apache-2.0
"""Padding moves behind a linear where rows stay whole and nothing else reads them; outputs stay the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx.passes.fold.edit import shift_outputs
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import lift
from tests.conftest import run_model

SHAPES = {
    "padded": (1, 6, 6, 4), "grid": (1, 2, 3, 2, 3, 4), "by_window": (1, 2, 2, 3, 3, 4), "rows": (4, 3, 3, 4),
    "product": (4, 3, 3, 8), "z": (4, 3, 3, 8), "y": (4, 3, 3, 8),
}  # fmt: skip


def _model(
    mode: str = "", perm: str = "[0, 1, 3, 2, 4, 5]", pads: tuple[int, ...] = (0, 0, 0, 0, 0, 1, 1, 0), fill: float = 0
) -> ir.Model:
    """Window partition of 3 x 3 on x [1, 5, 5, 4], then a linear to 8 channels."""
    random = np.random.default_rng(0)
    constants = {
        "pads": np.array(pads), "fill": np.float32(fill),
        "grid_shape": np.array(SHAPES["grid"]), "rows_shape": np.array(SHAPES["rows"]),
        "w": random.normal(size=(4, 8)).astype(np.float32), "b": random.normal(size=8).astype(np.float32),
    }  # fmt: skip
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 17]>
    padding (float[1, 5, 5, 4] x) => (float[4, 3, 3, 8] y) {{
      padded = Pad{mode} (x, pads, fill)
      grid = Reshape (padded, grid_shape)
      by_window = Transpose <perm = {perm}> (grid)
      rows = Reshape (by_window, rows_shape)
      product = MatMul (rows, w)
      z = Add (product, b)
      y = Relu (z)
    }}""")
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    made = ir.from_proto(model)
    for node in made.graph:
        for output in node.outputs:
            assert output.name is not None
            output.shape, output.type = ir.Shape(SHAPES[output.name]), ir.TensorType(ir.DataType.FLOAT)
    return made


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _outputs(model: ir.Model) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(1, 5, 5, 4)).astype(np.float32)
    return run_model(model, {"x": x})[0]


def test_only_real_rows_are_multiplied() -> None:
    model = _model()
    before = _outputs(model)
    (linear,) = lift(model).linears
    assert _kinds(model) == ["MatMul", "Add", "Reshape", "Concat", "Gather", "Relu"]
    assert linear.output.shape == (1, 5, 5, 8)  # 25 rows instead of 36
    np.testing.assert_allclose(_outputs(model), before, rtol=0, atol=1e-6)


def test_lifting_again_finds_the_row_that_pads() -> None:
    model = _model()
    lift(model)
    kinds = _kinds(model)
    (again,) = lift(model).linears
    assert _kinds(model) == kinds
    np.testing.assert_array_equal(constant(again.fill), constant(again.bias)[None])


def test_what_pads_is_edited_with_the_bias() -> None:
    offset = np.arange(8, dtype=np.float32)
    shifted = _model()
    (linear,) = lift(shifted).linears
    shift_outputs(linear, np.arange(8), offset)
    plain = _model()
    bias = plain.graph.initializers["b"]
    bias.const_value = ir.tensor(constant(bias) + offset, name="b")
    np.testing.assert_allclose(_outputs(shifted), _outputs(plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": ' <mode = "edge">'},
        {"fill": 1},  # no zeros
        {"pads": (0, 0, 0, -1, 0, 1, 1, 1)},  # of channels
        {"perm": "[0, 1, 3, 2, 5, 4]"},  # channels become rows
    ],
)
def test_what_is_no_padding_of_rows_stays(options: dict[str, str]) -> None:
    model = _model(**options)  # type: ignore[arg-type]
    before = _kinds(model)
    lift(model)
    assert _kinds(model) == before


def test_a_shape_that_is_computed_keeps_the_padding() -> None:
    model = _model()
    before = _kinds(model)
    model.graph.initializers["rows_shape"].const_value = None
    lift(model)
    assert _kinds(model) == before


def test_a_transpose_without_perm_keeps_the_padding() -> None:
    model = _model()
    before = _kinds(model)
    del next(node for node in model.graph if node.op_type == "Transpose").attributes["perm"]
    lift(model)
    assert _kinds(model) == before


@pytest.mark.parametrize("name", ["padded", "by_window", "rows", "z"])
def test_a_second_reader_keeps_the_padding(name: str) -> None:
    model = _model()
    before = _kinds(model)
    read = next(value for node in model.graph for value in node.outputs if value.name == name)
    model.graph.outputs.append(read)
    lift(model)
    assert _kinds(model) == before
