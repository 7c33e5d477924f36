# SPDX-License-Identifier: Apache-2.0
"""Calls of functions that lack an input or an attribute: refused before ONNX Runtime sees the body, or by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from runtime_tests.one_node import build
from runtime_tests.test_linear import feed
from runtime_tests.test_runtime import child
from samq_onnx.errors import UserError
from samq_onnx.ops import DOMAIN
from samq_onnx.runtime import open_session

GIVEN = feed((3,), 4, 5) | {"residual": np.ones((3, 5), np.float32)}


def model() -> onnx.ModelProto:
    return build("QLinearResidual", GIVEN, {})


def quantizing() -> onnx.ModelProto:
    given = feed((3,), 4, 5) | {"y_zero": np.ones(5, np.float32)}
    return build("QLinearQuantize", given, {"bits": 8})


def blank(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[4] = ""


def dropped(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[4:]


def more(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.append("x")


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize(("change", "message"), [
    (blank, "lacks its input residual"), (dropped, "lacks its input residual"), (more, "has more inputs or outputs"),
])  # fmt: skip
def test_inputs(change: Callable[[onnx.ModelProto], None], message: str, as_file: bool, tmp_path: Path) -> None:
    made = model()
    change(made)
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=f"node the_QLinearResidual {message}") as caught:
        open_session(tmp_path / "m.onnx" if as_file else made.SerializeToString(), native=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="ONNX Runtime cannot load it"):
        open_session(made.SerializeToString())


@pytest.mark.parametrize(("attribute", "message"), [
    (None, "lacks its attribute bits"),
    (helper.make_attribute("bits", 9), "bits 9, which must be one of 1"),
    (helper.make_attribute("bits", 8.0), "bits that is not an integer"),
])  # fmt: skip
def test_attributes(attribute: onnx.AttributeProto | None, message: str) -> None:
    made = quantizing()
    node = made.graph.node[0]
    del node.attribute[:]
    if attribute is not None:
        node.attribute.append(attribute)
    with pytest.raises(UserError, match=message):
        open_session(made.SerializeToString(), native=False)


def test_calls_in_subgraphs_and_functions() -> None:
    made = model()
    node = made.graph.node[0]
    dropped(made)
    branch = helper.make_graph([node], "branch", [], [helper.make_empty_tensor_value_info("out")])
    choice = helper.make_node("If", ["choice"], ["y"], then_branch=branch, else_branch=branch)
    made.graph.node.pop()
    made.graph.node.append(choice)
    made.graph.input.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    with pytest.raises(UserError, match="lacks its input residual"):
        open_session(made.SerializeToString(), native=False)

    made = model()
    inner = made.graph.node[0]
    outer = helper.make_function(
        "other", "Outer", list(inner.input), ["out"], [inner],
        [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)],
    )  # fmt: skip
    made.functions.append(outer)
    made.opset_import.append(helper.make_opsetid("other", 1))
    call = helper.make_node("Outer", list(inner.input), ["out"], domain="other")
    made.graph.node[0].CopyFrom(call)
    assert open_session(made.SerializeToString(), native=False).run(None, GIVEN)[0].shape == (3, 5)
    dropped(made)
    with pytest.raises(UserError, match="node Outer lacks its input residual"):
        open_session(made.SerializeToString(), native=False)


ATTEMPT = """
import onnxruntime
from runtime_tests.one_node import build
from runtime_tests.test_runtime import CASES

options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for op, feed, attributes in CASES:
    for index, name in enumerate(feed):
        for dropped in (False, True):
            model = build(op, feed, attributes)
            node = model.graph.node[0]
            node.input[index] = ""
            if dropped:
                del node.input[index:]
            try:
                session = onnxruntime.InferenceSession(model.SerializeToString(), options)
                session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})
                print(op, name)
            except Exception:
                pass
"""


def test_onnx_runtime_alone_refuses_nodes_that_lack_an_input() -> None:
    assert child(ATTEMPT) == ""


def test_valid_models_load_without_the_library() -> None:
    options = ort.SessionOptions()
    for made in (model(), quantizing()):
        open_session(made.SerializeToString(), native=False)
        ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
