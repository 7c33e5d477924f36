# SPDX-License-Identifier: Apache-2.0
"""A softmax of a converted opset is one over the last axis, and of another axis it stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from samq_onnx.passes.lift.simplify import simplify
from samq_onnx.passes.lift.softmax import unflatten

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[{sides}] x) => (float[{sides}] y) {{ a = Relu (x)
  flat = {flat}
  soft = {kind} (flat)
  shape = Shape (a)
  {back}
  y = {last} (b) }}"""
FLATTEN, RESHAPE = "Flatten <axis = 2> (a)", "Reshape (a, rows)"
BACK = "b = Reshape (soft, shape)"


def net(
    sides: str = "2, 3, 5", flat: str = FLATTEN, kind: str = "Softmax", last: str = "Relu", **more: str
) -> onnx.ModelProto:
    text = NET.format(sides=sides, flat=flat, kind=kind, last=last, back=more.get("back", BACK))
    model = onnx.parser.parse_model(text)
    for name, values in {"rows": [-1, 5], "other": [3, 2, 5], "fixed": [2, 3, 5], "long": [6, 5]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    return model


def unflattened(source: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    model = ir.from_proto(source)
    simplify(model)
    count = unflatten(model)
    assert unflatten(model) == 0
    simplify(model)
    return count, ir.to_proto(model)


def run(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, 3, 5), np.float32)
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "source",
    [
        net(),
        net("batch, 3, n"),
        net("batch, n, 5", RESHAPE),
        net(last="Identity"),
        net("batch, 3, n", last="Identity"),
        net(back="b = Reshape (soft, fixed)"),
        net("batch, 3, n", kind="LogSoftmax <axis = 1>"),
        net("batch, n, 5", "Reshape (a, long)"),
    ],
)
def test_the_last_axis(source: onnx.ModelProto) -> None:
    count, made = unflattened(source)
    assert count == 1
    kinds = {node.op_type for node in made.graph.node}
    assert not kinds & {"Flatten", "Reshape"} and kinds & {"Softmax", "LogSoftmax"}
    assert [value.name for value in made.graph.output] == ["y"]
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(run(made), run(source))


@pytest.mark.parametrize(
    "source",
    [
        net("batch, n, 5", "Flatten <axis = 1> (a)"),
        net("batch, 3, n", RESHAPE),
        net("batch, 3, n", back="b = Reshape (soft, other)"),
        net("batch, 3, n", kind="Softmax <axis = 0>"),
        net("batch, 3, n", back="e = Relu (flat)  c = Reshape (soft, shape)  d = Reshape (e, shape)  b = Add (c, d)"),
        net("batch, 3, n", back="e = Relu (soft)  c = Reshape (soft, shape)  d = Reshape (e, shape)  b = Add (c, d)"),
    ],
    ids=["several axes", "rows of another length", "another shape", "columns", "flat read twice", "read twice"],
)
def test_what_stays(source: onnx.ModelProto) -> None:
    count, made = unflattened(source)
    assert count == 0
    np.testing.assert_allclose(run(made), run(source), rtol=1e-6)
