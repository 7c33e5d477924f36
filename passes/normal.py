# SPDX-License-Identifier: Apache-2.0
"""Bring a model as people have it to the form that lifting speaks of: the same for every exporter, method and target.

Weights are constants, functions are inlined, all is computed in float32, fusions of ONNX Runtime are taken apart, the
opset holds what lowering writes, and what can be computed beforehand is.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from samq_onnx.ops import DOMAIN
from samq_onnx.passes.aside import defaults_aside
from samq_onnx.passes.graph import input_of
from samq_onnx.passes.lift.expand import expand
from samq_onnx.passes.lift.precision import single_precision
from samq_onnx.passes.lift.simplify import simplify
from samq_onnx.passes.lift.softmax import unflatten
from samq_onnx.passes.lower.opset import one_domain, raise_opset
from samq_onnx.passes.report import Report

__all__ = ["normalise"]

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})


def normalise(model: ir.Model, weight_bits: int) -> Report:
    """Bring a model to that form, in place; its inputs and outputs stay.

    Args:
        weight_bits: of the narrowest weights that it will hold.

    Raises:
        UserError: an operator whose newer form has other values, a graph that cannot be cleaned, or a layout of one
            machine.
    """
    report = Report("model file")
    one_domain(model)
    listed = _unlist_weights(model)
    if listed:
        report.facts["weights that were listed among the inputs"] = listed
    with defaults_aside(model):
        common.TopologicalSortPass()(model)  # ONNX Runtime writes nodes in any order
        common.InlinePass(lambda function: function.domain != DOMAIN)(model)
        halves = single_precision(model)
        if halves:
            report.facts["constants that were of half precision"] = halves
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        report.refused += expand(model)
        raise_opset(model, weight_bits)
    simplify(model)
    if unflatten(model):
        simplify(model)
    return report


def _unlist_weights(model: ir.Model) -> int:
    """Let weights be no inputs, where a file lists all its constants among the inputs, as old exporters do.

    A single input that has a default is one that people may feed, and stays one.

    Returns:
        How many there were.
    """
    graph = model.graph
    listed = [value for value in graph.inputs if value.is_initializer()]
    if not listed or len(listed) != len(graph.initializers) or not any(map(_is_weight, listed)):
        return 0
    graph.inputs[:] = [value for value in graph.inputs if not value.is_initializer()]
    return len(listed)


def _is_weight(value: ir.Value) -> bool:
    return any(node.op_type in PRODUCTS and input_of(node, 1) is value for node in value.consumers())
