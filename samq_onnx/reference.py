# SPDX-License-Identifier: Apache-2.0
"""The samq operators in numpy: float attention in float64, operators on codes to the last bit. Slow; for tests.

Operators on codes take exact integers and, between them, float32 operations in the order of their function bodies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samq_onnx.codes.log import FRACTION_BITS, code_weights
from samq_onnx.codes.row import row_weights, uniform_row_codes

__all__ = [
    "add_bias",
    "attention",
    "fixed_powers",
    "layer_norm_quantize",
    "linear",
    "linear_lut",
    "linear_quantize",
    "log_quantize",
    "log_row_attention",
    "q_attention",
    "quantized_logits",
    "rel_pos",
    "shift_lut_matmul",
    "softmax",
    "uniform_attention",
    "uniform_row_attention",
]

POWER_BITS = 23
LOG2_E = np.float32(1.44269504)
# 2^f for |f| <= 0.5, highest power first
POLYNOMIAL = np.array([0.0013264731, 0.009671513, 0.055507336, 0.24022242, 0.693147, 1.0], np.float32)
FARTHEST = np.float32(32.0)

Array = NDArray[Any]


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def rel_pos_terms(q: Array, table_h: Array, table_w: Array) -> tuple[Array, Array]:
    """rel_h [..., Hq, Wq, Hk, 1] and rel_w [..., Hq, Wq, 1, Wk] of q [..., Hq*Wq, d]."""
    grid = q.reshape(*q.shape[:-2], table_h.shape[0], table_w.shape[0], q.shape[-1])
    rel_h = np.einsum("...yxc,ykc->...yxk", grid, table_h)
    rel_w = np.einsum("...yxc,xkc->...yxk", grid, table_w)
    return rel_h[..., :, None], rel_w[..., None, :]


def rel_pos(q: Array, table_h: Array, table_w: Array) -> Array:
    """rel_h + rel_w [..., Hq*Wq, Hk*Wk] of q [..., Hq*Wq, d] with table_h [Hq, Hk, d], table_w [Wq, Wk, d]."""
    rel_h, rel_w = rel_pos_terms(q, table_h, table_w)
    return (rel_h + rel_w).reshape(*q.shape[:-1], table_h.shape[1] * table_w.shape[1])


def attention(
    q: Array,
    k: Array,
    v: Array,
    table_h: Array | None = None,
    table_w: Array | None = None,
    bias: Array | None = None,
    *,
    scale: float,
) -> Array:
    """softmax(scale * q kT [+ rel_h + rel_w] [+ bias]) v in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    logits = scale * (q @ k.swapaxes(-1, -2))
    if table_h is not None and table_w is not None:
        logits = logits + rel_pos(q, table_h.astype(np.float64), table_w.astype(np.float64))
    if bias is not None:
        logits = add_bias(logits, bias.astype(np.float64))
    return softmax(logits) @ v


def nearest(x: Array, largest: int) -> NDArray[np.int64]:
    """clamp(round_half_even(x), 0, largest); 0 for what is not a number."""
    return np.clip(np.rint(np.where(x > 0, x, 0)), 0, largest).astype(np.int64)


def log_quantize(p: Array, p_scale: float, *, tau: int, bits: int) -> NDArray[np.uint8]:
    """clamp(round_half_even(-tau log2(p / p_scale)), 0, 2^bits - 1); p = 0 gives the largest code."""
    with np.errstate(all="ignore"):
        ratio = p.astype(np.float32) / np.float32(p_scale)
        steps = -tau * np.log2(ratio.astype(np.float64))
    return nearest(steps, 2**bits - 1).astype(np.uint8)


def scaled(sums: Array, p_scale: float, v_scale: float, unit: float) -> NDArray[np.float32]:
    """Integer sums times p_scale * v_scale * unit, in double, rounded once."""
    return (sums * (float(p_scale) * float(v_scale) * unit)).astype(np.float32)


