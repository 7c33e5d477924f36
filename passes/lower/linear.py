# SPDX-License-Identifier: Apache-2.0
"""Lower linears to what runs in integers: products of many rows as `samq_onnx.passes.lower.qlinear` says, others as
the QDQ pattern that ONNX Runtime takes.

    x -> Quantize(u8) [-> Clip] -> Dequantize -+
    W (s8, or int4 -> Cast to s8) -> Dequantize +-> MatMul/Gemm/Conv -> Add(Dequantize(int32 bias))

The int32 bias carries the scale s_x * s_w, per output channel; ONNX Runtime uses it without looking at the scale
it is given, so it is derived here, where both factors are final. A 4-bit weight is stored as packed int4 and cast
to int8 in the graph: ONNX Runtime folds the cast when it loads the model and keeps the integer kernel, which it
loses for an int4 weight that is dequantized directly. A convolution stays integer only with a quantized output.

Handles every linear of the plan; refuses one whose scales are beyond float32, and sums of products and bias that may
not fit into 32 bits at the scale they must have.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Lifted, Linear
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.qlinear import IntegerLinears
from samq_onnx.passes.report import Report
from samq_onnx.plan import LinearPlan, QuantPlan

__all__ = ["lower_linears"]

INT32_MAX = 2**31 - 1
LARGEST_PRODUCT = 255 * 128  # of an activation code and a weight code


def _refusal(linear: Linear, unit: np.ndarray, bias_codes: np.ndarray | None) -> str | None:
    if not (np.isfinite(unit) & (unit >= np.finfo(np.float32).tiny)).all():
        return "its scales are beyond what float32 holds"
    room = INT32_MAX - LARGEST_PRODUCT * linear.in_features
    if room < 0:
        return f"sums of {linear.in_features} products do not fit into 32 bits"
    if bias_codes is not None and np.abs(bias_codes).max(initial=0) > room:
        return "its bias does not fit into 32 bits"
    return None


def _lower(builder: Builder, linear: Linear, plan: LinearPlan, nodes: IntegerLinears | None) -> str | None:
    node = linear.node
    scale = np.asarray(plan.weight.scale, np.float32)
    per_channel = scale.size > 1
    with np.errstate(all="ignore"):
        bias_scale = np.float32(plan.input.scale) * scale
        bias_codes = None
        if linear.bias is not None:
            bias_codes = np.rint(constant(linear.bias).astype(np.float64) / bias_scale)
    reason = _refusal(linear, bias_scale, bias_codes)
    if reason is not None:
        return reason

    codes = plan.weight.encode(constant(linear.weight), linear.out_axis)
    integer = nodes is not None and nodes.takes(linear)
    if integer and linear.out_axis == 0:
        codes = codes.T
    name = linear.weight.name
    if plan.weight.bits <= 4:
        packed = builder.constant(f"{name}_int4", ir.tensor(codes, dtype=ir.DataType.INT4))
        stored = ir.Value(name=f"{packed.name}_int8", type=ir.TensorType(ir.DataType.INT8), shape=ir.Shape(codes.shape))
        builder.node("Cast", [packed], stored, None, {"to": int(ir.DataType.INT8)})
    else:
        stored = builder.constant(f"{name}_int8", codes)
    x = builder.quantize(node.inputs[0] or linear.x, plan.hybrid or plan.input)
    if nodes is not None and integer:
        units = np.broadcast_to(bias_scale, linear.out_features).astype(np.float32)
        bias = np.zeros(linear.out_features) if bias_codes is None else bias_codes
        # sums of 32 bits may wrap around on their way
        bias = (bias - plan.input.zero_point * codes.sum(axis=0, dtype=np.float64)).astype(np.int64).astype(np.int32)
        nodes.lower(linear, x, stored, bias, units)
        return None
    shape = (-1,) if per_channel else ()
    weight_scale = builder.constant(f"{name}_scale", scale.reshape(shape))
    # spelled out, because ONNX Runtime's u8 x u8 rewrite for CPUs without VNNI does not know an absent zero point
    weight_zero = builder.constant(f"{name}_zero_point", np.zeros(scale.reshape(shape).shape, np.int8))
    weight_float = ir.Value(
        name=f"{weight_scale.name}_float", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(codes.shape)
    )
    axis: dict[str, int | float] = {"axis": linear.out_axis} if per_channel else {}
    builder.node("DequantizeLinear", [stored, weight_scale, weight_zero], weight_float, stored.producer(), axis)

    node.replace_input_with(0, builder.dequantize(x))
    node.replace_input_with(1, weight_float)
    if bias_codes is not None:
        assert linear.bias is not None
        reader = linear.bias_node or node
        stored_bias = builder.constant(f"{linear.bias.name}_int32", bias_codes.astype(np.int32))
        bias_scales = builder.constant(f"{linear.bias.name}_scale", bias_scale.reshape(shape))
        bias_float = ir.Value(
            name=f"{bias_scales.name}_float", type=ir.TensorType(ir.DataType.FLOAT), shape=linear.bias.shape
        )
        builder.node(
            "DequantizeLinear", [stored_bias, bias_scales], bias_float, None, {"axis": 0} if per_channel else {}
        )
        for index, value in enumerate(reader.inputs):
            if value is linear.bias:
                reader.replace_input_with(index, bias_float)
    if plan.output is not None:
        readers = list(linear.output.uses())
        requantized = builder.dequantize(builder.quantize(linear.output, plan.output))
        for reader, index in readers:
            reader.replace_input_with(index, requantized)
    return None


def lower_linears(lifted: Lifted, builder: Builder, plan: QuantPlan, nodes: IntegerLinears | None = None) -> Report:
    """Quantize the linears of the plan, in place.

    Args:
        nodes: makes integer nodes of those of many rows, where the target has such nodes.
    """
    report = Report("linears")
    few = 0
    for linear in lifted.linears:
        if linear.name not in plan.linears:
            continue
        few += nodes is not None and not nodes.takes(linear)
        reason = _lower(builder, linear, plan.linears[linear.name], nodes)
        if reason is not None:
            report.refuse(linear.name, f"stays float: {reason}")
            continue
        report.done.append(linear.name)
        if nodes is not None and linear.x.shape is None and linear.node.op_type != "Conv":
            report.refuse(linear.name, "stays QDQ: the number of its rows is not known")
    if nodes is not None:
        report.facts["as QDQ, for their few rows or as convolutions"] = few
    return report
