# SPDX-License-Identifier: Apache-2.0
"""The operators of the samq domain, as ONNX functions: the body is the specification.

A model carries the bodies of the operators it uses, so it runs on any ONNX Runtime; where the op library is
registered, ONNX Runtime takes its kernels instead. q is [..., M, d], k [..., N, d], v [..., N, d], rank 3 or 4.

The bodies use only operators that are the same from opset 15 on, and are stored with the opset of the model.
"""

# The functions below are ONNX, not Python: onnxscript compiles them.
# ruff: noqa: F821
# mypy: ignore-errors

from __future__ import annotations

import onnx_ir as ir
from onnxscript import script
from onnxscript.onnx_opset import opset18 as op
from onnxscript.values import Opset

__all__ = ["DOMAIN", "VERSION", "add_functions"]

DOMAIN = "samq"
VERSION = 1
samq = Opset(DOMAIN, VERSION)


@script(samq, default_opset=op)
def Attention(q, k, v, scale: float):
    """softmax(scale q kT) v, float32."""
    flat = op.Constant(value_ints=[-1])
    q3 = op.Reshape(q, op.Concat(flat, op.Shape(q, start=-2), axis=0))
    k3 = op.Reshape(k, op.Concat(flat, op.Shape(k, start=-2), axis=0))
    v3 = op.Reshape(v, op.Concat(flat, op.Shape(v, start=-2), axis=0))
    scores = op.MatMul(q3, op.Transpose(k3, perm=[0, 2, 1])) * op.Constant(value_float=scale)
    out = op.MatMul(op.Softmax(scores, axis=-1), v3)
    return op.Reshape(out, op.Concat(op.Shape(q, end=-1), op.Shape(v, start=-1), axis=0))


@script(samq, default_opset=op)
def RelPos(scores, q, table_h, table_w):
    """Scores [B, M, N] plus the decomposed relative position terms of q [B, M, d]."""
    flat = op.Constant(value_ints=[-1])
    rows, columns = op.Shape(table_h, end=1), op.Shape(table_w, end=1)
    grid = op.Reshape(q, op.Concat(flat, rows, columns, op.Shape(q, start=-1), axis=0))
    by_row = op.Einsum(grid, table_h, equation="bhwc,hkc->bhwk")
    by_column = op.Einsum(grid, table_w, equation="bhwc,wkc->bhwk")
    keys = op.Concat(flat, rows, columns, op.Shape(table_h, start=1, end=2), op.Shape(table_w, start=1, end=2), axis=0)
    terms = op.Unsqueeze(by_row, op.Constant(value_ints=[4])) + op.Unsqueeze(by_column, op.Constant(value_ints=[3]))
    return op.Reshape(op.Reshape(scores, keys) + terms, op.Shape(scores))


@script(samq, default_opset=op)
def AttentionRelPos(q, k, v, table_h, table_w, scale: float):
    """softmax(scale q kT + R_h(q) + R_w(q)) v, float32; tables [Hq, Hk, d] and [Wq, Wk, d] read the unscaled q."""
    flat = op.Constant(value_ints=[-1])
    q3 = op.Reshape(q, op.Concat(flat, op.Shape(q, start=-2), axis=0))
    k3 = op.Reshape(k, op.Concat(flat, op.Shape(k, start=-2), axis=0))
    v3 = op.Reshape(v, op.Concat(flat, op.Shape(v, start=-2), axis=0))
    scores = op.MatMul(q3, op.Transpose(k3, perm=[0, 2, 1])) * op.Constant(value_float=scale)
    out = op.MatMul(op.Softmax(samq.RelPos(scores, q3, table_h, table_w), axis=-1), v3)
    return op.Reshape(out, op.Concat(op.Shape(q, end=-1), op.Shape(v, start=-1), axis=0))


@script(samq, default_opset=op)
def LogQuantize(p, p_scale, tau: int, bits: int):
    """AGQ codes of probabilities, uint8: clamp(round(-tau log2(p / s)), 0, 2^bits - 1); PTQ4SAM eq. 8."""
    steps = op.Cast(op.Constant(value_int=tau), to=1) / op.Constant(value_float=-0.6931471805599453)
    two = op.Constant(value_float=2.0)
    top = op.Pow(two, op.Cast(op.Constant(value_int=bits), to=1)) - op.Constant(value_float=1.0)
    codes = op.Round(op.Log(p / p_scale) * steps)
    return op.Cast(op.Clip(codes, op.Constant(value_float=0.0), top), to=2)


