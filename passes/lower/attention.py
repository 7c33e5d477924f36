# SPDX-License-Identifier: Apache-2.0
"""Lower attention sites to the integer nodes of the samq domain.

    Attention(q, k, v)  ->  LogRowAttention(Quantize(q), Quantize(k), Quantize(v), ...)

q, k and v become u8 codes. The plan's post-softmax codes choose the node: log codes, which are weighed by shift and
table, give QAttention (AGQ, one scale for the site) or LogRowAttention (relative to the row); uniform codes give
UniformAttention or UniformRowAttention. All carry an ONNX function body, so no site is refused. Tables of relative
position and biases become s16 codes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samq_onnx.ops import DOMAIN
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Lifted
from samq_onnx.passes.lower.build import Builder, take_place
from samq_onnx.passes.report import Report
from samq_onnx.plan import QuantPlan

__all__ = ["lower_attention"]

LARGEST_TABLE_CODE = 2**15 - 1


def _table_codes(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s16 codes of a float table and their scale."""
    scale = np.float32(np.abs(table).max() / LARGEST_TABLE_CODE or 1.0)
    return np.rint(table / scale).astype(np.int16), np.array(scale)


def lower_attention(lifted: Lifted, builder: Builder, plan: QuantPlan) -> Report:
    """Replace the attention nodes of the plan, in place."""
    graph, report = builder.graph, Report("integer attention")
    for site in lifted.attentions:
        if site.name not in plan.attentions:
            continue
        codes = plan.attentions[site.name]
        node = site.node
        q, k, v = node.inputs[:3]
        assert q is not None and k is not None and v is not None
        inputs: list[ir.Value] = []
        for value, params in ((q, codes.q), (k, codes.k), (v, codes.v)):
            made = builder.quantize(value, params)
            inputs += [made.value, made.scale, made.zero_point]
        probabilities = codes.probabilities
        if probabilities.operand is not None:
            inputs.append(builder.constant(f"{site.name}_p_scale", np.array(probabilities.operand, np.float32)))
        for name, table in zip(("table_h", "table_w"), site.tables or (), strict=False):
            made_codes, table_scale = _table_codes(constant(table))
            inputs.append(builder.constant(f"{site.name}_{name}", made_codes))
            inputs.append(builder.constant(f"{site.name}_{name}_scale", table_scale))
        if site.bias is not None:
            made_codes, bias_scale = _table_codes(constant(site.bias))
            inputs.append(builder.constant(f"{site.name}_bias", made_codes))
            inputs.append(builder.constant(f"{site.name}_bias_scale", bias_scale))
        attributes = {"scale": float(site.scale), **probabilities.attributes}
        op_type = probabilities.operator + ("RelPos" if site.tables else "Bias" if site.bias is not None else "")
        output = node.outputs[0]
        replacement = ir.node(op_type, inputs, attributes, domain=DOMAIN, name=node.name)
        graph.insert_before(node, replacement)
        made_output = replacement.outputs[0]
        made_output.shape, made_output.type = output.shape, output.type
        take_place(graph, output, made_output, [node])
        report.done.append(site.name)
    return report
