# SPDX-License-Identifier: Apache-2.0
"""What the properties are about, from the packages that have it; and how many examples a property is tried on."""

from __future__ import annotations

import onnx_ir as ir
from hypothesis import HealthCheck, Phase, settings

from samq_onnx.families import identify
from samq_onnx.methods import Scheme, Widths, configured
from samq_onnx.methods.step import Feeds
from samq_onnx.passes.fold import fold_attention_scale, fold_key_centre, fold_sign
from samq_onnx.passes.lift import Lifted, lift, simplify
from samq_onnx.passes.lower import qlinear, views
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.padding import pad_later
from samq_onnx.passes.lower.qdq_propagation import propagate_qdq
from samq_onnx.passes.lower.rewrites.slices import merge_slices
from samq_onnx.passes.lower.rows import move_rows_first
from samq_onnx.passes.lower.views import gather_views
from samq_onnx.pipeline import quantize_model

__all__ = [
    "Builder",
    "Lifted",
    "examples",
    "fold_attention_scale",
    "fold_key_centre",
    "fold_sign",
    "gather_views",
    "lift",
    "merge_slices",
    "move_rows_first",
    "pad_later",
    "propagate_qdq",
    "qlinear",
    "quantized",
    "simplify",
    "views",
]


def quantized(model: ir.Model, feeds: Feeds, method: str, bits: str) -> ir.Model:
    """A float model, quantized in place by a method."""
    part, scheme = identify(model, "network"), Scheme(Widths.parse(bits))
    return quantize_model(model, part, feeds, configured(method), scheme, target="samq").model


def examples(count: int, *, shrink: bool = True) -> settings:
    """The same examples on every machine; one that fails is made smaller, which takes minutes where one takes long."""
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=phases,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
