# SPDX-License-Identifier: Apache-2.0
"""The operators of domain ``samq`` as ONNX functions: each body is the operator's specification.

A model that uses them carries these bodies, so it runs wherever ONNX runs; where `samq_onnx.library_path()` is
registered, ONNX Runtime takes the native kernel of the same name instead. `samq_onnx.reference` says the same in
numpy integers.

Shapes: q [..., M, d], k [..., N, d], v [..., N, dv] -> [..., M, dv] float32; rank 3 or more, the leading dimensions
of all three equal. Scales and zero points are scalars. Relative position takes q as [..., Hq*Wq, d] and float tables
table_h [Hq, Hk, d], table_w [Wq, Wk, d], keys in row-major order, N = Hk*Wk (segment-anything's decomposed form).
Attributes: ``scale`` multiplies q kT; ``tau`` (a power of two up to 16; the paper stops at 4) and ``bits`` in 1..8 are
those of PTQ4SAM eq. 8.
Functions with a lower-case first letter only serve the other bodies and have no kernel.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript import opset17, script
from onnxscript.values import OnnxFunction, Opset

from samq_onnx.errors import UserError

__all__ = ["DOMAIN", "VERSION", "add_functions"]

DOMAIN = "samq"
VERSION = 1

# The bodies keep to operators whose form is the same in all opsets from this one on, so that they can take the
# opset of the model that they are added to.
LOWEST_OPSET = 13
LOWEST_IR_VERSION = 8

MINUS_LOG2_E = -1.0 / math.log(2.0)
FRACTION = 2.0**30  # fixed point of ShiftLutMatMul
LARGEST_SHIFT = 63
FLOAT, UINT8, INT32, INT64, DOUBLE, UINT64 = 1, 2, 6, 7, 11, 13

op: Any = opset17
samq = Opset(DOMAIN, VERSION)


@script(samq)
def flatten(x):
    """[..., rows, columns] -> [batch, rows, columns]."""
    return op.Reshape(x, op.Concat(op.Constant(value_ints=[-1]), op.Shape(x)[-2:], axis=0))


@script(samq)
def unflatten(out, q, v):
    """[batch, M, dv] -> the leading dimensions of q, M, dv."""
    return op.Reshape(out, op.Concat(op.Shape(q)[:-1], op.Shape(v)[-1:], axis=0))


@script(samq)
def addRelPos(content, q, table_h, table_w):
    """content [B, M, N] + rel_h + rel_w, from q [B, M, d] unscaled.

    rel_h[b, (y, x), y'] = q[b, (y, x)] . table_h[y, y'];  rel_w[b, (y, x), x'] = q[b, (y, x)] . table_w[x, x'].
    """
    any_batch = op.Constant(value_ints=[-1])
    before_last = op.Constant(value_ints=[-2])
    queries = op.Concat(op.Shape(table_h)[0:1], op.Shape(table_w)[0:1], axis=0)
    keys = op.Concat(op.Shape(table_h)[1:2], op.Shape(table_w)[1:2], axis=0)
    q_grid = op.Reshape(q, op.Concat(any_batch, queries, op.Shape(q)[-1:], axis=0))
    rel_h = op.MatMul(q_grid, op.Transpose(table_h, perm=[0, 2, 1]))
    by_column = op.Transpose(q_grid, perm=[0, 2, 1, 3])
    rel_w = op.Transpose(op.MatMul(by_column, op.Transpose(table_w, perm=[0, 2, 1])), perm=[0, 2, 1, 3])
    grid = op.Reshape(content, op.Concat(any_batch, queries, keys, axis=0))
    total = op.Add(op.Add(grid, op.Unsqueeze(rel_h, any_batch)), op.Unsqueeze(rel_w, before_last))
    return op.Reshape(total, op.Shape(content))


@script(samq)
def Attention(q, k, v, scale: float):
    """softmax(scale * q kT) v."""
    content = op.MatMul(flatten(q), op.Transpose(flatten(k), perm=[0, 2, 1]))
    p = op.Softmax(op.Mul(content, op.Constant(value_float=scale)), axis=-1)
    return unflatten(op.MatMul(p, flatten(v)), q, v)


@script(samq)
def AttentionRelPos(q, k, v, table_h, table_w, scale: float):
    """softmax(scale * q kT + rel_h + rel_w) v."""
    rows = flatten(q)
    content = op.Mul(op.MatMul(rows, op.Transpose(flatten(k), perm=[0, 2, 1])), op.Constant(value_float=scale))
    p = op.Softmax(addRelPos(content, rows, table_h, table_w), axis=-1)
    return unflatten(op.MatMul(p, flatten(v)), q, v)


@script(samq)
def LogQuantize(p, p_scale, tau: int, bits: int):
    """clamp(round_half_even(-tau * log2(p / p_scale)), 0, 2^bits - 1) as u8; p = 0 gives the largest code."""
    steps = op.Cast(op.Constant(value_int=tau), to=FLOAT)
    levels = op.Pow(op.Constant(value_float=2.0), op.Constant(value_int=bits))
    exponent = op.Mul(op.Log(op.Div(p, p_scale)), op.Constant(value_float=MINUS_LOG2_E))
    codes = op.Round(op.Mul(exponent, steps))
    largest = op.Sub(levels, op.Constant(value_float=1.0))
    return op.Cast(op.Clip(codes, op.Constant(value_float=0.0), largest), to=UINT8)


@script(samq)
def ShiftLutMatMul(codes, v, p_scale, v_scale, v_zero_point, tau: int, bits: int):
    """sum_j p_scale 2^(-codes_j / tau) * v_scale (v_j - v_zero_point): codes u8 [..., M, N], v s8 [..., N, dv].

    The power is taken by shift and table (PTQ4SAM eq. 10-13): with n = ceil(c / tau) and r = tau n - c, code c
    weighs round(2^30 * 2^(r / tau)) >> n.
    """
    one = op.Constant(value_int=1)
    step = op.Constant(value_int=tau)
    levels = op.Cast(op.Pow(op.Constant(value_float=2.0), op.Constant(value_int=bits)), to=INT64)
    code = op.Range(op.Constant(value_int=0), levels, one)
    n = op.Div(op.Sub(op.Add(code, step), one), step)
    r = op.Cast(op.Sub(op.Mul(n, step), code), to=DOUBLE)
    fraction = op.Cast(op.Constant(value_float=FRACTION), to=DOUBLE)
    two = op.Cast(op.Constant(value_float=2.0), to=DOUBLE)
    entries = op.Round(op.Mul(fraction, op.Pow(two, op.Div(r, op.Cast(step, to=DOUBLE)))))
    shifts = op.Cast(op.Min(n, op.Constant(value_int=LARGEST_SHIFT)), to=UINT64)
    shifted = op.BitShift(op.Cast(entries, to=UINT64), shifts, direction="RIGHT")
    weights = op.Cast(op.Div(op.Cast(shifted, to=DOUBLE), fraction), to=FLOAT)
    p = op.Gather(weights, op.Cast(codes, to=INT32))
    centred = op.Sub(op.Cast(v, to=FLOAT), op.Cast(v_zero_point, to=FLOAT))
    return op.Mul(op.MatMul(p, centred), op.Mul(p_scale, v_scale))


@script(samq)
def toUint8(x):
    """s8 -> u8, each number moved by 128."""
    return op.Cast(op.Add(op.Cast(x, to=INT32), op.Cast(op.Constant(value_int=128), to=INT32)), to=UINT8)


@script(samq)
def quantizedContent(rows, q_scale, q_zero_point, k, k_scale, k_zero_point, scale: float):
    """scale * q kT from codes: rows u8 [B, M, d], k s8 [..., N, d] -> [B, M, N].

    Written so that ONNX Runtime runs it as one integer product, with k as u8: u8 x u8 is exact on every CPU, while
    its u8 x s8 kernel saturates on x86 without VNNI.
    """
    columns = op.Transpose(toUint8(flatten(k)), perm=[0, 2, 1])
    product = op.MatMul(
        op.DequantizeLinear(rows, q_scale, q_zero_point),
        op.DequantizeLinear(columns, k_scale, toUint8(k_zero_point)),
    )
    return op.Mul(product, op.Constant(value_float=scale))


@script(samq)
def QAttention(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """Attention on codes q u8, k s8, v s8, with log-2 codes (AGQ) after the softmax."""
    p = op.Softmax(quantizedContent(flatten(q), q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale), axis=-1)
    codes = LogQuantize(p, p_scale, tau=tau, bits=bits)
    out = ShiftLutMatMul(codes, flatten(v), p_scale, v_scale, v_zero_point, tau=tau, bits=bits)
    return unflatten(out, q, v)


@script(samq)
def QAttentionRelPos(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale, table_h, table_w,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """`QAttention` with rel_h and rel_w of the dequantized q added before the softmax."""
    rows = flatten(q)
    content = quantizedContent(rows, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale)
    logits = addRelPos(content, op.DequantizeLinear(rows, q_scale, q_zero_point), table_h, table_w)
    codes = LogQuantize(op.Softmax(logits, axis=-1), p_scale, tau=tau, bits=bits)
    out = ShiftLutMatMul(codes, flatten(v), p_scale, v_scale, v_zero_point, tau=tau, bits=bits)
    return unflatten(out, q, v)


@script(samq)
def uniformMatMul(p, v, p_scale, v_scale, v_zero_point, bits: int):
    """p rounded to p_scale * (0 .. 2^bits - 1), times v s8 [..., N, dv], as one product of u8 codes."""
    levels = op.Pow(op.Constant(value_float=2.0), op.Constant(value_int=bits))
    largest = op.Sub(levels, op.Constant(value_float=1.0))
    codes = op.Cast(op.Clip(op.Round(op.Div(p, p_scale)), op.Constant(value_float=0.0), largest), to=UINT8)
    return op.MatMul(
        op.DequantizeLinear(codes, p_scale), op.DequantizeLinear(toUint8(flatten(v)), v_scale, toUint8(v_zero_point))
    )


@script(samq)
def UniformAttention(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale,
    scale: float, bits: int,
):  # fmt: skip
    """Attention on codes q u8, k s8, v s8, with uniform codes p_scale * (0 .. 2^bits - 1) after the softmax."""
    p = op.Softmax(quantizedContent(flatten(q), q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale), axis=-1)
    return unflatten(uniformMatMul(p, v, p_scale, v_scale, v_zero_point, bits=bits), q, v)


@script(samq)
def UniformAttentionRelPos(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale, table_h, table_w,
    scale: float, bits: int,
):  # fmt: skip
    """`UniformAttention` with rel_h and rel_w of the dequantized q added before the softmax."""
    rows = flatten(q)
    content = quantizedContent(rows, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale)
    p = op.Softmax(addRelPos(content, op.DequantizeLinear(rows, q_scale, q_zero_point), table_h, table_w), axis=-1)
    return unflatten(uniformMatMul(p, v, p_scale, v_scale, v_zero_point, bits=bits), q, v)


FUNCTIONS: dict[str, OnnxFunction] = {
    function.name: function for function in globals().values() if isinstance(function, OnnxFunction)
}


def _used(nodes: ir.Graph | ir.Function) -> set[str]:
    return {node.op_type for node in nodes.all_nodes() if node.domain == DOMAIN}


def add_functions(model: ir.Model) -> None:
    """Make ``model.functions`` hold exactly the samq functions that its nodes use, in place.

    The bodies take the default opset of the model, as the ONNX checker wants it.

    Raises:
        UserError: a samq node without a function, or an opset that the bodies cannot be written in.
    """
    for identifier in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[identifier]
    wanted = _used(model.graph)
    for function in model.functions.values():
        wanted |= _used(function)
    if not wanted:
        return
    opset = model.opset_imports.get("", 0)
    if opset < LOWEST_OPSET:
        raise UserError(
            f"the model has opset {opset}, samq functions need {LOWEST_OPSET}; export it with a newer opset"
        )
    done: set[str] = set()
    while wanted - done:
        name = min(wanted - done)
        if name not in FUNCTIONS:
            raise UserError(f"node type {DOMAIN}.{name} is not one of this version; use {', '.join(FUNCTIONS)}")
        function = ir.serde.deserialize_function(FUNCTIONS[name].to_function_proto())
        function.opset_imports[""] = opset
        model.functions[function.identifier()] = function
        wanted |= _used(function)
        done.add(name)
    model.opset_imports[DOMAIN] = VERSION
    model.ir_version = max(model.ir_version, LOWEST_IR_VERSION)
