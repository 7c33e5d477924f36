# SPDX-License-Identifier: Apache-2.0
"""Let integer nodes do what follows them, so that their float output never goes through memory.

    QLinear(x) + residual         ->  QLinearResidual(x, residual)
    Quantize(Attention on codes)  ->  the attention's form that gives codes

Exact: kernels take the same steps. Refuses outputs that something else reads too, additions that broadcast, and scales
per channel. `unfuse` puts the parts back under their names, for whoever wants to see the float values.
"""

from __future__ import annotations

import onnx_ir as ir

from samq_onnx.ops import CODE_ATTENTION, DOMAIN, TERMS
from samq_onnx.passes.graph import only_reader
from samq_onnx.passes.lift.views import dims_of
from samq_onnx.passes.lower.build import FLOAT_OUTPUT, Builder, take_place
from samq_onnx.passes.lower.norm import NORM, unfuse_norm
from samq_onnx.passes.report import Report

__all__ = ["float_outputs", "fuse", "unfuse"]

ATTENTION = {f"{name}{terms}" for name in CODE_ATTENTION for terms in TERMS}
LINEAR, WITH_RESIDUAL, QUANTIZING = "QLinear", "QLinearResidual", "Quantize"


def _fused(builder: Builder, node: ir.Node, last: ir.Node, op_type: str, further: list[ir.Value]) -> None:
    """Put one node in the place of ``node`` and of ``last``, which alone reads it."""
    middle, output = node.outputs[0], last.outputs[0]
    inputs = [*(value for value in node.inputs if value is not None), *further]
    made = ir.Node(DOMAIN, op_type, inputs, node.attributes.values(), name=node.name)
    made.metadata_props[FLOAT_OUTPUT] = middle.name or ""
    result = made.outputs[0]
    result.shape, result.type = output.shape, output.type
    builder.graph.insert_before(last, made)
    take_place(builder.graph, output, result, [last, node])


def _alone(value: ir.Value | None, op_types: set[str]) -> ir.Node | None:
    """The samq node of these types whose output has one reader."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != DOMAIN or node.op_type not in op_types:
        return None
    return node if only_reader(value) is not None else None


def _with_residual(builder: Builder, add: ir.Node, report: Report) -> None:
    a, b = add.inputs
    reason = None
    for summand, residual in ((a, b), (b, a)):
        maker = summand.producer() if summand is not None else None
        if maker is None or maker.domain != DOMAIN or maker.op_type != LINEAR or residual is None:
            continue
        node, shape, other = _alone(summand, {LINEAR}), dims_of(summand) or [None], dims_of(residual) or [None]
        told = None not in (*shape, *other)
        if node is not None and told and other == shape:
            report.done.append(add.name or "")
            return _fused(builder, node, add, WITH_RESIDUAL, [residual])
        apart = "the other summand broadcasts" if told else "shapes are not known"
        reason = "something else reads the linear" if node is None else apart
    if reason is not None:
        report.refuse(add.name or "", f"the addition stays apart from its linear: {reason}")


def _quantizing(builder: Builder, quantize: ir.Node, report: Report) -> None:
    x, scale, zero = quantize.inputs[:3]
    node = _alone(x, ATTENTION)
    if node is None or scale is None or zero is None or scale.shape is None or zero.dtype != ir.DataType.UINT8:
        return
    if len(scale.shape) == 0:
        report.done.append(node.name or "")
        _fused(builder, node, quantize, f"{node.op_type}{QUANTIZING}", [scale, zero])


def fuse(builder: Builder) -> Report:
    """Fuse what follows integer nodes, in place."""
    report = Report("fusion")
    for node in list(builder.graph):
        if node.domain:
            continue
        if node.op_type == "Add":
            _with_residual(builder, node, report)
        elif node.op_type == "QuantizeLinear" and len(node.inputs) > 2:
            _quantizing(builder, node, report)
    for node in builder.graph:
        if node.domain == DOMAIN and node.op_type in ATTENTION:
            report.refuse(node.name or "", "attention gives floats: more reads it than one quantization")
    return report


def float_outputs(graph: ir.Graph) -> set[str]:
    """The values that `unfuse` would give back."""
    return {node.metadata_props[FLOAT_OUTPUT] for node in graph if FLOAT_OUTPUT in node.metadata_props}


def unfuse(model: ir.Model) -> None:
    """Undo `fuse` and `fuse_norms`, in place; the model needs its functions anew."""
    graph = model.graph
    for node in [node for node in graph if FLOAT_OUTPUT in node.metadata_props]:
        if node.op_type == NORM:
            unfuse_norm(graph, node)
            continue
        adds = node.op_type == WITH_RESIDUAL
        further = 1 if adds else 2
        op_type = LINEAR if adds else node.op_type.removesuffix(QUANTIZING)
        first = ir.Node(DOMAIN, op_type, node.inputs[:-further], node.attributes.values(), name=node.name)
        middle, output = first.outputs[0], node.outputs[0]
        middle.name = node.metadata_props[FLOAT_OUTPUT]
        middle.shape, middle.type = output.shape, ir.TensorType(ir.DataType.FLOAT)
        last = ir.node("Add" if adds else "QuantizeLinear", [middle, *node.inputs[-further:]])
        result = last.outputs[0]
        result.shape, result.type = output.shape, output.type
        graph.insert_before(node, [first, last])
        take_place(graph, output, result, [node])
