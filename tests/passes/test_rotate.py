# SPDX-License-Identifier: Apache-2.0
"""Rotations of the residual stream and of heads leave the float function as it is, and spread what stands out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.models import load_model
from samq_onnx.passes.fold import find_stream, rotate_heads, rotate_stream
from samq_onnx.passes.fold.edit import scale_outputs
from samq_onnx.passes.fold.rotate import Stream, rotation
from samq_onnx.passes.graph import constant, replace_constant, tap
from samq_onnx.passes.lift import Lifted, lift, simplify
from tests.conftest import Feed, relative_error, run_model
from tests.fuzz import tiny
from tests.fuzz.tiny import Graph

EXACT = 1e-5  # relative; float rounding only
ROWS, WIDTH = 6, 8


def _lifted(source: Path | onnx.ModelProto) -> tuple[ir.Model, Lifted]:
    model = load_model(source) if isinstance(source, Path) else ir.from_proto(source)
    simplify(model)
    lifted = lift(model)
    ops.add_functions(model)
    return model, lifted


def _stream(lifted: Lifted) -> Stream:
    found = find_stream(lifted)
    assert isinstance(found, Stream), found
    return found


def _block(*, bias: bool = True, gain: np.ndarray | None = None, neck: bool = False) -> onnx.ModelProto:
    """x -> linear + places -> + MLP(norm) -> linear, or norm and a convolution, its norms with gains and offsets."""
    g = Graph(WIDTH)
    places = g.drawn(ROWS, WIDTH)
    x = g.op("Add", g.linear("x", WIDTH, WIDTH), places)
    held = g.drawn(WIDTH) if gain is None else g.held(gain)
    hidden = g.linear(g.op("LayerNormalization", x, held, g.drawn(WIDTH), axis=-1), WIDTH, 2 * WIDTH, bias=bias)
    x = g.op("Add", x, g.linear(g.op("Tanh", hidden), 2 * WIDTH, WIDTH))
    if neck:
        normed = g.op("LayerNormalization", x, g.drawn(WIDTH), g.drawn(WIDTH), axis=-1)
        image = g.op("Reshape", g.op("Transpose", normed, perm=[1, 0]), g.ints(1, WIDTH, 2, ROWS // 2))
        made = g.op("Conv", image, g.drawn(3, WIDTH, 2, 2), g.drawn(3))
        return g.model(f"float[{ROWS}, {WIDTH}] x", "float[1, 3, 1, 2] y", {"y": made})
    return g.model(f"float[{ROWS}, {WIDTH}] x", f"float[{ROWS}, 3] y", {"y": g.linear(x, WIDTH, 3)})


def _rows() -> Feed:
    return {"x": np.random.default_rng(3).normal(size=(ROWS, WIDTH)).astype(np.float32)}


def _tensor(model: ir.Model, name: str | None, feed: Feed) -> np.ndarray:
    tapped = model.clone()
    tapped.graph.outputs.clear()
    tap(tapped, [name or ""])
    return run_model(tapped, feed)[0]


@pytest.mark.parametrize("size", [2, 3, 16, 65])
def test_a_rotation_is_orthogonal_and_keeps_ones(size: int) -> None:
    matrix = rotation(size)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(np.ones(size) @ matrix, np.ones(size), atol=1e-12)
    np.testing.assert_array_equal(matrix, rotation(size))
    if size > 2:
        assert np.abs(matrix - np.eye(size)).max() > 0.3 and np.abs(matrix - rotation(size, 1)).max() > 0.3


def _tiny_encoder() -> onnx.ModelProto:
    """The tiny SAM's, whose norms have gains of either sign, and some zero."""
    model, random = tiny.encoder(), np.random.default_rng(4)
    gains = [node.input[1] for node in model.graph.node if node.op_type == "LayerNormalization"]
    for held in model.graph.initializer:
        if held.name in gains:
            gain = random.normal(size=tiny.WIDTH) * (random.random(tiny.WIDTH) < 0.8)
            held.CopyFrom(onnx.numpy_helper.from_array(gain.astype(np.float32), held.name))
    return model


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_the_stream_of_an_encoder(name: str, nano: Path, encoder_feed: Feed) -> None:
    model, lifted = _lifted(nano / "encoder.onnx" if name == "nano" else _tiny_encoder())
    side = 512 if name == "nano" else tiny.SIDE
    feed = {"image": encoder_feed["image"][:, :, :side, :side]}
    expected, stream = run_model(model, feed), _stream(lifted)
    assert len(stream.norms) == 2 * len(lifted.attentions) and len(stream.writers) == 1 + len(stream.norms)
    watched = stream.norms[-1].norm.x.name
    before = _tensor(model, watched, feed)
    report = rotate_stream(lifted)
    assert report.done == [found.norm.name for found in stream.norms] and not report.refused
    assert relative_error(expected, run_model(model, feed)) < EXACT
    assert relative_error([before @ rotation(stream.channels)], [_tensor(model, watched, feed)]) < EXACT
    for found in stream.norms:
        assert (constant(found.norm.scale) == 1).all() and not constant(found.norm.bias).any()


