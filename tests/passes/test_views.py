# SPDX-License-Identifier: Apache-2.0
"""A chain of views on codes becomes one Gather where that copies less; outputs and their names stay the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.views import gather_views
from samq_onnx.runtime import open_session

HEADS_APART = """
      apart = Reshape (tokens, apart_shape)
      heads = Transpose <perm = [2, 0, 3, 1, 4]> (apart)
      stacked = Reshape (heads, stacked_shape)
      q0, k0, v0 = Split <axis = 0> (stacked, thirds)
      q = Squeeze (q0, front)
      k = Squeeze (k0, front)
      v = Squeeze (v0, front)
"""
WINDOW_ROWS = np.array([[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]])  # of 3 x 3 tokens, padded
INTO_HEADS = {
    "windowed": (f"tokens = Gather (x, rows) {HEADS_APART}", {
        "rows": WINDOW_ROWS, "apart_shape": [4, 4, 3, 2, 32], "stacked_shape": [3, 8, 4, 32],
    }),
    "global": (f"tokens = Identity (x) {HEADS_APART}", {
        "apart_shape": [1, 10, 3, 2, 32], "stacked_shape": [3, 2, 10, 32]}),
}  # fmt: skip
OUT_OF_WINDOWS = """
      apart = Reshape (x, apart_shape)
      merged = Transpose <perm = [0, 2, 3, 1, 4]> (apart)
      windows = Reshape (merged, windows_shape)
      grid = Transpose <perm = [0, 1, 3, 2, 4, 5]> (windows)
      padded = Reshape (grid, padded_shape)
      tall = Slice (padded, zero, three, one, one)
      y = Slice (tall, zero, three, two)
