# SPDX-License-Identifier: Apache-2.0
"""Scales and shifts of a norm's channels go into the linears that read it, and the float function stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.models import load_model
from samq_onnx.passes.fold import NormReaders, fold_norm_affine, norm_readers
from samq_onnx.passes.graph import constant, tap
from samq_onnx.passes.lift import Lifted, lift, simplify
from tests.conftest import Feed, relative_error, run_model

EXACT = 1e-5  # relative; float rounding only
WIDTH = 6

NORM = "n = LayerNormalization <axis = -1> (x, gain, offset)"
LINEAR = "m = MatMul(n, w) y = Add(m, b)"


def _built(body: str, shape: str = "2, 5, 6", result: str = "float[M, N] y") -> tuple[ir.Model, Lifted]:
    """A lifted graph of ``x`` whose constants are random."""
    random = np.random.default_rng(0)
    shapes = {
        "gain": (6,), "offset": (6,), "plane": (5, 6), "side": (6, 1), "single": (1,),
        "w": (6, 4), "w2": (6, 3), "b": (4,), "kernel": (3, 6, 2, 2), "k": (3,),
    }  # fmt: skip
    text = f'<ir_version: 8, opset_import: ["" : 18]>\ng (float[{shape}] x) => ({result})\n{{\n{body}\n}}'
    proto = onnx.parser.parse_model(text)
    for name, size in shapes.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random.normal(size=size).astype(np.float32), name))
    for name, held in {
        "eps": np.float32(1e-6),
        "two": np.float32(2),
        "none": np.float32(0),
        "one": np.float32(1),
    }.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(held, name))
    for name, ints in {
        "rows": [0, 0, 0, 0, 2, 0],
        "tile": [0, 0, 0, 0, 0, 1],
        "ends": [3],
        "begin": [1],
        "axis": [1],
    }.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(ints, np.int64), name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    return model, lift(model)


def _random(channels: int = WIDTH, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return np.exp(random.normal(size=channels)), random.normal(size=channels)


def _feed(model: ir.Model) -> Feed:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return {"x": np.random.default_rng(2).normal(size=shape.numpy()).astype(np.float32)}


@pytest.fixture
def encoder(nano: Path) -> tuple[ir.Model, Lifted]:
    model = load_model(nano / "encoder.onnx")
    simplify(model)
    lifted = lift(model)
    ops.add_functions(model)
    return model, lifted


def test_an_encoder(encoder: tuple[ir.Model, Lifted], encoder_feed: Feed) -> None:
    """Every pre-norm takes a scale and a shift, in windowed blocks too, whose padding lies behind the linears."""
    model, lifted = encoder
    assert any(linear.fill is not None for linear in lifted.linears)
    expected, affine = run_model(model, encoder_feed), {}
    for seed, norm in enumerate(lifted.norms):
        found = norm_readers(lifted, norm)
        if isinstance(found, NormReaders) and norm.node.op_type == "LayerNormalization":
            assert found.no_shift is None
            affine[norm.name] = _random(found.channels, seed)
    assert len(affine) == 2 * len(lifted.attentions)
    before = {norm.name: constant(norm.scale).copy() for norm in lifted.norms}
    report = fold_norm_affine(lifted, affine)
    assert report.done == list(affine) and not report.refused
    for norm in lifted.norms:
        if norm.name in affine:
            assert np.allclose(constant(norm.scale) * affine[norm.name][0], before[norm.name], rtol=1e-6)
    assert relative_error(expected, run_model(model, encoder_feed)) < EXACT


def test_what_a_norm_gives_is_scaled_and_shifted() -> None:
    model, lifted = _built(f"{NORM} {LINEAR}")
    scale, shift = _random()
    tap(model, ["n"])
    feed = _feed(model)
    before = run_model(model, feed)
    model.graph.outputs.pop()
    assert fold_norm_affine(lifted, {lifted.norms[0].name: (scale, shift)}).done
    tap(model, ["n"])
    after = run_model(model, feed)
    assert relative_error([(before[1] - shift) / scale], [after[1]]) < EXACT
    assert relative_error(before[:1], after[:1]) < EXACT


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_decoders_stream_is_refused(part: str, nano: Path) -> None:
    model = load_model(nano / f"{part}.onnx")
    simplify(model)
    lifted = lift(model)
    taken = [norm for norm in lifted.norms if isinstance(norm_readers(lifted, norm), NormReaders)]
    streams = [norm for norm in lifted.norms if any(node.op_type == "Add" for node, _ in norm.output.uses())]
    if part == "decoder":
        assert len(streams) == 2 * 4
        affine = {norm.name: _random(norm.output.shape[-1]) for norm in streams}  # type: ignore[index]
        assert [line.count("reads it too") for line in fold_norm_affine(lifted, affine).refused] == [1] * 8
    assert not set(map(id, taken)) & set(map(id, streams)) and bool(streams) == (part == "decoder")


def test_one_and_zero_change_nothing(encoder: tuple[ir.Model, Lifted]) -> None:
    model, lifted = encoder
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    plain = {norm.name: (np.ones(192), np.zeros(192)) for norm in lifted.norms[:6]}
    report = fold_norm_affine(lifted, plain)
    assert not report.done and not report.refused
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


CHANNELS_FIRST = """
mean = ReduceMean <axes = [1], keepdims = 1> (x)
centred = Sub(x, mean)
squares = Pow(centred, two)
variance = ReduceMean <axes = [1], keepdims = 1> (squares)
shifted = Add(variance, eps)
root = Sqrt(shifted)
unit = Div(centred, root)
scaled = Mul(unit, PLACE)
n = Add(scaled, PLACE)
"""


@pytest.mark.parametrize(("pads", "shifts"), [("0, 0, 0, 0", True), ("1, 1, 0, 0", False)])
def test_a_norm_of_planes_before_a_convolution(pads: str, shifts: bool) -> None:
    body = (
        CHANNELS_FIRST.replace("axes = [1], ", "").replace("(x)", "(x, axis)").replace("(squares)", "(squares, axis)")
    )
    body = body.replace("Mul(unit, PLACE)", "Mul(unit, tall)").replace("Add(scaled, PLACE)", "Add(scaled, taller)")
    model, lifted = _built(
        "tall = Constant <value = float[6, 1, 1] {1, 2, 3, 4, 5, 6}> () "
        "taller = Constant <value = float[6, 1, 1] {6, -2, 3, 4, 5, 6}> ()"
        + body
        + f"y = Conv <pads = [{pads}]> (n, kernel, k)",
        shape="1, 6, 3, 3", result="float[1, 3, M, N] y",
    )  # fmt: skip
    simplify(model)
    lifted = lift(model)
    feed, (scale, shift) = _feed(model), _random()
    expected, name = run_model(model, feed), lifted.norms[0].name
    report = fold_norm_affine(lifted, {name: (scale, shift)})
    assert bool(report.done) == shifts and bool(report.refused) != shifts
    assert fold_norm_affine(lifted, {name: (scale, 0 * shift)}).done
    assert relative_error(expected, run_model(model, feed)) < EXACT


@pytest.mark.parametrize("shared", ["gain", "offset"])
def test_what_another_node_reads_stays_as_it_is(shared: str) -> None:
    model, lifted = _built(f"{NORM} {LINEAR} z = Mul({shared}, two)", result="float[1, M, K] y, float[K] z")
    feed = _feed(model)
    expected = run_model(model, feed)
    assert fold_norm_affine(lifted, {lifted.norms[0].name: _random()}).done  # lifting gave the norm its own
    assert relative_error(expected, run_model(model, feed)) < EXACT


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{NORM} {LINEAR} z = Abs(n)", "Abs .* reads it too"),
        (f"{NORM} {LINEAR} z = Add(n, x)", "Add .* reads it too"),
        (f"{NORM} {LINEAR} z = MatMul(n, w)", "w is shared"),
        (f"{NORM} t = Transpose <perm = [2, 0, 1]> (n) z = MatMul(side, t)", "MatMul .* reads it too"),
        (f"{NORM} t = Gather <axis = 2> (n, begin) z = Abs(t)", "Gather .* reads it too"),
        (f"{NORM} t = Pad(n, rows, one) m = MatMul(t, w) y = Add(m, b)", "Pad .* reads it too"),
        (f"{NORM} t = Pad(n, tile) y = Abs(t)", "Pad .* reads it too"),
        ("n = LayerNormalization <axis = -2> (x, plane) z = MatMul(n, w)", "no vector of channels"),
        ("n = LayerNormalization <axis = -1> (x, single) z = MatMul(n, w)", "no vector of channels"),
        (f"{NORM} z = Shape(n)", "no linear reads it"),
        (f"{NORM} {LINEAR} z = LayerNormalization <axis = -1> (n, gain, offset)", "LayerNormalization .* reads it too"),
    ],
)
def test_what_is_refused(body: str, reason: str) -> None:
    model, lifted = _built(body, result="float[K] z" if " z =" in body else "float[K] y")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    found = norm_readers(lifted, lifted.norms[0])
    report = fold_norm_affine(lifted, {lifted.norms[0].name: _random()})
    assert isinstance(found, str) and not report.done
    (line,) = report.refused
    assert line.endswith(found)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{NORM} y = MatMul(n, w)", "has no bias"),
        ("n = LayerNormalization <axis = -1> (x, gain) " + LINEAR, "it has no bias"),
        (f"{NORM} {LINEAR} z = Mul(b, two)", "b is shared"),
        (f"{NORM} t = Pad(n, rows) m = MatMul(t, w) y = Add(m, b) z = MatMul(t, w2)", "zero padding"),
        (f"{NORM} t = Pad(n, rows, none) m = MatMul(t, w) y = Add(m, b) z = MatMul(t, w2)", "zero padding"),
    ],
)
def test_what_cannot_be_shifted_can_be_scaled(body: str, reason: str) -> None:
    model, lifted = _built(body, result="float[K] y" if " z =" not in body else "float[K] y, float[J] z")
    feed, name, (scale, shift) = _feed(model), lifted.norms[0].name, _random()
    expected = run_model(model, feed)
    (line,) = fold_norm_affine(lifted, {name: (scale, shift)}).refused
    assert reason in line
    assert fold_norm_affine(lifted, {name: (scale, np.zeros(WIDTH))}).done == [name]
    assert relative_error(expected, run_model(model, feed)) < EXACT


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_rows_that_are_repeated_are_shifted_too(mode: str) -> None:
    model, lifted = _built(f'{NORM} t = Pad <mode = "{mode}"> (n, rows) m = MatMul(t, w) y = Add(m, b)')
    feed, name = _feed(model), lifted.norms[0].name
    expected = run_model(model, feed)
    assert fold_norm_affine(lifted, {name: _random()}).done == [name]
    assert relative_error(expected, run_model(model, feed)) < EXACT


@pytest.mark.parametrize(
    "affine",
    [
        (np.ones(5), np.ones(5)), (np.zeros(6), np.zeros(6)), (-np.ones(6), np.zeros(6)),
        (np.full(6, np.inf), np.zeros(6)), (np.ones(6), np.full(6, np.nan)),
    ],
)  # fmt: skip
def test_numbers_that_are_none(affine: tuple[np.ndarray, np.ndarray]) -> None:
    _, lifted = _built(f"{NORM} {LINEAR}")
    with pytest.raises(ValueError, match=r"channels|finite"):
        fold_norm_affine(lifted, {lifted.norms[0].name: affine})
    with pytest.raises(ValueError, match="no norm z"):
        fold_norm_affine(lifted, {"z": _random()})
