# SPDX-License-Identifier: Apache-2.0
"""Turn a plan into an integer graph: samq nodes for attention, large linears and norms, QDQ around the others."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from samq_onnx import ops
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.lower.attention import lower_attention
from samq_onnx.passes.lower.build import Builder
from samq_onnx.passes.lower.carry_nan import carry_nan
from samq_onnx.passes.lower.fuse import fuse
from samq_onnx.passes.lower.linear import lower_linears
from samq_onnx.passes.lower.norm import fuse_norms
from samq_onnx.passes.lower.opset import raise_opset
from samq_onnx.passes.lower.padding import pad_later
from samq_onnx.passes.lower.qdq_propagation import propagate_qdq
from samq_onnx.passes.lower.rewrites.slices import merge_slices
from samq_onnx.passes.lower.rewrites.upscaling import upscale_rows
from samq_onnx.passes.lower.rows import move_rows_first
from samq_onnx.passes.lower.views import gather_views
from samq_onnx.plan import QuantPlan

__all__ = ["lower", "raise_opset"]


def lower(model: ir.Model, lifted: Lifted, plan: QuantPlan) -> list[str]:
    """Make a lifted float model compute with the codes of ``plan``, in place; one sentence for each refusal."""
    builder = Builder(model.graph)
    refused = lower_linears(lifted, builder, plan)
    lower_attention(lifted, builder, plan)
    common.RemoveUnusedNodesPass()(model)  # or what was replaced would still count as a reader
    move_rows_first(builder)
    propagate_qdq(builder)
    pad_later(builder)
    fuse(builder)
    fuse_norms(builder)
    merge_slices(builder)
    upscale_rows(builder)
    gather_views(builder)  # after all that moves them, as then most views are on codes
    carry_nan(builder)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    ops.add_functions(model)
    return refused
