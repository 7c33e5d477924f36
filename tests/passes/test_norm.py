# SPDX-License-Identifier: Apache-2.0
"""Norms are quantized in one pass where nothing else reads them; undone, the parts come back under their names."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samq_onnx import ops
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.fuse import float_outputs, fuse, unfuse
from samq_onnx.passes.lower.norm import fuse_norms
from samq_onnx.runtime import open_session

RANDOM = np.random.default_rng(0)
SHAPE = (2, 9, 24)
CONSTANTS = {
    "weight": RANDOM.uniform(0.5, 1.5, 24).astype(np.float32), "bias": RANDOM.standard_normal(24, dtype=np.float32),
    "one": np.ones(1, np.float32), "none": np.zeros(1, np.float32), "square": np.ones((9, 24), np.float32),
    "scale": np.float32(0.019), "zero": np.uint8(121), "signed": np.int8(3),
    "channel_scale": np.full(24, 0.019, np.float32), "channel_zero": np.full(24, 121, np.uint8),
    "low": np.uint8(0), "high": np.uint8(63), "odd": np.uint8(40),
}  # fmt: skip
NORM = "normed = LayerNormalization <axis = -1, epsilon = 1e-6> (x, weight, bias)"
QUANTIZE = "codes = QuantizeLinear (normed, scale, zero)"
CLIP = "clipped = Clip (codes, low, high)"
FUSED = {
    "8 bits": ([NORM, QUANTIZE], ["normed", "codes"]),
    "last axis": (["normed = LayerNormalization <axis = 2> (x, weight, bias)", QUANTIZE], ["normed", "codes"]),
    "fewer bits": ([NORM, QUANTIZE, CLIP], ["normed", "clipped_unclipped", "clipped"]),
    "no bias": (["normed = LayerNormalization (x, weight)", QUANTIZE], ["normed", "codes"]),
    "statistics that nothing reads": (
        ["normed, mean, inv = LayerNormalization (x, weight, bias)", QUANTIZE],
        ["normed", "codes"],
    ),
}
KEPT_CLIPS = {
    "other clip": [NORM, QUANTIZE, "clipped = Clip (codes, low, odd)"],
    "clip from below": [NORM, QUANTIZE, "clipped = Clip (codes, odd, high)"],
    "codes read twice": [NORM, QUANTIZE, CLIP, "other = Clip (codes, low, odd)"],
}
REFUSED = {
    "other axis": ["normed = LayerNormalization <axis = 1> (x, square, square)", QUANTIZE],
    "broadcast weight": ["normed = LayerNormalization (x, one, none)", QUANTIZE],
    "computed weight": ["gain = Neg (weight)", "normed = LayerNormalization (x, gain, bias)", QUANTIZE],
    "scale per channel": [NORM, "codes = QuantizeLinear <axis = 2> (normed, channel_scale, channel_zero)"],
    "signed codes": [NORM, "codes = QuantizeLinear (normed, scale, signed)"],
    "no zero point": [NORM, "codes = QuantizeLinear (normed, scale)"],
    "quantized twice": [NORM, QUANTIZE, "codes_2 = QuantizeLinear (normed, scale, zero)"],
    "second reader": [NORM, QUANTIZE, "other = Relu (normed)"],
    "mean read": ["normed, mean = LayerNormalization (x, weight, bias)", QUANTIZE, "other = Neg (mean)"],
    "other source": ["normed = Relu (x)", QUANTIZE],
}


def _model(lines: list[str], outputs: list[str] | None = None) -> ir.Model:
    """Statements on float x; what the last gives, or ``outputs``, are those of the graph."""
    text = '<ir_version: 10, opset_import: ["" : 17, "samq" : 1]>\n'
    model = onnx.parser.parse_model(f"{text} norms (float[2, 9, 24] x) => () {{ {' '.join(lines)} }}")
    for name, array in CONSTANTS.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for name in outputs or [lines[-1].split()[0]]:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value for value in inferred.graph.value_info}
    for output in inferred.graph.output:
        if not output.HasField("type"):
            output.CopyFrom(known[output.name])
    return ir.from_proto(inferred)


def _run(model: ir.Model, native: bool = True) -> list[np.ndarray]:
    ops.add_functions(model)
    x = 2 * np.random.default_rng(1).standard_normal(SHAPE, dtype=np.float32)
    return open_session(ir.to_proto(model).SerializeToString(), native=native).run(None, {"x": x})


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _names(model: ir.Model) -> list[str | None]:
    return [value.name for node in model.graph for value in node.outputs]


@pytest.mark.parametrize("name", FUSED)
def test_one_node_gives_the_codes(name: str) -> None:
    lines, names = FUSED[name]
    model = _model(lines)
    kinds, (before,) = _kinds(model), _run(model)
    output = model.graph.outputs[0].name
    fuse_norms(Builder(model.graph))
    assert _kinds(model) == ["LayerNormQuantize"]
    assert [value.name for value in model.graph.outputs] == _names(model) == [output]
    assert float_outputs(model.graph) == {"normed"}
    (native,), (body,) = _run(model, native=True), _run(model, native=False)
    np.testing.assert_array_equal(native, body)
    difference = np.abs(native.astype(int) - before)
    assert difference.max() <= 1 and difference.mean() < 0.01
    assert len(np.unique(before)) > 40
    unfuse(model)
    assert _kinds(model) == kinds
    assert _names(model) == names
    np.testing.assert_array_equal(_run(model), [before])


@pytest.mark.parametrize("name", KEPT_CLIPS)
def test_other_clips_stay_behind(name: str) -> None:
    lines = KEPT_CLIPS[name]
    model = _model(lines, [line.split()[0] for line in lines[2:]])
    before = _run(model)
    fuse_norms(Builder(model.graph))
    assert _kinds(model) == ["LayerNormQuantize", *["Clip"] * (len(lines) - 2)]
    assert model.graph[0].attributes["bits"].as_int() == 8
    for made, expected in zip(_run(model), before, strict=True):
        assert np.abs(made.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_operator_cannot_give_stays(name: str) -> None:
    model = _model(REFUSED[name])
    kinds = _kinds(model)
    fuse_norms(Builder(model.graph))
    assert _kinds(model) == kinds


@pytest.mark.parametrize("output", ["normed", "codes"])
def test_what_the_graph_gives_stays(output: str) -> None:
    model = _model([NORM, QUANTIZE, CLIP], [output, "clipped"])
    fuse_norms(Builder(model.graph))
    kept = ["LayerNormalization", "QuantizeLinear"] if output == "normed" else ["LayerNormQuantize"]
    assert _kinds(model) == [*kept, "Clip"]


def test_bodies_hold_no_norm_that_onnx_runtime_would_fuse_with_a_sum() -> None:
    """Where the operator reads an Add, kernel and body see the same sum."""
    model = _model(["sum = Add (x, x)", NORM.replace("(x,", "(sum,"), QUANTIZE])
    fuse(Builder(model.graph))
    fuse_norms(Builder(model.graph))
    np.testing.assert_array_equal(_run(model, native=True), _run(model, native=False))