@pytest.mark.parametrize(
    "gain", [np.array([-3.0, 0, 1, 0, 2, -0.5, 1e-4, 40]), np.zeros(WIDTH), np.full((1, WIDTH), -1.0)]
)
def test_any_gain_goes_into_the_linears(gain: np.ndarray) -> None:
    model, lifted = _lifted(_block(gain=gain) if gain.ndim == 1 else _wide(_block(), gain))
    expected = run_model(model, _rows())
    assert rotate_stream(lifted).done
    assert relative_error(expected, run_model(model, _rows())) < EXACT


def _wide(model: onnx.ModelProto, gain: np.ndarray) -> onnx.ModelProto:
    """The model with constants [1, channels] in its first norm."""
    (norm,) = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    for held in model.graph.initializer:
        if held.name in norm.input[1:]:
            array = gain if held.name == norm.input[1] else onnx.numpy_helper.to_array(held)
            held.CopyFrom(onnx.numpy_helper.from_array(array.reshape(1, WIDTH).astype(np.float32), held.name))
    return model


def test_a_convolution_behind_a_norm() -> None:
    model, lifted = _lifted(_block(neck=True))
    expected = run_model(model, _rows())
    assert len(rotate_stream(lifted).done) == 2
    assert relative_error(expected, run_model(model, _rows())) < EXACT


def test_a_channel_that_stands_out_is_spread() -> None:
    model, lifted = _lifted(_block())
    stream = _stream(lifted)
    loud = np.ones(WIDTH)
    loud[3] = 100
    for linear in stream.writers:
        scale_outputs(linear, np.arange(WIDTH), loud)
    expected, watched = run_model(model, _rows()), stream.norms[0].norm.x.name

    def peak() -> float:
        rows = _tensor(model, watched, _rows())
        return float(np.abs(rows).max() / np.sqrt(np.square(rows).mean()))

    before = peak()
    rotate_stream(lifted)
    assert peak() < 0.8 * before
    assert relative_error(expected, run_model(model, _rows())) < EXACT


def _given_out(model: ir.Model, lifted: Lifted) -> None:
    value = _stream(lifted).norms[0].norm.x
    value.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(value)


