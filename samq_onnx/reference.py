# SPDX-License-Identifier: Apache-2.0
"""The samq operators in numpy: floats in float64, codes and A V in exact integers. Slow; for tests and verification."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FRACTION_BITS",
    "attention",
    "code_weights",
    "log_quantize",
    "q_attention",
    "quantized_logits",
    "rel_pos",
    "shift_lut_matmul",
    "softmax",
    "uniform_attention",
    "uniform_quantize",
]

FRACTION_BITS = 30

Array = NDArray[Any]


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def rel_pos(q: Array, table_h: Array, table_w: Array) -> Array:
    """rel_h + rel_w [..., Hq*Wq, Hk*Wk] of q [..., Hq*Wq, d] with table_h [Hq, Hk, d], table_w [Wq, Wk, d]."""
    grid = q.reshape(*q.shape[:-2], table_h.shape[0], table_w.shape[0], q.shape[-1])
    rel_h = np.einsum("...yxc,ykc->...yxk", grid, table_h)
    rel_w = np.einsum("...yxc,xkc->...yxk", grid, table_w)
    both = rel_h[..., :, None] + rel_w[..., None, :]
    return both.reshape(*q.shape[:-1], table_h.shape[1] * table_w.shape[1])


def attention(
    q: Array, k: Array, v: Array, table_h: Array | None = None, table_w: Array | None = None, *, scale: float
) -> Array:
    """softmax(scale * q kT [+ rel_h + rel_w]) v in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    logits = scale * (q @ k.swapaxes(-1, -2))
    if table_h is not None and table_w is not None:
        logits = logits + rel_pos(q, table_h.astype(np.float64), table_w.astype(np.float64))
    return softmax(logits) @ v


def log_quantize(p: Array, p_scale: float, *, tau: int, bits: int) -> NDArray[np.uint8]:
    """clamp(round_half_even(-tau log2(p / p_scale)), 0, 2^bits - 1); p = 0 gives the largest code."""
    with np.errstate(divide="ignore"):
        codes = np.rint(-tau * np.log2(p / p_scale))
    return np.clip(codes, 0, 2**bits - 1).astype(np.uint8)


def code_weights(tau: int, bits: int) -> NDArray[np.int64]:
    """The integer weight of each code, 2^30 being 1: round(2^30 2^(r/tau)) >> n, n = ceil(c/tau), r = tau n - c."""
    codes = np.arange(2**bits, dtype=np.int64)
    n = -(-codes // tau)
    table = np.rint(2.0 ** (FRACTION_BITS + np.arange(tau) / tau)).astype(np.int64)
    return table[tau * n - codes] >> np.minimum(n, 63)


def shift_lut_matmul(
    codes: Array, v: Array, p_scale: float, v_scale: float, v_zero_point: int, *, tau: int, bits: int
) -> Array:
    """Weights of codes [..., M, N] times v [..., N, d], accumulated in int64, then scaled."""
    centred = v.astype(np.int64) - int(v_zero_point)
    accumulators = code_weights(tau, bits)[codes] @ centred
    return accumulators * (float(p_scale) * float(v_scale) * 2.0**-FRACTION_BITS)


def quantized_logits(
    q: Array, q_scale: float, q_zero_point: int, k: Array, k_scale: float, k_zero_point: int,
    table_h: Array | None = None, table_w: Array | None = None, *, scale: float,
) -> Array:  # fmt: skip
    """scale * q kT [+ rel_h + rel_w] from codes: the product in integers."""
    rows = q.astype(np.int64) - int(q_zero_point)
    products = rows @ (k.astype(np.int64) - int(k_zero_point)).swapaxes(-1, -2)
    logits = products * (float(q_scale) * float(k_scale) * scale)
    if table_h is not None and table_w is not None:
        logits = logits + rel_pos(rows * float(q_scale), table_h.astype(np.float64), table_w.astype(np.float64))
    return logits


def q_attention(
    q: Array, q_scale: float, q_zero_point: int, k: Array, k_scale: float, k_zero_point: int,
    v: Array, v_scale: float, v_zero_point: int, p_scale: float,
    table_h: Array | None = None, table_w: Array | None = None, *, scale: float, tau: int, bits: int,
) -> Array:  # fmt: skip
    """QAttention and, with tables, QAttentionRelPos."""
    logits = quantized_logits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, table_h, table_w, scale=scale)
    codes = log_quantize(softmax(logits), p_scale, tau=tau, bits=bits)
    return shift_lut_matmul(codes, v, p_scale, v_scale, v_zero_point, tau=tau, bits=bits)


def uniform_quantize(p: Array, p_scale: float, *, bits: int) -> NDArray[np.uint8]:
    """clamp(round_half_even(p / p_scale), 0, 2^bits - 1)."""
    return np.clip(np.rint(p / p_scale), 0, 2**bits - 1).astype(np.uint8)


def uniform_attention(
    q: Array, q_scale: float, q_zero_point: int, k: Array, k_scale: float, k_zero_point: int,
    v: Array, v_scale: float, v_zero_point: int, p_scale: float,
    table_h: Array | None = None, table_w: Array | None = None, *, scale: float, bits: int,
) -> Array:  # fmt: skip
    """UniformAttention and, with tables, UniformAttentionRelPos."""
    logits = quantized_logits(q, q_scale, q_zero_point, k, k_scale, k_zero_point, table_h, table_w, scale=scale)
    codes = uniform_quantize(softmax(logits), p_scale, bits=bits).astype(np.int64)
    return codes @ (v.astype(np.int64) - int(v_zero_point)) * (float(p_scale) * float(v_scale))
