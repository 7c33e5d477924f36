# SPDX-License-Identifier: Apache-2.0
"""The operators of domain ``samq`` as ONNX functions: each body is the operator's specification.

A model that uses them carries these bodies, so it runs wherever ONNX runs; where `samq_onnx.library_path()` is
registered, ONNX Runtime takes the native kernel of the same name instead. `samq_onnx.reference` says the same in
numpy integers.

Shapes: q [..., M, d], k [..., N, d], v [..., N, dv] -> [..., M, dv] float32; rank 3 or more, the leading dimensions
of all three equal. Scales and zero points are scalars. Relative position takes q as [..., Hq*Wq, d] and tables
table_h [Hq, Hk, d], table_w [Wq, Wk, d], keys in row-major order, N = Hk*Wk (segment-anything's decomposed form);
the tables are float for AttentionRelPos, s16 codes with a scale each for the operators on codes. A bias [G, M, N] is
added to the scores, likewise float or s16 codes with a scale; entry b of the flattened batch gets b modulo G.
Attributes: ``scale`` multiplies q kT; ``tau`` (a power of two up to 16; the paper stops at 4) and ``bits`` in 1..8 are
those of log codes (PTQ4SAM eq. 8) and of uniform ones.

Post-softmax codes are of four kinds. With a scale for the whole tensor: log codes (QAttention, the paper's AGQ) and
uniform ones (UniformAttention). Relative to the largest probability of their row, and divided by their sum as the
softmax divides its powers: LogRowAttention and UniformRowAttention. These need no scale, follow sharp and flat rows
alike, and their last log code is 0, so that many small probabilities do not add up to what was never there. Each has
a form ending in Quantize, with inputs y_scale and y_zero_point (u8) at the end, that gives QuantizeLinear's codes.

Linear layers on codes: x u8 [..., K], w s8 [K, N], bias s32 [N] at scale 1 of the sums, with what the zero point of x
takes off them, -zero_point sum_k w; scale and y_zero float, one number or N, residual float [..., N], table u8 with 1
to 65536 entries -> [..., N], float32 or u8. K and d are at most 32768, d with tables of codes at most 256.

Layer norms that give codes (LayerNormQuantize): x float [..., C], weight and bias float [C], y_scale and y_zero_point
(u8) scalars -> u8 [..., C].

Any dimension may be 0, though bodies of opset 13 may refuse it. A sum over none is 0, and so is the mean over no key.

What is not a number quantizes to code 0, in every operator that gives codes: u8 has no other word for it. Infinities
quantize to the code at their end. p_scale of attention and y_scale must be above 0 and finite, and what one unit of a
sum adds to a logit, in octaves, at most 2^64, so that logits are always numbers; other scales are taken as they are.
Operators that give floats give NaN wherever float arithmetic does. The kernel of float attention divides by the sum
of the powers last: where the magnitudes of v add up to more than float32 holds, it may give infinity.

Inputs that do not fit, or lack, are refused, by kernel and body alike; the body takes an index that is out of range for
it (`require`). Types are the kernel's to check: a body may take others.

Of the operators on codes, every sum is one of integers, exact in any order, and the float steps between them are
single IEEE operations in a fixed order, so that kernel, body and reference give the same bits on every CPU. QAttention
alone takes one double logarithm for each row, which libraries may round differently in its last bit: about one row in
10^8 can then get an offset one float step away. LayerNormQuantize takes float steps in a fixed order too, but sums of
floats in double, whose last bit depends on their order: about one row in 10^8 can then get a mean, or a deviation, one
float step away, which moves a code only where it is at a tie. The kernel's order is the same on every CPU.

Functions with a lower-case first letter only serve the other bodies and have no kernel.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
from __future__ import annotations

import math
from typing import Any

import onnx
import onnx_ir as ir
from onnxscript import opset17, script
from onnxscript.values import OnnxFunction, Opset

from samq_onnx.errors import UserError

__all__ = ["CODE_ATTENTION", "DOMAIN", "TERMS", "VERSION", "add_functions"]

DOMAIN = "samq"
VERSION = 1

# The bodies keep to operators whose form is the same in all opsets from this one on, so that they can take the
# opset of the model that they are added to.
LOWEST_OPSET = 13
ALLOWZERO_OPSET = 14  # but for an attribute of Reshape
FORMERLY = {"arranged": "arrangedFull"}  # what stands in its place before that opset
LOWEST_IR_VERSION = 8

LOG2_E = 1.0 / math.log(2.0)
# Fixed-point powers: 2^23 2^f for |f| <= 0.5 in powers of f, relative error below 2e-7.
C0 = 2.0**23
C1, C2, C3, C4, C5 = C0 * 0.693147, C0 * 0.24022242, C0 * 0.055507336, C0 * 0.009671513, C0 * 0.0013264731
FARTHEST = 32.0  # from 25 octaves on the power is 0
HALVES = [2.0**-n for n in range(33)]
FRACTION = 2.0**30  # fixed point of ShiftLutMatMul
LARGEST_SHIFT = 63
SHORT_ONE = 2.0**15  # fixed point of 16-bit arithmetic
HALVINGS = [2.0 ** (14 - n) for n in range(15)] + [0.0]  # and one more
STEPS = 2048.0  # in an octave, of 16-bit powers
LARGEST_STEP = 32768
LARGEST_DEPTH, LARGEST_TABLE_DEPTH = 32768, 256  # sums of products stay below 2^31
LARGEST_TABLE = 65536
LARGEST_UNIT = 2.0**64
LARGEST_FLOAT = (2.0 - 2.0**-23) * 2.0**127
SHORT_C1, SHORT_C2 = 22650.0, 7170.0
LOWEST = -math.inf
NO_DIMENSIONS = onnx.helper.make_tensor("none", onnx.TensorProto.INT64, [0], [])
ONE = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])
FLOAT, UINT8, INT32, INT64, DOUBLE, UINT64 = 1, 2, 6, 7, 11, 13

op: Any = opset17
samq = Opset(DOMAIN, VERSION)


@script(samq)
def require(x, holds):
    """x where ``holds``, one truth value, is true. Where it is not, an index is out of range, which stops the run."""
    return op.Gather(op.Unsqueeze(x, op.Constant(value_ints=[0])), op.Cast(op.Not(holds), to=INT64))


@script(samq)
def arranged(x, dims):
    """x in other dimensions, which may be 0."""
    return op.Reshape(x, dims, allowzero=1)


@script(samq)
def arrangedFull(x, dims):
    """`arranged` of opset 13, where a 0 means a dimension of x: there it is refused."""
    empty = op.ReduceSum(op.Cast(op.Equal(dims, op.Constant(value_int=0)), to=INT64), keepdims=0)
    return op.Reshape(x, require(dims, op.Equal(empty, op.Constant(value_int=0))))


@script(samq)
def agree(dims, expected):
    """The dimensions ``dims``, which must be the expected ones."""
    given = arranged(dims, op.Shape(expected))  # as many
    wrong = op.ReduceSum(op.Abs(op.Sign(op.Sub(given, expected))), keepdims=0)
    return require(given, op.Equal(wrong, op.Constant(value_int=0)))


@script(samq)
def shaped(x, dims):
    """x, which must have these dimensions."""
    return arranged(x, agree(op.Shape(x), dims))


@script(samq)
def number(x):
    """The one number that x must hold, as a scalar."""
    return op.Reshape(x, op.Constant(value=NO_DIMENSIONS))


@script(samq)
def positive(x):
    """The one float that x must hold, above 0 and finite."""
    given = number(x)
    above = op.Greater(given, op.Constant(value_float=0.0))
    return require(given, op.And(above, op.LessOrEqual(given, op.Constant(value_float=LARGEST_FLOAT))))


@script(samq)
def leading(q):
    """The leading dimensions of q [..., M, d], one or more."""
    dims = op.Shape(q)
    each = op.Concat(dims[:-3], op.Gather(dims, op.Constant(value_ints=[-3])), axis=0)
    depth = op.Gather(dims, op.Constant(value_int=-1))
    return require(each, op.LessOrEqual(depth, op.Constant(value_int=LARGEST_DEPTH)))


@script(samq)
def flatten(x, each):
    """[..., rows, columns] with the leading dimensions ``each`` -> [batch, rows, columns]."""
    dims = op.Shape(x)
    batch = op.ReduceProd(agree(dims[:-2], each), keepdims=1)
    return arranged(x, op.Concat(batch, dims[-2:], axis=0))


@script(samq)
def unflatten(out, q, v):
    """[batch, M, dv] -> the leading dimensions of q, M, dv."""
    return arranged(out, op.Concat(op.Shape(q)[:-1], op.Shape(v)[-1:], axis=0))


@script(samq)
def relPos(q, table_h, table_w):
    """rel_h [B, Hq, Wq, Hk] and rel_w [B, Hq, Wq, Wk] of q [B, Hq*Wq, d].

    rel_h[b, y, x, y'] = q[b, (y, x)] . table_h[y, y'];  rel_w[b, y, x, x'] = q[b, (y, x)] . table_w[x, x'].
    """
    high = op.Reshape(op.Shape(table_h), op.Constant(value_ints=[3]))  # of three dimensions
    wide = op.Reshape(op.Shape(table_w), op.Constant(value_ints=[3]))
    queries = op.Concat(high[0:1], wide[0:1], axis=0)
    grid = arranged(q, op.Concat(op.Shape(q)[0:1], queries, op.Shape(q)[-1:], axis=0))
    rel_h = op.MatMul(grid, op.Transpose(table_h, perm=[0, 2, 1]))
    by_column = op.Transpose(grid, perm=[0, 2, 1, 3])
    rel_w = op.Transpose(op.MatMul(by_column, op.Transpose(table_w, perm=[0, 2, 1])), perm=[0, 2, 1, 3])
    return rel_h, rel_w


@script(samq)
def addRelPos(content, rel_h, rel_w):
    """content [B, M, N] + (rel_h + rel_w)."""
    rel = op.Add(op.Unsqueeze(rel_h, op.Constant(value_ints=[-1])), op.Unsqueeze(rel_w, op.Constant(value_ints=[-2])))
    dims = op.Shape(rel)
    high = op.Gather(dims, op.Constant(value_ints=[1, 3]))
    wide = op.Gather(dims, op.Constant(value_ints=[2, 4]))
    each = agree(op.Mul(high, wide), op.Shape(content)[1:])  # queries and keys
    return op.Add(content, arranged(rel, op.Concat(op.Shape(content)[0:1], each, axis=0)))


@script(samq)
def addBias(content, bias):
    """content [B, M, N] + bias [G, M, N], of whose entries b gets b modulo G."""
    dims = op.Shape(content)
    given = op.Reshape(op.Shape(bias), op.Constant(value_ints=[3]))  # of three dimensions
    each = agree(given[1:], dims[1:])  # queries and keys
    groups = given[0:1]
    repeats = op.Div(dims[0:1], op.Max(groups, op.Constant(value_ints=[1])))
    added = op.Add(arranged(content, op.Concat(repeats, groups, each, axis=0)), bias)
    return arranged(added, op.Concat(agree(op.Mul(repeats, groups), dims[0:1]), each, axis=0))


@script(samq)
def Attention(q, k, v, scale: float):
    """softmax(scale * q kT) v."""
    each = leading(q)
    content = op.MatMul(flatten(q, each), op.Transpose(flatten(k, each), perm=[0, 2, 1]))
    p = op.Softmax(op.Mul(content, op.Constant(value_float=scale)), axis=-1)
    return unflatten(op.MatMul(p, flatten(v, each)), q, v)


@script(samq)
def AttentionRelPos(q, k, v, table_h, table_w, scale: float):
    """softmax(scale * q kT + rel_h + rel_w) v."""
    each = leading(q)
    rows = flatten(q, each)
    content = op.Mul(op.MatMul(rows, op.Transpose(flatten(k, each), perm=[0, 2, 1])), op.Constant(value_float=scale))
    rel_h, rel_w = relPos(rows, table_h, table_w)
    p = op.Softmax(addRelPos(content, rel_h, rel_w), axis=-1)
    return unflatten(op.MatMul(p, flatten(v, each)), q, v)


@script(samq)
def AttentionBias(q, k, v, bias, scale: float):
    """softmax(scale * q kT + bias) v."""
    each = leading(q)
    content = op.MatMul(flatten(q, each), op.Transpose(flatten(k, each), perm=[0, 2, 1]))
    p = op.Softmax(addBias(op.Mul(content, op.Constant(value_float=scale)), bias), axis=-1)
    return unflatten(op.MatMul(p, flatten(v, each)), q, v)


@script(samq)
def nearest(x, largest):
    """clamp(round_half_even(x), 0, largest) of floats x; 0 for what is not a number, which Clip would let through."""
    zero = op.Constant(value_float=0.0)
    return op.Clip(op.Round(op.Where(op.Greater(x, zero), x, zero)), zero, largest)


@script(samq)
def nearestCode(x, bits: int):
    """clamp(round_half_even(x), 0, 2^bits - 1) of float x, as u8."""
    levels = op.Pow(op.Constant(value_float=2.0), op.Constant(value_int=bits))
    return op.Cast(nearest(x, op.Sub(levels, op.Constant(value_float=1.0))), to=UINT8)


@script(samq)
def quantized(y, y_scale, y_zero_point):
    """QuantizeLinear to u8, code 0 for what is not a number, of which ONNX Runtime makes something on each CPU."""
    given = op.Where(op.IsNaN(y), op.Constant(value_float=LOWEST), y)
    return op.QuantizeLinear(given, positive(y_scale), number(y_zero_point))


@script(samq)
def logSteps(x, tau: int):
    """tau log2(x) in double."""
    two = op.Cast(op.Constant(value_float=2.0), to=DOUBLE)
    return op.Mul(op.Cast(op.Constant(value_int=tau), to=DOUBLE), op.Div(op.Log(x), op.Log(two)))


@script(samq)
def LogQuantize(p, p_scale, tau: int, bits: int):
    """clamp(round_half_even(-tau * log2(p / p_scale)), 0, 2^bits - 1) as u8; p = 0 gives the largest code."""
    codes = op.Round(op.Neg(logSteps(op.Cast(op.Div(p, number(p_scale)), to=DOUBLE), tau=tau)))
    return nearestCode(op.Cast(codes, to=FLOAT), bits=bits)


@script(samq)
def centred(x, zero_point):
    """x - zero_point in double, of codes of any type."""
    return op.Sub(op.Cast(x, to=DOUBLE), op.Cast(number(zero_point), to=DOUBLE))


@script(samq)
def scaled(sums, p_scale, v_scale, unit: float):
    """Integer sums * (p_scale * v_scale * unit) in double, as float.

    The cast to int64 changes no number. It keeps ONNX Runtime from fusing the scale, as a float, into the product.
    """
    scale = op.Mul(op.Cast(number(p_scale), to=DOUBLE), op.Cast(number(v_scale), to=DOUBLE))
    scale = op.Mul(scale, op.Cast(op.Constant(value_float=unit), to=DOUBLE))
    return op.Cast(op.Mul(op.Cast(op.Cast(sums, to=INT64), to=DOUBLE), scale), to=FLOAT)


@script(samq)
def codeWeights(tau: int, bits: int):
    """round(2^30 2^(r / tau)) >> n of each code c, with n = ceil(c / tau) and r = tau n - c, as u64 [256].

    Codes of more than ``bits`` bits weigh what the largest does.
    """
    one = op.Constant(value_int=1)
    step = op.Constant(value_int=tau)
    levels = op.Cast(op.Pow(op.Constant(value_float=2.0), op.Constant(value_int=bits)), to=INT64)
    code = op.Min(op.Range(op.Constant(value_int=0), op.Constant(value_int=256), one), op.Sub(levels, one))
    n = op.Div(op.Sub(op.Add(code, step), one), step)
    r = op.Cast(op.Sub(op.Mul(n, step), code), to=DOUBLE)
    fraction = op.Cast(op.Constant(value_float=FRACTION), to=DOUBLE)
    two = op.Cast(op.Constant(value_float=2.0), to=DOUBLE)
    entries = op.Round(op.Mul(fraction, op.Pow(two, op.Div(r, op.Cast(step, to=DOUBLE)))))
    shifts = op.Cast(op.Min(n, op.Constant(value_int=LARGEST_SHIFT)), to=UINT64)
    return op.BitShift(op.Cast(entries, to=UINT64), shifts, direction="RIGHT")


@script(samq)
def ShiftLutMatMul(codes, v, p_scale, v_scale, v_zero_point, tau: int, bits: int):
    """sum_j p_scale 2^(-codes_j / tau) * v_scale (v_j - v_zero_point): codes u8 [..., M, N], v u8 [..., N, dv].

    The power is taken by shift and table (PTQ4SAM eq. 10-13), see `codeWeights`. Sums of these integers are exact in
    double up to 2^15 keys.
    """
    weights = op.Cast(codeWeights(tau=tau, bits=bits), to=DOUBLE)
    dims = op.Shape(codes)
    each = op.Concat(dims[:-2], dims[-1:], op.Shape(v)[-1:], axis=0)
    rows = shaped(v, require(each, op.Greater(op.Size(dims), op.Constant(value_int=1))))
    sums = op.MatMul(op.Gather(weights, op.Cast(codes, to=INT32)), centred(rows, v_zero_point))
    return scaled(sums, p_scale, v_scale, unit=1.0 / FRACTION)


@script(samq)
def toUint8(x):
    """s8 -> u8, each number moved by 128."""
    return op.Cast(op.Add(op.Cast(x, to=INT32), op.Cast(op.Constant(value_int=128), to=INT32)), to=UINT8)


@script(samq)
def integerProduct(a, b, a_zero_point, b_zero_point):
    """MatMulInteger of u8 a [..., K] and b, exact on every CPU; where K is 0, too, where ONNX Runtime leaves any bits.

    ONNX Runtime's u8 x s8 saturates on x86 without VNNI.
    """
    some = op.Cast(op.Min(op.Shape(a)[-1:], op.Constant(value_ints=[1])), to=INT32)
    return op.Mul(op.MatMulInteger(a, b, a_zero_point, b_zero_point), some)


@script(samq)
def inOctaves(products, unit):
    """float(products) * (unit * log2 e)."""
    octaves = op.Mul(unit, op.Constant(value_float=LOG2_E))
    finite = op.LessOrEqual(op.Abs(octaves), op.Constant(value_float=LARGEST_UNIT))
    return op.Mul(op.Cast(products, to=FLOAT), require(octaves, finite))


@script(samq)
def quantizedContent(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale: float):
    """log2 e * scale * q kT from codes: q u8 [..., M, d], k u8 [..., N, d] -> [B, M, N]."""
    each = leading(q)
    columns = op.Transpose(flatten(k, each), perm=[0, 2, 1])
    products = integerProduct(flatten(q, each), columns, number(q_zero_point), number(k_zero_point))
    return inOctaves(products, op.Mul(op.Mul(number(q_scale), number(k_scale)), op.Constant(value_float=scale)))


@script(samq)
def quantizedLogits(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, table_h, table_h_scale, table_w, table_w_scale, scale: float
):
    """`quantizedContent` with rel_h and rel_w of codes, likewise in octaves."""
    content = quantizedContent(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale)
    rows = centred(flatten(q, leading(q)), q_zero_point)
    rel_h, rel_w = relPos(rows, op.Cast(table_h, to=DOUBLE), op.Cast(table_w, to=DOUBLE))
    depth = op.Gather(op.Shape(q), op.Constant(value_int=-1))
    unit = require(number(q_scale), op.LessOrEqual(depth, op.Constant(value_int=LARGEST_TABLE_DEPTH)))
    rel_h = inOctaves(rel_h, op.Mul(unit, number(table_h_scale)))
    rel_w = inOctaves(rel_w, op.Mul(unit, number(table_w_scale)))
    return addRelPos(content, rel_h, rel_w)


@script(samq)
def biasedLogits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, bias, bias_scale, scale: float):
    """`quantizedContent` with a bias of codes, likewise in octaves."""
    content = quantizedContent(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale)
    return addBias(content, inOctaves(bias, number(bias_scale)))


@script(samq)
def distances(logits):
    """The largest logit of a row less each: octaves below it."""
    largest, _ = op.TopK(logits, op.Min(op.Shape(logits)[-1:], op.Constant(value_ints=[1])))
    return op.Sub(largest, logits)


@script(samq)
def fixedPowers(distance):
    """round_half_even(2^23 2^-distance) as float, by a polynomial and an exact power of two."""
    near = op.Min(distance, op.Constant(value_float=FARTHEST))
    n = op.Round(near)
    f = op.Sub(n, near)
    y = op.Add(op.Mul(f, op.Constant(value_float=C5)), op.Constant(value_float=C4))
    y = op.Add(op.Mul(y, f), op.Constant(value_float=C3))
    y = op.Add(op.Mul(y, f), op.Constant(value_float=C2))
    y = op.Add(op.Mul(y, f), op.Constant(value_float=C1))
    y = op.Add(op.Mul(y, f), op.Constant(value_float=C0))
    return op.Round(op.Mul(y, op.Gather(op.Constant(value_floats=HALVES), op.Cast(n, to=INT32))))


@script(samq)
def rowSums(powers, p_scale):
    """p_scale times the sum of each row, the sum exact, in double."""
    sums = op.ReduceSum(op.Cast(powers, to=DOUBLE), op.Constant(value_ints=[-1]))
    return op.Mul(sums, op.Cast(positive(p_scale), to=DOUBLE))


@script(samq)
def logAttend(logits, v, v_scale, v_zero_point, p_scale, tau: int, bits: int):
    """softmax of logits [B, M, N] in octaves, as log codes, times v [B, N, dv].

    code = nearest(tau * distance + tau log2(sum * p_scale))
    """
    distance = distances(logits)
    unit = op.Cast(op.Constant(value_float=1.0 / C0), to=DOUBLE)
    offset = logSteps(op.Mul(rowSums(fixedPowers(distance), p_scale), unit), tau=tau)
    steps = op.Cast(op.Constant(value_int=tau), to=FLOAT)
    codes = nearestCode(op.Add(op.Mul(distance, steps), op.Cast(offset, to=FLOAT)), bits=bits)
    return ShiftLutMatMul(codes, v, p_scale, v_scale, v_zero_point, tau=tau, bits=bits)


@script(samq)
def uniformAttend(logits, v, v_scale, v_zero_point, p_scale, bits: int):
    """softmax of logits [B, M, N] in octaves, as codes p_scale * (0 .. 2^bits - 1), times v [B, N, dv].

    code = nearest(power / (sum * p_scale))
    """
    powers = fixedPowers(distances(logits))
    one = op.Cast(op.Constant(value_float=1.0), to=DOUBLE)
    factor = op.Cast(op.Div(one, rowSums(powers, p_scale)), to=FLOAT)
    codes = nearestCode(op.Mul(powers, factor), bits=bits)
    none = op.Cast(op.Constant(value_int=0), to=UINT8)
    sums = integerProduct(codes, v, none, number(v_zero_point))
    return scaled(sums, p_scale, v_scale, unit=1.0)


@script(samq)
def weighedMean(weights, v, v_scale, v_zero_point):
    """sum_j w_j v_scale (v_j - v_zero_point) / sum_j w_j of integer weights [B, M, N] in double, all sums exact."""
    one = op.Cast(op.Constant(value_float=1.0), to=DOUBLE)
    total = op.Max(op.ReduceSum(weights, op.Constant(value_ints=[-1])), one)  # 1 where there is no key
    mean = op.Div(op.MatMul(weights, centred(v, v_zero_point)), total)
    return op.Cast(op.Mul(mean, op.Cast(number(v_scale), to=DOUBLE)), to=FLOAT)


@script(samq)
def roundedProduct(a, b):
    """(a b + 2^14) >> 15 of 16-bit integers, held in double."""
    one = op.Cast(op.Constant(value_float=SHORT_ONE), to=DOUBLE)
    half = op.Cast(op.Constant(value_float=0.5), to=DOUBLE)
    return op.Floor(op.Add(op.Div(op.Mul(a, b), one), half))


@script(samq)
def rowCodeWeights(tau: int, bits: int):
    """2^14 2^(-c / tau) of each code c but the last, which weighs 0, in double [2^bits], by shift and table.

    round(2^15 2^(-r / tau)), below 2^15, is halved n + 1 times, rounded, with n = c div tau, r = c mod tau.
    """
    step = op.Constant(value_int=tau)
    levels = op.Cast(op.Pow(op.Constant(value_float=2.0), op.Constant(value_int=bits)), to=INT64)
    code = op.Range(op.Constant(value_int=0), op.Sub(levels, op.Constant(value_int=1)), op.Constant(value_int=1))
    n = op.Div(code, step)
    r = op.Cast(op.Sub(op.Mul(n, step), code), to=DOUBLE)
    one = op.Cast(op.Constant(value_float=SHORT_ONE), to=DOUBLE)
    two = op.Cast(op.Constant(value_float=2.0), to=DOUBLE)
    entry = op.Round(op.Mul(one, op.Pow(two, op.Div(r, op.Cast(step, to=DOUBLE)))))
    entry = op.Min(entry, op.Sub(one, op.Cast(op.Constant(value_float=1.0), to=DOUBLE)))
    halving = op.Gather(op.Constant(value_floats=HALVINGS), op.Min(n, op.Constant(value_int=15)))
    none = op.Cast(op.Constant(value_floats=[0.0]), to=DOUBLE)
    return op.Concat(roundedProduct(entry, op.Cast(halving, to=DOUBLE)), none, axis=0)


@script(samq)
def shortPowers():
    """2^15 2^(-t / 2^11) for t = 0 .. 2^15, in double: two terms of its series in 16 octaves, squared four times."""
    t = op.Range(op.Constant(value_int=0), op.Constant(value_int=LARGEST_STEP + 1), op.Constant(value_int=1))
    w = op.Neg(op.Cast(t, to=DOUBLE))
    inner = op.Add(
        roundedProduct(w, op.Cast(op.Constant(value_float=SHORT_C2), to=DOUBLE)),
        op.Cast(op.Constant(value_float=SHORT_C1), to=DOUBLE),
    )
    one = op.Cast(op.Constant(value_float=SHORT_ONE - 1.0), to=DOUBLE)
    y = op.Add(roundedProduct(inner, w), one)
    y = roundedProduct(y, y)
    y = roundedProduct(y, y)
    y = roundedProduct(y, y)
    return roundedProduct(y, y)


@script(samq)
def rowLogAttend(logits, v, v_scale, v_zero_point, tau: int, bits: int):
    """softmax of logits [B, M, N] in octaves, as log codes below the largest of each row, times v [B, N, dv].

    code = nearest(tau * distance) weighs as in `rowCodeWeights`.
    """
    steps = op.Cast(op.Constant(value_int=tau), to=FLOAT)
    codes = nearestCode(op.Mul(distances(logits), steps), bits=bits)
    weights = op.Gather(rowCodeWeights(tau=tau, bits=bits), op.Cast(codes, to=INT32))
    return weighedMean(weights, v, v_scale, v_zero_point)


@script(samq)
def rowUniformAttend(logits, v, v_scale, v_zero_point, bits: int):
    """softmax of logits [B, M, N] in octaves, as uniform codes up to the largest of each row, times v [B, N, dv].

    code = roundedProduct(power, 2^bits - 1), the power that of the nearest 2^-11 octave, see `shortPowers`.
    """
    steps = op.Round(op.Mul(distances(logits), op.Constant(value_float=STEPS)))
    near = op.Cast(op.Min(steps, op.Constant(value_float=float(LARGEST_STEP))), to=INT32)
    levels = op.Cast(op.Pow(op.Constant(value_float=2.0), op.Constant(value_int=bits)), to=DOUBLE)
    largest = op.Sub(levels, op.Cast(op.Constant(value_float=1.0), to=DOUBLE))
    return weighedMean(roundedProduct(op.Gather(shortPowers(), near), largest), v, v_scale, v_zero_point)


@script(samq)
def QAttention(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """Attention on u8 codes q, k, v, with log-2 codes (AGQ) after the softmax."""
    logits = quantizedContent(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale)
    return unflatten(
        logAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, p_scale, tau=tau, bits=bits), q, v
    )


@script(samq)
def QAttentionRelPos(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale,
    table_h, table_h_scale, table_w, table_w_scale,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """`QAttention` with rel_h and rel_w of the dequantized q added before the softmax."""
    logits = quantizedLogits(
        q, q_scale, q_zero_point, k, k_scale, k_zero_point, table_h, table_h_scale, table_w, table_w_scale, scale=scale
    )
    return unflatten(
        logAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, p_scale, tau=tau, bits=bits), q, v
    )


@script(samq)
def UniformAttention(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale,
    scale: float, bits: int,
):  # fmt: skip
    """Attention on u8 codes q, k, v, with uniform codes p_scale * (0 .. 2^bits - 1) after the softmax."""
    logits = quantizedContent(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale)
    return unflatten(uniformAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, p_scale, bits=bits), q, v)


@script(samq)
def UniformAttentionRelPos(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale,
    table_h, table_h_scale, table_w, table_w_scale,
    scale: float, bits: int,
):  # fmt: skip
    """`UniformAttention` with rel_h and rel_w of the dequantized q added before the softmax."""
    logits = quantizedLogits(
        q, q_scale, q_zero_point, k, k_scale, k_zero_point, table_h, table_h_scale, table_w, table_w_scale, scale=scale
    )
    return unflatten(uniformAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, p_scale, bits=bits), q, v)


@script(samq)
def LogRowAttention(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """Attention on u8 codes q, k, v, with log-2 codes relative to the largest of each row after the softmax."""
    logits = quantizedContent(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale)
    return unflatten(rowLogAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, tau=tau, bits=bits), q, v)


@script(samq)
def LogRowAttentionRelPos(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point,
    table_h, table_h_scale, table_w, table_w_scale,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """`LogRowAttention` with rel_h and rel_w of the dequantized q added before the softmax."""
    logits = quantizedLogits(
        q, q_scale, q_zero_point, k, k_scale, k_zero_point, table_h, table_h_scale, table_w, table_w_scale, scale=scale
    )
    return unflatten(rowLogAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, tau=tau, bits=bits), q, v)


@script(samq)
def UniformRowAttention(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point,
    scale: float, bits: int,
):  # fmt: skip
    """Attention on u8 codes q, k, v, with uniform codes relative to the largest of each row after the softmax."""
    logits = quantizedContent(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale)
    return unflatten(rowUniformAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, bits=bits), q, v)


@script(samq)
def UniformRowAttentionRelPos(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point,
    table_h, table_h_scale, table_w, table_w_scale,
    scale: float, bits: int,
):  # fmt: skip
    """`UniformRowAttention` with rel_h and rel_w of the dequantized q added before the softmax."""
    logits = quantizedLogits(
        q, q_scale, q_zero_point, k, k_scale, k_zero_point, table_h, table_h_scale, table_w, table_w_scale, scale=scale
    )
    return unflatten(rowUniformAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, bits=bits), q, v)


@script(samq)
def QAttentionBias(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale, bias, bias_scale,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """`QAttention` with a bias added before the softmax."""
    logits = biasedLogits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, bias, bias_scale, scale=scale)
    return unflatten(
        logAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, p_scale, tau=tau, bits=bits), q, v
    )


@script(samq)
def UniformAttentionBias(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, p_scale, bias, bias_scale,
    scale: float, bits: int,
):  # fmt: skip
    """`UniformAttention` with a bias added before the softmax."""
    logits = biasedLogits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, bias, bias_scale, scale=scale)
    return unflatten(uniformAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, p_scale, bits=bits), q, v)


@script(samq)
def LogRowAttentionBias(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, bias, bias_scale,
    scale: float, tau: int, bits: int,
):  # fmt: skip
    """`LogRowAttention` with a bias added before the softmax."""
    logits = biasedLogits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, bias, bias_scale, scale=scale)
    return unflatten(rowLogAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, tau=tau, bits=bits), q, v)


@script(samq)
def UniformRowAttentionBias(
    q, q_scale, q_zero_point, k, k_scale, k_zero_point, v, v_scale, v_zero_point, bias, bias_scale,
    scale: float, bits: int,
):  # fmt: skip
    """`UniformRowAttention` with a bias added before the softmax."""
    logits = biasedLogits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, bias, bias_scale, scale=scale)
    return unflatten(rowUniformAttend(logits, flatten(v, leading(q)), v_scale, v_zero_point, bits=bits), q, v)


@script(samq)
def perColumn(x, w):
    """One number or N, for each of the columns of w [K, N]."""
    columns = op.Shape(w)[1:]
    ones = op.ConstantOfShape(columns, value=ONE)  # Expand would make something of nothing
    numbers = op.Mul(op.Reshape(x, op.Constant(value_ints=[-1])), ones)
    return arranged(numbers, columns)


@script(samq)
def linearSums(x, w, bias, scale):
    """float(bias + x w) * scale."""
    middle = op.Cast(op.Constant(value_int=128), to=UINT8)
    none = op.Cast(op.Constant(value_int=0), to=UINT8)
    dims = op.Reshape(op.Shape(w), op.Constant(value_ints=[2]))  # of a matrix
    depth = op.Gather(dims, op.Constant(value_int=0))
    columns = require(dims[1:], op.LessOrEqual(depth, op.Constant(value_int=LARGEST_DEPTH)))
    sums = op.Add(integerProduct(x, toUint8(w), none, middle), shaped(bias, columns))
    return op.Mul(op.Cast(sums, to=FLOAT), perColumn(scale, w))


@script(samq)
def QLinear(x, w, bias, scale):
    """scale * (bias + x w): a linear layer on codes."""
    return linearSums(x, w, bias, scale)


@script(samq)
def QLinearResidual(x, w, bias, scale, residual):
    """`QLinear` + residual, of the same shape. An Add ONNX Runtime would fuse with a norm that reads it, and round
    otherwise. A Sum alone must not read the residual: without it, ONNX Runtime would crash."""
    y = linearSums(x, w, bias, scale)
    return op.Sum(y, shaped(residual, op.Shape(y)))


@script(samq)
def QLinearQuantize(x, w, bias, scale, y_zero, bits: int):
    """nearest(`QLinear` + y_zero) as codes u8 of ``bits`` bits."""
    return nearestCode(op.Add(linearSums(x, w, bias, scale), perColumn(y_zero, w)), bits=bits)


@script(samq)
def QLinearLut(x, w, bias, scale, y_zero, table):
    """table[nearest(`QLinear` + y_zero)]: any function of the output that a table of u8 codes can hold."""
    entries = op.Size(table)
    known = op.And(
        op.Greater(entries, op.Constant(value_int=0)), op.LessOrEqual(entries, op.Constant(value_int=LARGEST_TABLE))
    )
    largest = op.Sub(require(entries, known), op.Constant(value_int=1))
    codes = nearest(op.Add(linearSums(x, w, bias, scale), perColumn(y_zero, w)), op.Cast(largest, to=FLOAT))
    return op.Gather(op.Reshape(table, op.Constant(value_ints=[-1])), op.Cast(codes, to=INT32))


@script(samq)
def LayerNormQuantize(x, weight, bias, y_scale, y_zero_point, epsilon: float, bits: int):
    """nearest(gain * ((x - mean) * inv) + offset) as codes u8 of ``bits`` bits: LayerNormalization, quantized.

    gain = weight / y_scale and offset = bias / y_scale + y_zero_point are rounded once, as are the mean of a row and
    inv = 1 / sqrt(variance + epsilon), both taken in double. No ReduceMean: its form changes between opsets, and ONNX
    Runtime would look for a LayerNormalization around it.
    """
    unit = op.Cast(positive(y_scale), to=DOUBLE)
    width = op.Shape(x)[-1:]
    gain = op.Cast(op.Div(op.Cast(shaped(weight, width), to=DOUBLE), unit), to=FLOAT)
    zero = op.Cast(number(y_zero_point), to=DOUBLE)
    offset = op.Add(op.Div(op.Cast(shaped(bias, width), to=DOUBLE), unit), zero)
    last = op.Constant(value_ints=[-1])
    count = op.Cast(width, to=DOUBLE)
    wide = op.Cast(x, to=DOUBLE)
    mean = op.Div(op.ReduceSum(wide, last), count)
    distance = op.Sub(wide, mean)
    variance = op.Div(op.ReduceSum(op.Mul(distance, distance), last), count)
    deviation = op.Sqrt(op.Add(variance, op.Cast(op.Constant(value_float=epsilon), to=DOUBLE)))
    inv = op.Cast(op.Div(op.Cast(op.Constant(value_float=1.0), to=DOUBLE), deviation), to=FLOAT)
    normed = op.Mul(op.Sub(x, op.Cast(mean, to=FLOAT)), inv)
    return nearestCode(op.Add(op.Mul(normed, gain), op.Cast(offset, to=FLOAT)), bits=bits)


def _quantizing(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """`quantized` of what ``function`` gives, under the name that ends in Quantize: u8 codes."""
    kinds = {"scale": onnx.AttributeProto.FLOAT, "tau": onnx.AttributeProto.INT, "bits": onnx.AttributeProto.INT}
    call = onnx.helper.make_node(function.name, function.input, ["floats"], domain=DOMAIN)
    for name in function.attribute:
        call.attribute.add(name=name, ref_attr_name=name, type=kinds[name])
    quantize = onnx.helper.make_node("quantized", ["floats", "y_scale", "y_zero_point"], ["codes"], domain=DOMAIN)
    return onnx.helper.make_function(
        DOMAIN, f"{function.name}Quantize", [*function.input, "y_scale", "y_zero_point"], ["codes"], [call, quantize],
        [*function.opset_import, onnx.helper.make_opsetid(DOMAIN, VERSION)], function.attribute,
    )  # fmt: skip


CODE_ATTENTION = ("QAttention", "UniformAttention", "LogRowAttention", "UniformRowAttention")
TERMS = ("", "RelPos", "Bias")  # what an attention adds to its scores
FUNCTIONS: dict[str, onnx.FunctionProto] = {
    function.name: function.to_function_proto() for function in globals().values() if isinstance(function, OnnxFunction)
}
FUNCTIONS |= {
    f"{name}{terms}Quantize": _quantizing(FUNCTIONS[f"{name}{terms}"]) for name in CODE_ATTENTION for terms in TERMS
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
        former = FORMERLY.get(name, name) if opset < ALLOWZERO_OPSET else name
        function = ir.serde.deserialize_function(FUNCTIONS[former])
        function.name = name
        function.opset_imports[""] = opset
        model.functions[function.identifier()] = function
        wanted |= _used(function)
        done.add(name)
    model.opset_imports[DOMAIN] = VERSION
    model.ir_version = max(model.ir_version, LOWEST_IR_VERSION)
