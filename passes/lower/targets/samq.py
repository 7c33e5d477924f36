# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime with our library: nodes of domain samq for attention, large linears and norms, QDQ around the others.

Every node carries its function body, so the model runs without the library too, only slower.
"""

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
from samq_onnx.passes.lower.qdq_propagation import propagate_qdq
from samq_onnx.passes.lower.qlinear import IntegerLinears
from samq_onnx.passes.lower.rewrites.slices import merge_slices
from samq_onnx.passes.lower.rewrites.upscaling import upscale_rows
from samq_onnx.passes.lower.rows import move_rows_first
from samq_onnx.passes.lower.targets.target import TARGETS, check_codes
from samq_onnx.passes.lower.views import gather_views
from samq_onnx.passes.report import Report
from samq_onnx.plan import QuantPlan

__all__ = ["Samq"]

PASSES = (
    move_rows_first,
    propagate_qdq,
    fuse,
    fuse_norms,
    merge_slices,
    upscale_rows,
    gather_views,  # after all that moves views, as then most are on codes
    carry_nan,
)


class Samq:
    """The target of our kernels."""

    name = "samq"
    summary = "ONNX Runtime with the kernels of samq_onnx; without them too, slower"

    def takes(self, kind: str) -> bool:
        return True  # all kinds of codes name their operator

    def lower(self, lifted: Lifted, plan: QuantPlan) -> list[Report]:
        check_codes(self, plan)
        model = lifted.model
        builder = Builder(model.graph)
        nodes = IntegerLinears(lifted, builder, plan)
        reports = [lower_linears(lifted, builder, plan, nodes), nodes.gelus, nodes.attention]
        reports.append(lower_attention(lifted, builder, plan))
        common.RemoveUnusedNodesPass()(model)  # or what was replaced would still count as a reader
        reports += [rewrite(builder) for rewrite in PASSES]
        common.RemoveUnusedNodesPass()(model)
        common.NameFixPass()(model)
        ops.add_functions(model)
        return reports

    def check(self, model: ir.Model) -> None:
        for node in model.graph.all_nodes():
            if node.domain == ops.DOMAIN and node.op_identifier() not in model.functions:
                raise ValueError(f"{node.name}: {node.op_type} has no function body")


TARGETS.add(Samq.name)(Samq())
