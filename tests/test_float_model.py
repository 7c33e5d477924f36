# SPDX-License-Identifier: Apache-2.0
"""A model that something has quantized is refused by what it is, wherever in the model it is."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from samq_onnx.errors import UserError
from samq_onnx.float_model import check_float


def _model(domain: str, op_type: str, in_function: bool = False) -> ir.Model:
    x = ir.Value(name="x")
    node = ir.Node(domain, op_type, [x])
    other = ir.Node("local", "wrapped", [ir.Value(name="y")])
    inner = ir.Graph([x], [node.outputs[0]], nodes=[node])
    if not in_function:
        return ir.Model(inner, ir_version=8, producer_name="somebody")
    functions = [ir.Function("local", "wrapped", graph=inner, attributes=[])]
    graph = ir.Graph(list(other.inputs), list(other.outputs), nodes=[other])
    return ir.Model(graph, ir_version=8, producer_name="somebody", functions=functions)


@pytest.mark.parametrize(
    ("domain", "op_type"),
    [
        ("", "QuantizeLinear"), ("", "DequantizeLinear"), ("", "DynamicQuantizeLinear"), ("", "QLinearMatMul"),
        ("", "QLinearConv"), ("", "MatMulInteger"), ("", "ConvInteger"), ("com.microsoft", "MatMulNBits"),
        ("com.microsoft", "QGemm"), ("com.microsoft", "QAttention"), ("com.microsoft", "DynamicQuantizeMatMul"),
        ("com.microsoft", "MatMulIntegerToFloat"), ("com.microsoft", "MatMulBnb4"), ("samq", "QLinear"),
        ("com.microsoft", "GatherBlockQuantized"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_function", [False, True])
def test_quantized_models_are_refused(domain: str, op_type: str, in_function: bool) -> None:
    said = rf"m\.onnx: is already quantized, by somebody \(1 {op_type}\); give the float model"
    with pytest.raises(UserError, match=said):
        check_float(_model(domain, op_type, in_function), Path("m.onnx"))


@pytest.mark.parametrize("op_type", ["QuickGelu", "MatMul", "FusedMatMul", "Gelu", "Attention"])
def test_float_models_are_not(op_type: str) -> None:
    check_float(_model("com.microsoft", op_type), Path("m.onnx"))
