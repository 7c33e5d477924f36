# SPDX-License-Identifier: Apache-2.0
"""Quantize a layer norm while its rows are in the cache, so that its float output never goes through memory.

    Quantize(LayerNormalization(x))  ->  LayerNormQuantize(x, weight, bias, scale, zero point)

Below 8 bits with the Clip that follows. Not exact: the operator divides by the scale before it multiplies, and takes
means in double, so few codes are one step away, at ties. Takes norms over the last axis with constants [C], and one
scale for all; refuses norms that something else reads too, whose mean or deviation is read, and other types. A Clip
that is not one to a number of bits, or not the only reader of the codes, stays behind. The inputs are those of the
parts, so that `unfuse_norm` can put them back.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.ops import DOMAIN
from samq_onnx.passes.graph import array_of, constant, only_reader, scalar_of
from samq_onnx.passes.lift.norm import epsilon_of
from samq_onnx.passes.lower.build import FLOAT_OUTPUT, Builder, take_place
from samq_onnx.passes.lower.qlinear import has_many_rows
from samq_onnx.passes.report import Report

__all__ = ["NORM", "fuse_norms", "unfuse_norm"]

NORM = "LayerNormQuantize"
CONTAINER_BITS = 8
CLIPS = {2**bits - 1: bits for bits in range(1, CONTAINER_BITS)}


def _norm(codes: ir.Node) -> ir.Node | None:
    """The norm that ``codes`` reads."""
    node = codes.inputs[0].producer() if codes.inputs[0] is not None else None
    return node if node is not None and node.op_type == "LayerNormalization" and not node.domain else None


def _refusal(norm: ir.Node, codes: ir.Node) -> str | None:
    """Why the operator cannot take the place of a norm and of ``codes``."""
    if only_reader(norm.outputs[0]) is None:
        return "something else reads it"
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        return "its mean or deviation is read"
    _, scale, zero = codes.inputs[:3]
    if not _is_number(scale, ir.DataType.FLOAT) or not _is_number(zero, ir.DataType.UINT8):
        return "its codes have no one scale of float32, or are not u8"
    return None if _over_rows(norm) else "it is not over the last axis alone, with constants of float32"


def _is_number(value: ir.Value | None, dtype: ir.DataType) -> bool:
    array = array_of(value)
    return array is not None and array.size == 1 and value is not None and value.dtype == dtype


def _over_rows(node: ir.Node) -> bool:
    """Whether a norm is over the last axis alone, with float constants of that length."""
    x, *constants = node.inputs
    if x is None or x.shape is None or not len(x.shape) or not isinstance(x.shape[-1], int):
        return False
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if axis not in (-1, len(x.shape) - 1):
        return False
    arrays = [array_of(value) for value in constants if value is not None]
    fitting = [array is not None and array.dtype == np.float32 and array.shape == (x.shape[-1],) for array in arrays]
    return bool(fitting) and all(fitting)


def _clip(codes: ir.Value) -> tuple[ir.Node, int] | None:
    """The Clip to a number of bits that alone reads ``codes``, and that number."""
    found = only_reader(codes, "Clip")
    if found is None or len(found[0].inputs) != 3:
        return None
    node = found[0]
    low, high = node.inputs[1:]
    if not _is_number(low, ir.DataType.UINT8) or not _is_number(high, ir.DataType.UINT8):
        return None
    lowest, largest = scalar_of(low), scalar_of(high)
    return (node, CLIPS[largest]) if lowest == 0 and largest in CLIPS else None


def _fused(builder: Builder, norm: ir.Node, codes: ir.Node) -> None:
    """Put one node in the place of ``norm``, of ``codes``, which alone reads it, and of a Clip."""
    middle, clip = norm.outputs[0], _clip(codes.outputs[0])
    last, bits = clip if clip is not None else (codes, CONTAINER_BITS)
    output, x, weight = last.outputs[0], norm.inputs[0], norm.inputs[1]
    bias = norm.inputs[2] if len(norm.inputs) > 2 else None
    if bias is None:
        bias = builder.constant(f"{middle.name}_no_bias", np.zeros_like(constant(weight)))
    attributes = {"epsilon": epsilon_of(norm), "bits": bits}
    made = ir.node(NORM, [x, weight, bias, *codes.inputs[1:3]], attributes, domain=DOMAIN, name=norm.name)
    made.metadata_props[FLOAT_OUTPUT] = middle.name or ""
    result = made.outputs[0]
    result.shape, result.type = output.shape, ir.TensorType(ir.DataType.UINT8)
    builder.graph.insert_before(last, made)
    take_place(builder.graph, output, result, [*([last] if last is not codes else []), codes, norm])


def fuse_norms(builder: Builder) -> Report:
    """Fuse norms with the quantization of what they give, in place."""
    report = Report("norms that give codes")
    for node in list(builder.graph):
        if node.op_type == "QuantizeLinear" and not node.domain and len(node.inputs) > 2:
            norm = _norm(node)
            if norm is None:
                continue
            reason, name = _refusal(norm, node), norm.name or ""
            if reason is None:
                report.done.append(name)
                _fused(builder, norm, node)
            elif has_many_rows(norm.outputs[0]):
                report.refuse(name, f"stays float: {reason}")
    return report


def unfuse_norm(graph: ir.Graph, node: ir.Node) -> None:
    """Put back the parts of a `LayerNormQuantize`, in place."""
    x, weight, bias, scale, zero = node.inputs
    output, bits = node.outputs[0], node.attributes["bits"].as_int()
    epsilon = node.attributes["epsilon"].as_float()
    norm = ir.node("LayerNormalization", [x, weight, bias], {"axis": -1, "epsilon": epsilon}, name=node.name)
    middle = norm.outputs[0]
    middle.name = node.metadata_props[FLOAT_OUTPUT]
    middle.shape, middle.type = output.shape, ir.TensorType(ir.DataType.FLOAT)
    parts = [norm, ir.node("QuantizeLinear", [middle, scale, zero])]
    if bits < CONTAINER_BITS:
        builder, unclipped = Builder(graph), parts[-1].outputs[0]
        unclipped.name = f"{output.name}_unclipped"
        unclipped.shape, unclipped.type = output.shape, output.type
        low = builder.constant(f"{middle.name}_qmin", np.array(0, np.uint8))
        high = builder.constant(f"{middle.name}_qmax", np.array(2**bits - 1, np.uint8))
        parts.append(ir.node("Clip", [unclipped, low, high]))
    result = parts[-1].outputs[0]
    result.shape, result.type = output.shape, output.type
    graph.insert_before(node, parts)
    take_place(graph, output, result, [node])