"""
WINDOWS = {
    "apart_shape": [4, 2, 2, 2, 32], "windows_shape": [1, 2, 2, 2, 2, 64], "padded_shape": [1, 4, 4, 64],
    "zero": [0], "one": [1], "two": [2], "three": [3],
}  # fmt: skip


def _model(body: str, x: tuple[int | str, ...], constants: dict, outputs: str, dtype: str = "uint8") -> ir.Model:
    """A model of ``x`` whose values have the shapes that ONNX infers."""
    given = ", ".join(f"{dtype} {name}" for name in outputs.split())
    model = onnx.parser.parse_model(f"""
    <ir_version: 10, opset_import: ["" : 17, "samq" : 1]>
    views ({dtype}[{", ".join(map(str, x))}] x) => ({given}) {{ {body} }}""")
    for name, array in {"thirds": [1, 1, 1], "front": [0], **constants}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _heads(name: str, outputs: str = "q k v") -> ir.Model:
    body, constants = INTO_HEADS[name]
    return _model(body, (10, 192), constants, outputs)


def _run(model: ir.Model) -> dict[str, np.ndarray]:
    session = open_session(ir.to_proto(model).SerializeToString())
    x = session.get_inputs()[0]
    codes = np.random.default_rng(0).integers(0, 256, x.shape, np.uint8)
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, {"x": codes}), strict=True))


def _kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def _gathered(model: ir.Model, expected: dict[str, int]) -> None:
    """The pass leaves these nodes, gives the same and finds nothing to do after itself."""
    before = _run(model)
    for _ in range(2):
        gather_views(Builder(model.graph))
        assert _kinds(model) == Counter(expected)
    after = _run(model)
    assert list(after) == list(before)
    for name, codes in before.items():
        np.testing.assert_array_equal(after[name], codes)
    values = [value for node in model.graph for value in node.outputs]
    assert all(value.shape is not None and value.dtype == ir.DataType.UINT8 for value in values)
    assert len({value.name for value in values}) == len(values)
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True, data_prop=True)
    assert ir.from_proto(inferred).graph.outputs[0].shape == model.graph.outputs[0].shape


def _stays(model: ir.Model) -> None:
    before = [node.name for node in model.graph]
    gather_views(Builder(model.graph))
    assert [node.name for node in model.graph] == before


@pytest.mark.parametrize("name", INTO_HEADS)
def test_queries_keys_and_values_are_a_gather_each(name: str) -> None:
    _gathered(_heads(name), {"Reshape": 4, "Gather": 3})


def test_windows_merge_in_a_gather() -> None:
    model = _model(OUT_OF_WINDOWS, (8, 4, 32), WINDOWS, "y")
    _gathered(model, {"Reshape": 2, "Gather": 1})
    picked = next(node for node in model.graph if node.op_type == "Gather").inputs[1]
    assert picked is not None and picked.shape == (3 * 3 * 2,) and picked.dtype == ir.DataType.INT32


@pytest.mark.parametrize("sliced", [{"end": [-1]}, {"axis": [-3]}, {"start": [-3], "end": [2**63 - 1]}])
def test_bounds_of_a_slice_count_from_either_end(sliced: dict[str, list[int]]) -> None:
    body = OUT_OF_WINDOWS.replace("three, one, one", "end, axis, one").replace("zero", "start")
    bounds = {"start": [0], "end": [3], "axis": [1]}
    _gathered(_model(body, (8, 4, 32), WINDOWS | bounds | sliced, "y"), {"Reshape": 2, "Gather": 1})


@pytest.mark.parametrize("last", [-1, -9])  # -9 is before the axis, where ONNX starts at its first row
def test_a_backward_slice_is_gathered(last: int) -> None:
    body = "turned = Transpose <perm = [1, 0, 2]> (x)\n y = Slice (turned, last, first, axis, back)"
    bounds = {"last": [last], "first": [-(2**63)], "axis": [0], "back": [-1]}
    _gathered(_model(body, (8, 4, 32), bounds, "y"), {"Reshape": 2, "Gather": 1})


def test_what_is_read_between_ends_a_chain() -> None:
    model = _heads("global", "q k v stacked")
    _gathered(model, {"Identity": 1, "Reshape": 2, "Transpose": 1, "Split": 1, "Squeeze": 3})  # each copies once
    model = _heads("windowed", "q k v stacked")
    _gathered(model, {"Reshape": 2, "Gather": 1, "Split": 1, "Squeeze": 3})
    assert [value.name for value in model.graph.outputs] == ["q", "k", "v", "stacked"]


def test_a_part_of_a_split_may_be_an_output() -> None:
    _gathered(_heads("windowed", "q k v k0"), {"Reshape": 4, "Gather": 3, "Squeeze": 1})


def test_another_reader_ends_a_chain() -> None:
    body, constants = INTO_HEADS["windowed"]
    model = _model(f"{body}\n y = Max (q0, k0)", (10, 192), constants, "q k v y")
    _gathered(model, {"Reshape": 4, "Gather": 3, "Squeeze": 2, "Max": 1})


def test_equal_chains_share_their_constants() -> None:
    body = """
      a = Transpose <perm = [1, 0, 2]> (x)
      y = Slice (a, zero, two)
      next = Max (x)
      b = Reshape (next, more)
      c = Transpose <perm = [2, 0, 1, 3]> (b)
      d = Squeeze (c)
      z = Slice (d, zero, two)
    """
    model = _model(body, (8, 4, 32), {"zero": [0], "two": [2], "more": [8, 1, 4, 32]}, "y z")
    _gathered(model, {"Reshape": 4, "Gather": 2, "Max": 1})
    one, other = (node.inputs[1] for node in model.graph if node.op_type == "Gather")
    assert one is other


def test_equal_chains_from_one_value_share_the_gather() -> None:
    body = "turned = Transpose <perm = [1, 0, 2]> (x)\n part = Slice (turned, zero, two)\n"
    body += "y = Reshape (part, flat)\n z = Reshape (part, flat)\n w = Squeeze (part)"
    model = _model(body, (8, 4, 32), {"zero": [0], "two": [2], "flat": [-1, 32]}, "y z w")
    _gathered(model, {"Reshape": 4, "Gather": 1})


@pytest.mark.parametrize("output", [True, False])
def test_what_keeps_the_order_is_no_gather(output: bool) -> None:
    body = "a = Transpose <perm = [1, 0, 2]> (x)\n y = Transpose <perm = [1, 0, 2]> (a)\n"
    model = _model(body if output else f"{body} z = Max (y)", (8, 4, 32), {}, "y" if output else "z")
    _gathered(model, {"Reshape": 1} if output else {"Max": 1})


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather (x, rows)",
        "y = Transpose <perm = [1, 0, 2]> (x)",  # as fast as a Gather
        "a = Reshape (x, flat)\n y = Reshape (a, more)",
        "a = Transpose <perm = [0, 2, 1]> (x)\n y = Gather (a, rows)",  # single elements
        "a = Gather (x, rows)\n y = Gather (a, a)",  # of which something is computed
    ],
)
def test_what_copies_no_less_stays(body: str) -> None:
    _stays(_model(body, (8, 4, 32), {"rows": [1, 0], "flat": [-1], "more": [4, -1]}, "y"))


def test_floats_stay() -> None:
    body, constants = INTO_HEADS["windowed"]
    _stays(_model(body, (10, 192), constants, "q k v", "float"))


def test_a_dynamic_shape_keeps_the_views() -> None:
    body, constants = INTO_HEADS["global"]
    constants = constants | {"apart_shape": [1, -1, 3, 2, 32], "stacked_shape": [3, 2, -1, 32]}
    _stays(_model(body, ("n", 192), constants, "q k v"))


def test_a_shape_that_is_computed_keeps_the_views() -> None:
    model = _heads("global")
    model.graph.initializers["stacked_shape"].const_value = None
    _stays(model)