def shift_lut_matmul(
    codes: Array, v: Array, p_scale: float, v_scale: float, v_zero_point: int, *, tau: int, bits: int
) -> NDArray[np.float32]:
    """Weights of codes [..., M, N] times v [..., N, d], accumulated in int64, then scaled."""
    centred = v.astype(np.int64) - int(v_zero_point)
    return scaled(code_weights(tau, bits)[codes] @ centred, p_scale, v_scale, 2.0**-FRACTION_BITS)


def in_octaves(products: Array, *scales: float) -> NDArray[np.float32]:
    """float32(products) times the product of the scales and log2 e, each step rounded to float32."""
    unit = np.multiply.reduce(np.array([*scales, LOG2_E], np.float32))  # from left to right
    return products.astype(np.float32) * unit


def quantized_logits(
    q: Array, q_scale: float, q_zero_point: int, k: Array, k_scale: float, k_zero_point: int,
    table_h: Array | None = None, table_h_scale: float = 1.0, table_w: Array | None = None, table_w_scale: float = 1.0,
    bias: Array | None = None, bias_scale: float = 1.0,
    *, scale: float,
) -> NDArray[np.float32]:  # fmt: skip
    """log2 e (scale * q kT [+ rel_h + rel_w] [+ bias]) from codes."""
    rows = q.astype(np.int64) - int(q_zero_point)
    products = rows @ (k.astype(np.int64) - int(k_zero_point)).swapaxes(-1, -2)
    logits = in_octaves(products, q_scale, k_scale, scale)
    if table_h is not None and table_w is not None:
        rel_h, rel_w = rel_pos_terms(rows, table_h.astype(np.int64), table_w.astype(np.int64))
        rel = in_octaves(rel_h, q_scale, table_h_scale) + in_octaves(rel_w, q_scale, table_w_scale)
        logits = logits + rel.reshape(logits.shape)
    return logits if bias is None else add_bias(logits, in_octaves(bias, bias_scale))


def add_bias(logits: Array, bias: Array) -> Array:
    """logits [..., M, N] + bias [G, M, N], of whose entries that of the flattened batch gets its own modulo G."""
    return (logits.reshape(-1, *bias.shape) + bias).reshape(logits.shape)


