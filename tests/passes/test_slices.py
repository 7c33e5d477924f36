# SPDX-License-Identifier: Apache-2.0
"""Slices along different axes become one that gives the same; others stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.rewrites.slices import merge_slices
from tests.conftest import run_model

CONSTANTS = {
    "zero": [0], "one": [1], "two": [2], "three": [3], "minus_one": [-1], "minus_two": [-2], "zeros": [0, 0],
    "threes": [3, 3], "last_axes": [2, 3], "short": np.array([1], np.int32), "short_two": np.array([2], np.int32),
    "short_three": np.array([3], np.int32),
}  # fmt: skip
MERGED = {
    "two axes": "a = Slice (x, one, size, two)\n y = Slice (a, zero, three, three)",
    "with and without steps": "a = Slice (x, zero, three, two, two)\n y = Slice (a, one, size, three)",
    "backwards": "a = Slice (x, minus_one, zero, two, minus_one)\n y = Slice (a, zero, two, one, one)",
    "axes from behind": "a = Slice (x, zero, size, minus_one)\n y = Slice (a, zero, two, minus_two)",
    "three": "a = Slice (x, one, size, two)\n b = Slice (a, zero, two, three)\n y = Slice (b, one, three, one)",
    "of 32 bits": "narrow = Cast <to = 6> (size)\n a = Slice (x, short, narrow, short_two)\n"
    " y = Slice (a, short, short_two, short_three)",
    "two at once": "a = Slice (x, zeros, threes, last_axes)\n y = Slice (a, zero, two, one)",
}
REFUSED = {
    "one axis twice": "a = Slice (x, one, size, two)\n y = Slice (a, zero, one, two)",
    "one axis by two names": "a = Slice (x, one, size, three)\n y = Slice (a, zero, one, minus_one)",
    "no axes": "a = Slice (x, one, size)\n y = Slice (a, zero, one, two)",
    "computed axes": "a = Slice (x, zero, one, size)\n y = Slice (a, zero, one, one)",
    "a second reader": "a = Slice (x, one, size, two)\n b = Relu (a)\n c = Slice (b, zero, two, three)\n"
    " d = Slice (a, zero, two, three)\n y = Add (c, d)",
    "two types": "a = Slice (x, short, short, short)\n y = Slice (a, zero, one, two)",
}


def _model(body: str) -> ir.Model:
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 17]>
    slicing (float[2, 3, 4, 5] x, int64[1] size) => (float[A, B, C, D] y) {{ {body} }}""")
    for name, array in CONSTANTS.items():
        if name in body:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _run(model: ir.Model, size: int) -> list[np.ndarray]:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5), dtype=np.float32)
    return run_model(model, {"x": x, "size": np.array([size])})


@pytest.mark.parametrize("name", MERGED)
def test_one_gives_the_same(name: str) -> None:
    model = _model(MERGED[name])
    before = [_run(model, size) for size in (2, 3, 9)]
    merge_slices(Builder(model.graph))
    assert [node.op_type for node in model.graph].count("Slice") == 1
    assert [value.name for value in model.graph.outputs] == ["y"]
    for size, expected in zip((2, 3, 9), before, strict=True):
        np.testing.assert_array_equal(_run(model, size)[0], expected[0])


@pytest.mark.parametrize("name", REFUSED)
def test_others_stay(name: str) -> None:
    model = _model(REFUSED[name])
    nodes = [node.op_type for node in model.graph]
    merge_slices(Builder(model.graph))
    assert [node.op_type for node in model.graph] == nodes


def test_what_is_fed_is_read() -> None:
    model = _model("a = Slice (x, one, three, two)\n y = Slice (a, zero, two, three)")
    model.graph.inputs.append(model.graph.initializers["one"])
    merge_slices(Builder(model.graph))
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5), dtype=np.float32)
    (y,) = run_model(model, {"x": x, "size": np.array([1]), "one": np.array([0])})
    np.testing.assert_array_equal(y, x[:, :, :3, :2])


def test_axes_that_are_fed_stay() -> None:
    model = _model(MERGED["two axes"])
    model.graph.inputs.append(model.graph.initializers["two"])
    merge_slices(Builder(model.graph))
    assert [node.op_type for node in model.graph].count("Slice") == 2


def test_an_output_between_stays() -> None:
    model = _model(MERGED["two axes"])
    model.graph.outputs.append(model.graph[0].outputs[0])
    merge_slices(Builder(model.graph))
    assert [node.op_type for node in model.graph].count("Slice") == 2
