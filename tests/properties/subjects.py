# SPDX-License-Identifier: Apache-2.0
"""What the properties are about, from the packages that have it; and how many examples a property is tried on."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from samq_onnx.passes.fold import (
    fold_attention_scale,
    fold_key_centre,
    fold_key_scale,
    fold_norm_affine,
    fold_sign,
    fold_value_scale,
    rotate_heads,
    rotate_stream,
)
from samq_onnx.passes.lift import Lifted, lift, simplify
from samq_onnx.passes.lower import qlinear, views
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.qdq_propagation import propagate_qdq
from samq_onnx.passes.lower.rewrites.slices import merge_slices
from samq_onnx.passes.lower.rows import move_rows_first
from samq_onnx.passes.lower.views import gather_views

__all__ = [
    "Builder",
    "Lifted",
    "examples",
    "fold_attention_scale",
    "fold_key_centre",
    "fold_key_scale",
    "fold_norm_affine",
    "fold_sign",
    "fold_value_scale",
    "gather_views",
    "lift",
    "merge_slices",
    "move_rows_first",
    "propagate_qdq",
    "qlinear",
    "rotate_heads",
    "rotate_stream",
    "simplify",
    "views",
]


def examples(count: int, *, shrink: bool = True) -> settings:
    """The same examples on every machine; one that fails is made smaller, which takes minutes where one takes long."""
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=phases,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