def fixed_powers(distance: Array) -> NDArray[np.int64]:
    """round_half_even(2^23 2^-distance)."""
    near = np.minimum(distance, FARTHEST)
    n = np.rint(near)
    f = n - near
    y = np.full_like(f, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        y = y * f + coefficient
    return np.rint(np.ldexp(y, POWER_BITS - n.astype(np.int64))).astype(np.int64)


def q_attention(
    q: Array, q_scale: float, q_zero_point: int, k: Array, k_scale: float, k_zero_point: int,
    v: Array, v_scale: float, v_zero_point: int, p_scale: float,
    *, scale: float, tau: int, bits: int, **tables: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """QAttention and, with tables or a bias, QAttentionRelPos or QAttentionBias."""
    logits = quantized_logits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale, **tables)
    distance = logits.max(axis=-1, keepdims=True) - logits
    sums = fixed_powers(distance).sum(axis=-1, keepdims=True) * float(p_scale) * 2.0**-POWER_BITS
    steps = distance * np.float32(tau) + (tau * np.log2(sums)).astype(np.float32)
    codes = nearest(steps, 2**bits - 1)
    return shift_lut_matmul(codes, v, p_scale, v_scale, v_zero_point, tau=tau, bits=bits)


def uniform_attention(
    q: Array, q_scale: float, q_zero_point: int, k: Array, k_scale: float, k_zero_point: int,
    v: Array, v_scale: float, v_zero_point: int, p_scale: float,
    *, scale: float, bits: int, **tables: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """UniformAttention and, with tables or a bias, UniformAttentionRelPos or UniformAttentionBias."""
    logits = quantized_logits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale, **tables)
    powers = fixed_powers(logits.max(axis=-1, keepdims=True) - logits)
    factors = 1.0 / (powers.sum(axis=-1, keepdims=True) * float(p_scale))
    steps = powers.astype(np.float32) * factors.astype(np.float32)
    codes = nearest(steps, 2**bits - 1)
    return scaled(codes @ (v.astype(np.int64) - int(v_zero_point)), p_scale, v_scale, 1.0)


def weighed_mean(weights: Array, v: Array, v_scale: float, v_zero_point: int) -> NDArray[np.float32]:
    """Mean of v with integer weights [..., M, N], from exact sums, then scaled, in double, rounded once."""
    mean = (weights @ (v.astype(np.int64) - int(v_zero_point))) / weights.sum(axis=-1, keepdims=True)
    return (mean * float(v_scale)).astype(np.float32)


def log_row_attention(
    q: Array, q_scale: float, q_zero_point: int, k: Array, k_scale: float, k_zero_point: int,
    v: Array, v_scale: float, v_zero_point: int,
    *, scale: float, tau: int, bits: int, **tables: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """LogRowAttention and, with tables or a bias, LogRowAttentionRelPos or LogRowAttentionBias."""
    logits = quantized_logits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale, **tables)
    distance = logits.max(axis=-1, keepdims=True) - logits
    codes = nearest(distance * np.float32(tau), 2**bits - 1)
    return weighed_mean(row_weights(tau, bits)[codes], v, v_scale, v_zero_point)


def uniform_row_attention(
    q: Array, q_scale: float, q_zero_point: int, k: Array, k_scale: float, k_zero_point: int,
    v: Array, v_scale: float, v_zero_point: int,
    *, scale: float, bits: int, **tables: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """UniformRowAttention and, with tables or a bias, UniformRowAttentionRelPos or UniformRowAttentionBias."""
    logits = quantized_logits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, scale=scale, **tables)
    codes = uniform_row_codes(logits.max(axis=-1, keepdims=True) - logits, bits)
    return weighed_mean(codes, v, v_scale, v_zero_point)


def linear(x: Array, w: Array, bias: Array, scale: Array | float) -> NDArray[np.float32]:
    """QLinear: float32(bias + x w) * scale."""
    sums = x.astype(np.int64) @ w.astype(np.int64) + bias
    return sums.astype(np.float32) * np.float32(scale)


def quantize(y: Array, y_scale: float, y_zero_point: int) -> NDArray[np.uint8]:
    """QuantizeLinear: clamp(round_half_even(y / y_scale) + y_zero_point, 0, 255), the quotient rounded to float32.

    0 for what is not a number.
    """
    return nearest(np.rint(y / np.float32(y_scale)) + y_zero_point, 255).astype(np.uint8)


def linear_codes(y: Array, y_zero: Array | float, largest: int) -> NDArray[np.int64]:
    """clamp(round_half_even(y + y_zero), 0, largest), the sum rounded to float32; 0 for what is not a number."""
    return nearest(y + np.float32(y_zero), largest)


def linear_quantize(
    x: Array, w: Array, bias: Array, scale: Array | float, y_zero: Array | float, *, bits: int
) -> NDArray[np.uint8]:
    """QLinearQuantize."""
    return linear_codes(linear(x, w, bias, scale), y_zero, 2**bits - 1).astype(np.uint8)


def linear_lut(
    x: Array, w: Array, bias: Array, scale: Array | float, y_zero: Array | float, table: Array
) -> NDArray[np.uint8]:
    """QLinearLut."""
    return table[linear_codes(linear(x, w, bias, scale), y_zero, len(table) - 1)]


def layer_norm_quantize(
    x: Array, weight: Array, bias: Array, y_scale: float, y_zero_point: int, *, epsilon: float, bits: int
) -> NDArray[np.uint8]:
    """LayerNormQuantize: means in double, rounded once, then float32 steps."""
    gain = (weight / np.float64(y_scale)).astype(np.float32)
    offset = (bias / np.float64(y_scale) + y_zero_point).astype(np.float32)
    wide = x.astype(np.float64)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = np.square(wide - mean).mean(axis=-1, keepdims=True)
    inv = (1 / np.sqrt(variance + np.float32(epsilon))).astype(np.float32)
    normed = (x - mean.astype(np.float32)) * inv
    return linear_codes(normed * gain, offset, 2**bits - 1).astype(np.uint8)
