# SPDX-License-Identifier: Apache-2.0
"""Any ONNX runtime: standard operators alone, with QuantizeLinear and DequantizeLinear around the quantized ones.

No kernel of ours runs, and none is needed. ONNX Runtime fuses each product between dequantized operands into an integer
kernel; softmax, GELU and norms stay float. Attention maps exist as a whole, and so do their codes.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from samq_onnx import ops
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.lower.build import UNSIGNED, Builder, CodeType
from samq_onnx.passes.lower.carry_nan import carry_nan
from samq_onnx.passes.lower.linear import lower_linears
from samq_onnx.passes.lower.qdq_attention import lower_qdq_attention
from samq_onnx.passes.lower.rewrites.slices import merge_slices
from samq_onnx.passes.lower.rewrites.upscaling import upscale_rows
from samq_onnx.passes.lower.targets.target import TARGETS, check_codes
from samq_onnx.passes.report import Report
from samq_onnx.plan import QuantPlan

__all__ = ["Qdq"]

PASSES = (merge_slices, upscale_rows, carry_nan)


class Qdq:
    """The target of standard operators.

    Attributes:
        code_type: of activation codes.
    """

    name = "qdq"
    summary = "any ONNX runtime: standard operators, QuantizeLinear and DequantizeLinear among them"
    code_type: CodeType = UNSIGNED

    def takes(self, kind: str) -> bool:
        return kind == "uniform"

    def lower(self, lifted: Lifted, plan: QuantPlan) -> list[Report]:
        check_codes(self, plan)
        model = lifted.model
        builder = Builder(model.graph, self.code_type)
        reports = [lower_linears(lifted, builder, plan), lower_qdq_attention(lifted, builder, plan)]
        common.RemoveUnusedNodesPass()(model)  # or what was replaced would still count as a reader
        reports += [rewrite(builder) for rewrite in PASSES]
        ops.add_functions(model)
        common.InlinePass(lambda function: function.domain == ops.DOMAIN)(model)  # attention that stays float
        ops.add_functions(model)
        model.opset_imports.pop(ops.DOMAIN, None)
        common.RemoveUnusedNodesPass()(model)
        common.NameFixPass()(model)
        return reports

    def check(self, model: ir.Model) -> None:
        for node in model.graph.all_nodes():
            if node.domain:
                raise ValueError(f"{node.name}: {node.domain}.{node.op_type} is no standard operator")
        if model.functions or set(model.opset_imports) - {""}:
            raise ValueError("the model has functions, or imports other domains")


TARGETS.add(Qdq.name)(Qdq())