def _read_by_another(value: Callable[[Stream], ir.Value | None]) -> Callable[[ir.Model, Lifted], None]:
    def change(model: ir.Model, lifted: Lifted) -> None:
        found = value(_stream(lifted))
        assert found is not None
        model.graph.append(ir.node("Abs", [found]))

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_given_out, "is an output of the model"),
        (_read_by_another(lambda stream: stream.norms[0].norm.x), "Abs .* reads it"),
        (_read_by_another(lambda stream: stream.writers[0].weight), "shared with another node"),
        (_read_by_another(lambda stream: stream.writers[0].bias), "shared with another node"),
        (_read_by_another(lambda stream: stream.readers[0].weight), "shared with another node"),
        (_read_by_another(lambda stream: stream.added[0][0]), "shared with another node"),
        (_read_by_another(lambda stream: stream.norms[0].norm.scale), "shared with another node"),
        (_read_by_another(lambda stream: stream.norms[0].linears[0].weight), "shared with another node"),
        (_read_by_another(lambda stream: stream.norms[0].linears[0].bias), "shared with another node"),
    ],
)  # fmt: skip
def test_a_stream_that_others_see_is_left_alone(change: Callable[[ir.Model, Lifted], None], reason: str) -> None:
    model, lifted = _lifted(_block())
    change(model, lifted)
    _refuses(model, lifted, reason)


def _refuses(model: ir.Model, lifted: Lifted, reason: str) -> None:
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    report = rotate_stream(lifted)
    assert not report.done and len(report.refused) == 1
    assert re.search(reason, report.refused[0]), report.refused[0]
    assert all(value.const_value is held[name] for name, value in model.graph.initializers.items())


def test_a_shift_that_no_bias_takes() -> None:
    model, lifted = _lifted(_block(bias=False))
    _refuses(model, lifted, "has no bias")
    (norm,) = lifted.norms
    replace_constant(norm.bias, np.zeros(WIDTH, np.float32))  # without a shift there is nothing to take
    expected = run_model(model, _rows())
    assert rotate_stream(lifted).done
    assert relative_error(expected, run_model(model, _rows())) < EXACT


@pytest.mark.parametrize("name", ["nano", "tiny_sam"])
def test_a_decoder_is_left_alone(name: str, request: pytest.FixtureRequest) -> None:
    model, lifted = _lifted(request.getfixturevalue(name) / "decoder.onnx")
    _refuses(model, lifted, "norm .*: Add .* reads it too")


@pytest.mark.parametrize("operands", ["qk", "v", "qkv"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_heads(part: str, operands: str, nano: Path, request: pytest.FixtureRequest) -> None:
    model, lifted = _lifted(nano / f"{part}.onnx")
    feed = request.getfixturevalue(f"{part}_feed")
    expected, site = run_model(model, feed), lifted.attentions[0]
    before = {name: _tensor(model, tensor, feed) for name, tensor in zip("qkv", site.operand_names, strict=True)}
    report = rotate_heads(lifted, operands)
    groups = [group for group in ("q, k", "v") if group[0] in operands]
    assert report.done == [f"{site.name}: {group}" for site in lifted.attentions for group in groups]
    assert not report.refused
    assert relative_error(expected, run_model(model, feed)) < EXACT
    for name, tensor in zip("qkv", site.operand_names, strict=True):
        after = _tensor(model, tensor, feed)
        changed = relative_error([before[name]], [after])
        assert changed > 0.3 if name in operands else changed < EXACT
        lengths = [np.linalg.norm(rows, axis=-1) for rows in (before[name], after)]
        assert relative_error(lengths[:1], lengths[1:]) < EXACT


def test_heads_that_others_see_are_left_alone(nano: Path, encoder_feed: Feed) -> None:
    model, lifted = _lifted(nano / "encoder.onnx")
    first, second, third = lifted.attentions[:3]
    assert first.tables and second.q and third.out
    for value in (first.tables[0], second.q.linear.output, third.out.linear.weight):
        model.graph.append(ir.node("Abs", [value]))
    expected = run_model(model, encoder_feed)
    report = rotate_heads(lifted)
    reasons = (
        f"{first.name}: its relative position tables are shared",
        f"{second.name}: the output of the linear that makes q is read by more",
        f"{third.name}: {third.out.linear.weight.name} is shared",
    )
    for reason in reasons:
        assert any(reason in line for line in report.refused), reason
    left = {f"{first.name}: q, k", f"{second.name}: q, k", f"{third.name}: v"}
    assert not left & set(report.done)
    assert relative_error(expected, run_model(model, encoder_feed)) < EXACT
