# SPDX-License-Identifier: Apache-2.0
"""Exact float rewrites: the graph computes the same function before and after, only easier to quantize."""

from __future__ import annotations

from samq_onnx.passes.fold.attention_scale import fold_attention_scale
from samq_onnx.passes.fold.key_centre import fold_key_centre
from samq_onnx.passes.fold.norm_affine import NormReaders, fold_norm_affine, norm_readers
from samq_onnx.passes.fold.operand_scale import balanced, fold_key_scale, fold_value_scale
from samq_onnx.passes.fold.rotate import find_stream, rotate_heads, rotate_stream
from samq_onnx.passes.fold.sign import fold_sign, is_bimodal

__all__ = [
    "NormReaders",
    "balanced",
    "find_stream",
    "fold_attention_scale",
    "fold_key_centre",
    "fold_key_scale",
    "fold_norm_affine",
    "fold_sign",
    "fold_value_scale",
    "is_bimodal",
    "norm_readers",
    "rotate_heads",
    "rotate_stream",
]
