# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions that do not overlap become linear layers of rows; what they give stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from samq_onnx.models import load_model
from samq_onnx.passes.lift import simplify
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.rewrites.upscaling import upscale_rows
from tests.conftest import Feed, relative_error, run_model

RANDOM = np.random.default_rng(0)
HEIGHT, WIDTH = 3, 4
WEIGHTS = {
    "w": (8, 6, 2, 2), "b": (6,), "w_oblong": (8, 6, 1, 3), "w_second": (6, 4, 2, 2), "b_second": (4,),
    "w_third": (4, 5, 3, 2), "gain": (6, 1, 1), "offset": (1, 6, 1, 1), "gain_last": (12,), "w_grouped": (8, 3, 2, 2),
    "w_line": (8, 6, 2), "w_overlap": (8, 6, 3, 3), "b_overlap": (6,),
}  # fmt: skip
FLAT = "flat = Reshape (y, flat_shape)\n product = MatMul (weights, flat)\n masks = Reshape (product, masks_shape)"
UP = "y = ConvTranspose <strides = [2, 2]> (x, w, b)"
NORM = """
    mean = ReduceMean <axes = [1]> (a)
    centred = Sub (a, mean)
    square = Mul (centred, centred)
    variance = ReduceMean <axes = [1]> (square)
    shifted = Add (variance, epsilon)
    root = Sqrt (shifted)
    normed = Div (centred, root)
    scaled = Mul (normed, gain)
    n = Add (scaled, offset)
"""
GELU = """
    quotient = Div ({x}, root_two)
    erf = Erf (quotient)
    raised = Add (erf, one)
    gated = Mul ({x}, raised)
    {y} = Mul (gated, half)
"""
SAM = f"""
    a = ConvTranspose <strides = [2, 2], kernel_shape = [2, 2], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1> (x, w, b)
    {NORM}
    {GELU.format(x="n", y="g")}
    c = ConvTranspose <strides = [2, 2]> (g, w_second, b_second)
    {GELU.format(x="c", y="y").replace("quotient", "q2").replace("erf", "e2").replace("raised", "r2").replace("gated", "g2")}
"""  # noqa: E501
NORMED = f"a = ConvTranspose <strides = [2, 2]> (x, w, b)\n {NORM} {GELU.format(x='n', y='y')}"
TOKENS = "turned = Transpose <perm = [0, 2, 1]> (tokens)\n x = Reshape (turned, x_shape)\n"
PUT_ON_ROWS = {  # body, height and width of masks
    "as in SAM": (SAM, 12, 16),
    "normed": (NORMED, 6, 8),
    "one": (UP, 6, 8),
    "oblong without bias": ("y = ConvTranspose <strides = [1, 3]> (x, w_oblong)", 3, 12),
    "three": (
        "a = ConvTranspose <strides = [2, 2]> (x, w, b)\n c = ConvTranspose <strides = [2, 2]> (a, w_second)\n"
        "y = ConvTranspose <strides = [3, 2]> (c, w_third)", 36, 32),
}  # fmt: skip
REFUSED = {
    "overlapping": ("y = ConvTranspose <strides = [2, 2], pads = [1, 1, 0, 0]> (x, w_overlap, b_overlap)", 6, 8),
    "apart": ("y = ConvTranspose <strides = [3, 3], output_padding = [1, 1]> (x, w, b)", 9, 12),
    "padded": ("y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b)", 4, 6),
    "dilated": ("y = ConvTranspose <strides = [2, 2], dilations = [2, 2], pads = [1, 1, 0, 0]> (x, w, b)", 6, 8),
    "grouped": ("y = ConvTranspose <strides = [2, 2], group = 2> (x, w_grouped, b)", 6, 8),
    "other masks": (UP, 8, 6),
    "norm of the last axes": (
        "a = ConvTranspose <strides = [2, 2]> (x, w, b)\n y = LayerNormalization <axis = 1> (a, all)", 6, 8),
    "norm over the width too": (NORMED.replace("[1]> (a)", "[3]> (a)"), 6, 8),
    "no variance": (NORMED.replace("Mul (centred, centred)", "Mul (centred, three)"), 6, 8),
    "fourth power": (NORMED.replace("Mul (centred, centred)", "Pow (centred, four)"), 6, 8),
    "gain of the width": (NORMED.replace("(normed, gain)", "(normed, gain_of_width)"), 6, 8),
    "offset of the height": (NORMED.replace("(scaled, offset)", "(scaled, offset_of_height)"), 6, 8),
    "activation by channel": (NORMED.replace("(gated, half", "(gated, half_by_channel"), 6, 8),
    "activation of rank 4": (NORMED.replace("(gated, half", "(gated, half_of_rank_4"), 6, 8),
    "another activation": ("a = ConvTranspose <strides = [2, 2]> (x, w, b)\n y = Softmax <axis = 2> (a)", 6, 8),
}  # fmt: skip
WEIGHTS |= {"all": (6, 6, 8), "gain_of_width": (8,), "offset_of_height": (6, 1), "half_by_channel": (6, 1, 1)}
WEIGHTS |= {"half_of_rank_4": (1, 1, 1, 1)}
SCALARS = {"epsilon": 1e-3, "root_two": 2**0.5, "one": 1.0, "half": 0.5, "three": 3.0, "four": 4.0}


