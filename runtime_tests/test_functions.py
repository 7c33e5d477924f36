# SPDX-License-Identifier: Apache-2.0
"""Function bodies: valid ONNX at every opset, added as needed, and fused by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from runtime_tests.one_node import build, code_bias, code_feed, code_tables, float_feed, without_scale
from runtime_tests.test_layer_norm import feed as norm_feed
from samq_onnx import ops
from samq_onnx.errors import UserError
from samq_onnx.runtime import open_session

CODES = code_feed((2, 12), 12, 16)
LOG = {"scale": 0.25, "tau": 2, "bits": 8}


@pytest.mark.parametrize("opset", [13, 17, 18, 19, 20, 21, 23])
@pytest.mark.parametrize(("op", "feed", "attributes"), [
    ("QAttentionRelPos", CODES | code_tables(3, 4, 2, 6, 16), LOG),
    ("QAttentionBias", CODES | code_bias(2, 12, 12), LOG),
    ("LayerNormQuantize", norm_feed((2, 5, 24)), {"epsilon": 1e-6, "bits": 8}),
])  # fmt: skip
def test_bodies_are_valid_and_equal_at_every_opset(
    op: str, feed: dict[str, Any], attributes: dict[str, float], opset: int
) -> None:
    model = build(op, feed, attributes, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    expected = open_session(build(op, feed, attributes).SerializeToString(), native=False).run(None, feed)[0]
    np.testing.assert_array_equal(open_session(model.SerializeToString(), native=False).run(None, feed)[0], expected)


def test_only_what_is_used_is_added() -> None:
    model = ir.from_proto(build("Attention", float_feed((1, 3), 3, 8), {"scale": 1.0}))
    assert {key[1] for key in model.functions} == {
        "Attention",
        "agree",
        "arranged",
        "flatten",
        "leading",
        "require",
        "unflatten",
    }
    model.graph[0].domain = "com.example"
    ops.add_functions(model)
    assert not model.functions


def test_nested_functions_are_added() -> None:
    model = build("QAttention", CODES, LOG)
    assert {"QAttention", "fixedPowers", "ShiftLutMatMul"} <= {function.name for function in model.functions}
    assert [entry.version for entry in model.opset_import if entry.domain == ops.DOMAIN] == [ops.VERSION]


def test_unknown_operators_and_old_opsets_are_refused() -> None:
    feed = float_feed((1, 3), 3, 8)
    with pytest.raises(UserError, match=r"samq\.Unheard is not one of this version"):
        build("Unheard", feed, {})
    with pytest.raises(UserError, match="opset 12"):
        build("Attention", feed, {"scale": 1.0}, opset=12)


def _optimized_types(model: onnx.ModelProto, path: Path, native: bool) -> list[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    open_session(model.SerializeToString(), native=native, options=options)
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("op", ["QAttention", "UniformAttention", "LogRowAttention", "UniformRowAttention"])
def test_the_library_is_used_when_registered_and_bodies_run_in_integers(op: str, tmp_path: Path) -> None:
    attributes = {name: value for name, value in LOG.items() if name != "tau" or not op.startswith("Uniform")}
    model = build(op, without_scale(CODES) if "Row" in op else CODES, attributes)
    assert _optimized_types(model, tmp_path / "native.onnx", native=True) == [op]
    without = _optimized_types(model, tmp_path / "body.onnx", native=False)
    assert op not in without
    assert {"MatMulInteger", "MatMulIntegerToFloat"} & set(without)
    assert not {"DequantizeLinear", "Softmax"} & set(without)
