# SPDX-License-Identifier: Apache-2.0
"""What is computed from shapes is folded as far as the shapes are known, and no further."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx.passes.lift import simplify
from samq_onnx.passes.lift.dims import Product, divided, parsed, product_of, sum_of, times
from samq_onnx.runtime import open_session

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\nagraph ({inputs}) => ({outputs})\n'
B, C = Product(1, ("b",)), Product(1, ("c",))

# Splits 32 channels into 4 heads, folds heads into the batch, and back, all by sizes taken from the shape.
HEADS = """{
 zero = Constant <value = int64 {0}> ()
 one = Constant <value = int64 {1}> ()
 two = Constant <value = int64 {2}> ()
 first = Constant <value = int64[1] {0}> ()
 four = Constant <value = int64 {4}> ()
 dims = Shape (x)
 batch = Gather (dims, zero)
 tokens = Gather (dims, one)
 width = Gather (dims, two)
 head = Div (width, four)
 many = Mul (batch, four)
 b = Unsqueeze (batch, first)
 t = Unsqueeze (tokens, first)
 h = Unsqueeze (four, first)
 d = Unsqueeze (head, first)
 m = Unsqueeze (many, first)
 w = Unsqueeze (width, first)
 apart = Concat <axis = 0> (b, t, h, d)
 heads = Reshape (x, apart)
 turned = Transpose <perm = [0, 2, 1, 3]> (heads)
 flat = Concat <axis = 0> (m, t, d)
 rows = Reshape (turned, flat)
 scores = Softmax (rows)
 back = Concat <axis = 0> (b, h, t, d)
 again = Reshape (scores, back)
 before = Transpose <perm = [0, 2, 1, 3]> (again)
 whole = Concat <axis = 0> (b, t, w)
 y = Reshape (before, whole)
}"""


def _model(body: str, inputs: str, outputs: str = "float y") -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER.format(inputs=inputs, outputs=outputs) + body)
    if outputs == "float y":  # of any rank
        model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def _kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def _same(model: onnx.ModelProto, *feeds: dict[str, np.ndarray]) -> ir.Model:
    """Simplify; the model says what it said."""
    simple = ir.from_proto(model)
    simplify(simple)
    before, after = open_session(model.SerializeToString()), open_session(ir.to_proto(simple).SerializeToString())
    for feed in feeds:
        for one, two in zip(before.run(None, feed), after.run(None, feed), strict=True):
            assert one.shape == two.shape and np.array_equal(one, two)
    return simple


def _x(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def test_products_multiply_and_divide() -> None:
    assert times(2, B) == Product(2, ("b",)) and times(B, C) == times(C, B) and times(0, B) == 0
    assert divided(product_of([6, B, C]), times(2, C)) == times(3, B)
    assert divided(times(3, B), 2) is None and divided(B, C) is None and divided(B, None) is None
    assert divided(B, B) == 1 and str(times(times(2, C), B)) == "2*b*c"
    assert times(Product(1 << 61, ("b",)), 4) is None  # nothing grows without end


def test_sums_have_names_that_read_back() -> None:
    total = sum_of([B, 2, times(3, C), 4])
    assert str(total) == "(3*c+b+6)" and total == sum_of([6, times(3, C), B])
    assert sum_of([1, 2]) == 3 and sum_of([B, 0]) == B and sum_of([B, None]) is None
    for size in (B, times(2, times(B, C)), times(5, total), times(total, B)):
        assert parsed(str(size)) == size
    assert sum_of([Product(1, ("a" * 300,)), 1]) is None  # nothing grows without end


SIZED = {
    "sums": ("Concat <axis = 1> (x, x, other)", "(t+t+u)"),
    "padding": ("Pad (x, amounts)", "(t+3)"),
    "filling": ("ConstantOfShape (dims)", "t"),
    "broadcasting": ("Expand (one, dims)", "t"),
    "counting": ("Range (zero, count, step)", "t"),
    "repeating": ("Tile (x, repeats)", "2*t"),
}
TAKEN_APART = """{
 first = Constant <value = int64 {1}> ()
 zero = Constant <value = int64 {0}> ()
 step = Constant <value = int64 {1}> ()
 amounts = Constant <value = int64[4] {0, 1, 0, 2}> ()
 repeats = Constant <value = int64[2] {1, 2}> ()
 one = Constant <value = float[1, 1] {2.0}> ()
 dims = Shape (x)
 count = Gather (dims, first)
 made = MADE
 y = Neg (made)
}"""


@pytest.mark.parametrize("case", list(SIZED))
def test_shapes_made_of_shapes_are_told(case: str) -> None:
    made, wanted = SIZED[case]
    body = TAKEN_APART.replace("MADE", made)
    inputs = "float[3, t] x" + (", float[3, u] other" if case == "sums" else "")
    feed = _x(3, 5) | ({"other": np.ones((3, 2), np.float32)} if case == "sums" else {})
    outputs = "float y" if case != "counting" else "int64[n] y"
    simple = _same(_model(body, inputs, outputs), feed)
    node = next(node for node in simple.graph if node.op_type == made.split(" ")[0])
    assert str(node.outputs[0].shape[-1]) == wanted


def test_a_number_that_is_put_at_one_place_of_zeros_is_followed() -> None:
    """As exporters repeat a batch: along the first of three axes, as often as another input has entries."""
    body = """{
     place = Constant <value = int64[1] {0}> ()
     depth = Constant <value = int64 {3}> ()
     zero = Constant <value = int64 {0}> ()
     flat = Constant <value = int64[1] {-1}> ()
     unit = Constant <value = int64[1] {1}> ()
     dims = Shape (other)
     count = Gather (dims, zero)
     many = Reshape (count, flat)
     values = Concat <axis = 0> (unit, many)
     hot = OneHot (place, depth, values)
     repeats = Reshape (hot, flat)
     tiled = Tile (x, repeats)
     y = Neg (tiled)
    }"""
    inputs = "float[1, 4, 2] x, float[n, 4] other"
    simple = _same(_model(body, inputs), _x(1, 4, 2) | {"other": np.ones((3, 4), np.float32)})
    (tile,) = (node for node in simple.graph if node.op_type == "Tile")
    assert [str(dim) for dim in tile.outputs[0].shape] == ["n", "4", "2"]


@pytest.mark.parametrize("inputs", ["float[n, 6, 32] x", "float[n, t, 32] x", "float[2, t, 32] x"])
def test_views_of_free_sides_are_told_by_constants(inputs: str) -> None:
    feeds = [_x(2, tokens, 32) if inputs.startswith("float[2") else _x(3, tokens, 32) for tokens in (6, 9)]
    simple = _same(_model(HEADS, inputs), *(feeds[:1] if "6" in inputs else feeds))
    free = inputs == "float[n, t, 32] x"
    assert ("Shape" in _kinds(simple)) == free  # [4 n, t, 8] has two sizes that are not known
    assert _kinds(simple)["Reshape"] == 4
    if not free:
        assert all(node.inputs[1].const_value is not None for node in simple.graph if node.op_type == "Reshape")


def test_shapes_are_told_in_terms_of_free_sides() -> None:
    simple = _same(_model(HEADS, "float[n, t, 32] x"), _x(3, 5, 32))
    (softmax,) = (node for node in simple.graph if node.op_type == "Softmax")
    assert [str(dim) for dim in softmax.outputs[0].shape] == ["4*n", "t", "8"]


def test_what_depends_on_free_sides_stays() -> None:
    body = """{
     one = Constant <value = int64[1] {1}> ()
     rest = Constant <value = int64[1] {-1}> ()
     zero = Constant <value = int64[1] {0}> ()
     padded = Concat <axis = 1> (x, x)
     dims = Shape (padded)
     side = Gather (dims, one)
     less = Sub (side, one)
     y = Slice (padded, zero, less, one)
    }"""
    simple = _same(_model(body, "float[n, t] x"), _x(2, 3), _x(1, 5))
    assert {"Shape", "Sub"} <= set(_kinds(simple))


def test_padding_computed_from_a_known_side_is_folded() -> None:
    body = """{
     one = Constant <value = int64 {1}> ()
     five = Constant <value = int64 {5}> ()
     at = Constant <value = int64[1] {0}> ()
     zeros = Constant <value = int64[3] {0, 0, 0}> ()
     last = Constant <value = int64[1] {0}> ()
     dims = Shape (x)
     side = Gather (dims, one)
     over = Mod (side, five)
     short = Sub (five, over)
     pad = Mod (short, five)
     pads = Unsqueeze (pad, at)
     whole = Concat <axis = 0> (zeros, last, pads, last)
     y = Pad (x, whole)
    }"""
    simple = _same(_model(body, "float[n, 8, 3] x"), _x(1, 8, 3), _x(4, 8, 3))
    assert _kinds(simple) == {"Pad": 1}


def test_a_shape_that_an_output_wrongly_declares_is_not_believed() -> None:
    body = """{
     one = Constant <value = float {1}> ()
     y = Add (x, one)
     dims = Shape (y)
    }"""
    model = _model(body, "float[n, 3] x", "float[1, 3] y, int64[2] dims")
    simple = ir.from_proto(model)
    simplify(simple)
    assert _kinds(simple)["Shape"] == 1
    assert [str(dim) for dim in simple.graph.outputs[0].shape] == ["1", "3"]  # as declared