def _model(body: str, height: int, width: int, batch: str | int = 1, opset: int = 17, source: str = TOKENS) -> ir.Model:
    given = f"float[{batch}, {HEIGHT * WIDTH}, 8] tokens" if source else f"float[{batch}, 8, {HEIGHT}, {WIDTH}] x"
    text = f"{source}{body}\n{FLAT}"
    channels = {"w_third": 5, "w_second": 4}
    last = next((count for name, count in channels.items() if f" {name}" in body), 6)
    model = onnx.parser.parse_model(f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    upscaling ({given}, float[{batch}, 4, {last}] weights) => (float[{batch}, 4, {height}, {width}] masks)
    {{ {text} }}""")
    constants = {name: RANDOM.standard_normal(shape, dtype=np.float32) for name, shape in WEIGHTS.items()}
    constants |= {name: np.float32(value) for name, value in SCALARS.items()}
    constants |= {"x_shape": np.array([0, 8, HEIGHT, WIDTH]), "flat_shape": np.array([0, last, -1])}
    constants["plane_shape"] = np.array([1, 8, HEIGHT, WIDTH])
    constants["masks_shape"] = np.array([0, 4, height, width])
    used = {name for node in model.graph.node for name in node.input}
    for name in sorted(used & constants.keys()):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(constants[name]), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _run(model: ir.Model, batch: int = 1) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    feed = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        feed[value.name or ""] = random.standard_normal((batch, *list(value.shape)[1:]), dtype=np.float32)
    return run_model(model, feed)


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _changes(model: ir.Model) -> bool:
    """Whether the pass changes a model; it must stay valid, shapes and all."""
    before = ir.to_proto(model)
    upscale_rows(Builder(model.graph))
    common.RemoveUnusedNodesPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return ir.to_proto(model) != before


@pytest.mark.parametrize("source", [TOKENS, ""])
@pytest.mark.parametrize(("batch", "count"), [(1, 1), ("N", 3)])
@pytest.mark.parametrize("name", PUT_ON_ROWS)
def test_rows_give_the_same(name: str, batch: str | int, count: int, source: str) -> None:
    model = _model(*PUT_ON_ROWS[name], batch=batch, source=source)
    before = _run(model, count)
    assert _changes(model)
    assert "ConvTranspose" not in _kinds(model)
    assert [value.name for value in model.graph.outputs] == ["masks"]
    assert relative_error(before, _run(model, count)) < 1e-6
    assert not _changes(model)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_linear_layer_stays(name: str) -> None:
    model = _model(*REFUSED[name])
    kinds = _kinds(model)
    assert not _changes(model)
    assert _kinds(model) == kinds


def test_masks_of_several_prompts_in_one_row_stay() -> None:
    model = _model(*PUT_ON_ROWS["one"], batch=2)
    (masks,) = model.graph.outputs
    masks.shape = ir.Shape((1, 8, 6, 8))
    model.graph.initializers["masks_shape"].const_value = ir.tensor(np.array([1, 8, 6, 8]), name="masks_shape")
    assert not _changes(model)


def test_one_image_for_all_prompts() -> None:
    model = _model(*PUT_ON_ROWS["as in SAM"])
    for value in (model.graph.inputs[1], model.graph.outputs[0], model.graph[-2].outputs[0]):
        assert value.shape is not None
        value.shape = ir.Shape([3, *value.shape[1:]])
    random = np.random.default_rng(1)
    feed = {
        "tokens": random.standard_normal((1, HEIGHT * WIDTH, 8), dtype=np.float32),
        "weights": random.standard_normal((3, 4, 4), dtype=np.float32),
    }
    before = run_model(model, feed)
    assert _changes(model)
    assert relative_error(before, run_model(model, feed)) < 1e-6


def test_weights_of_all_prompts_stay() -> None:
    model = _model(*PUT_ON_ROWS["one"])
    model.graph.inputs[1].shape = ir.Shape((4, 6))
    assert not _changes(model)


def test_old_operator_sets_have_no_layer_norm() -> None:
    assert not _changes(_model(*PUT_ON_ROWS["one"], opset=16))


@pytest.mark.parametrize("name", ["y", "g", "n", "flat"])
def test_what_else_is_read_stays(name: str) -> None:
    model = _model(*PUT_ON_ROWS["as in SAM"])
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == name))
    before = _run(model)
    changed = _changes(model)
    assert changed == (name in ("g", "n"))  # the second layer, alone, may still go
    assert relative_error(before, _run(model)) < 1e-6


@pytest.mark.parametrize("weight", ["w", "b", "gain", "epsilon", "half"])
def test_weights_that_are_fed_stay(weight: str) -> None:
    model = _model(NORMED, 6, 8)
    model.graph.inputs.append(model.graph.initializers[weight])
    assert not _changes(model)


def test_masks_made_in_a_branch_stay() -> None:
    model = ir.to_proto(_model(*PUT_ON_ROWS["one"]))
    ways = {"then": "Reshape (product, masks_shape)", "else": "ConstantOfShape (masks_shape)"}
    branches = [
        onnx.parser.parse_graph(f"{name} () => (float[1, 4, 6, 8] {name}_masks) {{ {name}_masks = {way} }}")
        for name, way in ways.items()
    ]
    choice = onnx.helper.make_node("If", ["chosen"], ["masks"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node[-1].CopyFrom(choice)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "chosen"))
    assert not _changes(ir.from_proto(model))


def test_names_that_are_taken_stay_apart() -> None:
    model = _model(*PUT_ON_ROWS["one"], opset=17)
    for name in ("y_weight", "y_bias", "masks_apart_shape"):
        taken = ir.Value(name=name, const_value=ir.tensor(np.ones(1, np.float32), name=name))
        model.graph.register_initializer(taken)
    before = _run(model)
    assert _changes(model)
    assert relative_error(before, _run(model)) < 1e-6


def test_the_gelu_of_operator_set_20() -> None:
    body = "a = ConvTranspose <strides = [2, 2]> (x, w, b)\n y = Gelu (a)"
    model = _model(body, 6, 8, opset=20)
    before = _run(model)
    assert _changes(model)
    assert relative_error(before, _run(model)) < 1e-6


def test_a_transpose_that_names_no_axes() -> None:
    source = "turned = Transpose (tokens)\n x = Reshape (turned, plane_shape)\n"
    model = _model(*PUT_ON_ROWS["one"], source=source)
    before = _run(model)
    assert _changes(model)
    assert relative_error(before, _run(model)) < 1e-6


def test_the_decoder_of_sam_is_taken(nano: Path, decoder_feed: Feed) -> None:
    model = load_model(nano / "decoder.onnx")
    before = run_model(model, decoder_feed)
    simplify(model)
    assert _changes(model)
    assert relative_error(before, run_model(model, decoder_feed)) < 5e-5