@script(samq, default_opset=op)
def ShiftLutMatMul(codes, v, p_scale, v_scale, v_zero_point, tau: int, bits: int):
    """AGQ codes [..., M, N] times int8 v [..., N, d] by shift and table, float32; PTQ4SAM eq. 10 to 13.

    2^(-c / tau) = 2^(r / tau) >> n with n = ceil(c / tau), r = tau n - c: a table of tau entries with 30 fractional
    bits, shifted right and truncated.
    """
    one = op.Constant(value_int=1)
    steps = op.Constant(value_int=tau)
    count = op.Cast(op.Pow(op.Constant(value_float=2.0), op.Cast(op.Constant(value_int=bits), to=1)), to=7)
    code = op.Range(op.Constant(value_int=0), count, one)
    shift = (code + steps - one) / steps
    remainder = op.Cast(shift * steps - code, to=11) / op.Cast(steps, to=11)
    unit = op.Cast(op.Constant(value_float=1073741824.0), to=11)
    table = op.Cast(op.Round(op.Pow(op.Cast(op.Constant(value_float=2.0), to=11), remainder) * unit), to=12)
    shifted = op.BitShift(table, op.Cast(op.Min(shift, op.Constant(value_int=31)), to=12), direction="RIGHT")
    weight = op.Cast(op.Cast(shifted, to=11) / unit, to=1)
    values = op.Cast(v, to=1) - op.Cast(v_zero_point, to=1)
    return op.MatMul(op.Gather(weight, op.Cast(codes, to=6)), values) * (p_scale * v_scale)


@script(samq, default_opset=op)
def QAttention(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """Attention on uint8 q, int8 k and v, with AGQ codes for the probabilities; float32 out."""
    flat = op.Constant(value_ints=[-1])
    q3 = op.Reshape(q, op.Concat(flat, op.Shape(q, start=-2), axis=0))
    k3 = op.Reshape(k, op.Concat(flat, op.Shape(k, start=-2), axis=0))
    v3 = op.Reshape(v, op.Concat(flat, op.Shape(v, start=-2), axis=0))
    keys = op.DequantizeLinear(op.Transpose(k3, perm=[0, 2, 1]), k_scale, k_zero_point)
    product = op.MatMul(op.DequantizeLinear(q3, q_scale, q_zero_point), keys)
    scores = product * op.Constant(value_float=scale)
    codes = samq.LogQuantize(op.Softmax(scores, axis=-1), p_scale, tau=tau, bits=bits)
    out = samq.ShiftLutMatMul(codes, v3, p_scale, v_scale, v_zero_point, tau=tau, bits=bits)
    return op.Reshape(out, op.Concat(op.Shape(q, end=-1), op.Shape(v, start=-1), axis=0))


@script(samq, default_opset=op)
def QAttentionRelPos(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale, table_h, table_w,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """QAttention with decomposed relative position, whose terms are computed in float from the quantized q."""
    flat = op.Constant(value_ints=[-1])
    q3 = op.Reshape(q, op.Concat(flat, op.Shape(q, start=-2), axis=0))
    k3 = op.Reshape(k, op.Concat(flat, op.Shape(k, start=-2), axis=0))
    v3 = op.Reshape(v, op.Concat(flat, op.Shape(v, start=-2), axis=0))
    queries = op.DequantizeLinear(q3, q_scale, q_zero_point)
    keys = op.DequantizeLinear(op.Transpose(k3, perm=[0, 2, 1]), k_scale, k_zero_point)
    scores = samq.RelPos(op.MatMul(queries, keys) * op.Constant(value_float=scale), queries, table_h, table_w)
    codes = samq.LogQuantize(op.Softmax(scores, axis=-1), p_scale, tau=tau, bits=bits)
    out = samq.ShiftLutMatMul(codes, v3, p_scale, v_scale, v_zero_point, tau=tau, bits=bits)
    return op.Reshape(out, op.Concat(op.Shape(q, end=-1), op.Shape(v, start=-1), axis=0))


@script(samq, default_opset=op)
def UniformProbabilities(scores, p_scale, bits: int):
    """Softmax of scores through uniform codes with zero point 0, float32."""
    zero = op.Cast(op.Constant(value_int=0), to=2)
    top = op.Pow(op.Constant(value_float=2.0), op.Cast(op.Constant(value_int=bits), to=1)) - op.Constant(value_float=1.0)
    codes = op.Clip(op.QuantizeLinear(op.Softmax(scores, axis=-1), p_scale, zero), zero, op.Cast(top, to=2))
    return op.DequantizeLinear(codes, p_scale, zero)


@script(samq, default_opset=op)
def UniformAttention(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale, scale: float, bits: int
):
    """Attention on uint8 q, int8 k and v, with uniform codes for the probabilities; float32 out."""
    flat = op.Constant(value_ints=[-1])
    q3 = op.Reshape(q, op.Concat(flat, op.Shape(q, start=-2), axis=0))
    k3 = op.Reshape(k, op.Concat(flat, op.Shape(k, start=-2), axis=0))
    v3 = op.Reshape(v, op.Concat(flat, op.Shape(v, start=-2), axis=0))
    keys = op.DequantizeLinear(op.Transpose(k3, perm=[0, 2, 1]), k_scale, k_zero_point)
    product = op.MatMul(op.DequantizeLinear(q3, q_scale, q_zero_point), keys)
    probabilities = samq.UniformProbabilities(product * op.Constant(value_float=scale), p_scale, bits=bits)
    out = op.MatMul(probabilities, op.DequantizeLinear(v3, v_scale, v_zero_point))
    return op.Reshape(out, op.Concat(op.Shape(q, end=-1), op.Shape(v, start=-1), axis=0))


@script(samq, default_opset=op)
def UniformAttentionRelPos(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale, table_h, table_w,
    scale: float, bits: int,
):  # fmt: skip
    """UniformAttention with decomposed relative position, whose terms are computed from the quantized q."""
    flat = op.Constant(value_ints=[-1])
    q3 = op.Reshape(q, op.Concat(flat, op.Shape(q, start=-2), axis=0))
    k3 = op.Reshape(k, op.Concat(flat, op.Shape(k, start=-2), axis=0))
    v3 = op.Reshape(v, op.Concat(flat, op.Shape(v, start=-2), axis=0))
    queries = op.DequantizeLinear(q3, q_scale, q_zero_point)
    keys = op.DequantizeLinear(op.Transpose(k3, perm=[0, 2, 1]), k_scale, k_zero_point)
    scores = samq.RelPos(op.MatMul(queries, keys) * op.Constant(value_float=scale), queries, table_h, table_w)
    probabilities = samq.UniformProbabilities(scores, p_scale, bits=bits)
    out = op.MatMul(probabilities, op.DequantizeLinear(v3, v_scale, v_zero_point))
    return op.Reshape(out, op.Concat(op.Shape(q, end=-1), op.Shape(v, start=-1), axis=0))


FUNCTIONS = {
    function.name: function
    for function in (
        Attention, AttentionRelPos, LogQuantize, QAttention, QAttentionRelPos, RelPos, ShiftLutMatMul,
        UniformAttention, UniformAttentionRelPos, UniformProbabilities,
    )
}  # fmt: skip


def add_functions(model: ir.Model) -> None:
    """Make ``model`` carry the bodies of exactly the samq operators it uses, nested ones included.

    Bodies of operators that it no longer uses are dropped.
    """
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    opset = model.opset_imports[""]
    pending = [node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN]
    if pending:
        model.opset_imports[DOMAIN] = VERSION
    while pending:
        name = pending.pop()
        if (DOMAIN, name, "") in model.functions:
            continue
        function = ir.from_proto(FUNCTIONS[name].to_function_proto())
        function.opset_imports[""] = opset
        function.opset_imports[DOMAIN] = VERSION
        model.functions[function.identifier()] = function
        pending += [node.op_type for node in function.all_nodes() if node.domain == DOMAIN]
