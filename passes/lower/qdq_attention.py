# SPDX-License-Identifier: Apache-2.0
"""Lower attention sites to standard operators between quantized and dequantized values.

    s = scale (q kT) + R_h(q) + R_w(q) or + bias;   p = Quantize(Softmax(s));   output = p v

q, k, v and p go through codes and back, so that both products are ones of codes, which ONNX Runtime runs in integers:
nothing may stand between them and their operands but a transposition. The scale therefore follows the product. Relative
position reads the dequantized q, its tables stay float, and its terms have the axes of the grid of queries:

    R_h = q [.., Hq, Wq, d] T_hT [Hq, d, Hk];   R_w = q [.., Wq, Hq, d] T_wT [Wq, d, Wk]

Takes uniform codes, and operands of known rank; sites of another rank are refused and stay float.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from samq_onnx.codes import UniformCodes
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import AttentionSite, Lifted
from samq_onnx.passes.lower.build import Builder, take_place
from samq_onnx.passes.report import Report
from samq_onnx.plan import AttentionPlan, QuantPlan

__all__ = ["lower_qdq_attention"]


class _Lowering:
    """Puts the operators of one site in front of its node."""

    def __init__(self, builder: Builder, site: AttentionSite, rank: int) -> None:
        self._builder, self._site, self._rank = builder, site, rank
        self._count = 0

    def _op(self, op_type: str, inputs: list[ir.Value], **attributes: int | list[int]) -> ir.Value:
        self._count += 1
        name = f"{self._site.name}_{op_type}_{self._count}"
        node = ir.node(op_type, inputs, attributes, name=name)
        made = node.outputs[0]
        made.name, made.type = name, ir.TensorType(ir.DataType.FLOAT)
        self._builder.graph.insert_before(self._site.node, node)
        return made

    def _swapped(self, x: ir.Value, rank: int, axis: int) -> ir.Value:
        """``x`` with an axis, counted from the end, and the one after it exchanged."""
        perm = list(range(rank))
        perm[axis], perm[axis + 1] = perm[axis + 1], perm[axis]
        return self._op("Transpose", [x], perm=perm)

    def _reshaped(self, x: ir.Value, *dims: int) -> ir.Value:
        """``x`` with its leading axes and these dimensions."""
        shape = np.array([0] * (self._rank - 2) + list(dims), np.int64)  # 0 copies what stands there
        return self._op("Reshape", [x, self._builder.constant(f"{self._site.name}_shape", shape)])

    def _position(self, q: ir.Value, tables: tuple[ir.Value, ir.Value]) -> ir.Value:
        """The relative position terms [.., Hq Wq, Hk Wk]."""
        name, builder = self._site.name, self._builder
        high, wide = map(constant, tables)
        turned = [
            builder.constant(f"{name}_{axis}", np.ascontiguousarray(table.transpose(0, 2, 1)))
            for axis, table in (("table_h", high), ("table_w", wide))
        ]
        grid = self._reshaped(q, len(high), len(wide), high.shape[2])
        rows = self._op("MatMul", [grid, turned[0]])
        columns = self._op("MatMul", [self._swapped(grid, self._rank + 1, -3), turned[1]])
        columns = self._swapped(columns, self._rank + 1, -3)
        terms = [
            self._op("Unsqueeze", [term, builder.constant(f"{name}_axis", np.array([axis], np.int64))])
            for term, axis in ((rows, -1), (columns, -2))
        ]
        return self._reshaped(self._op("Add", terms), len(high) * len(wide), high.shape[1] * wide.shape[1])

    def _bias(self, bias: np.ndarray, output: ir.Value) -> ir.Value:
        """A bias [G, M, N] with as many axes as the scores, repeated where it must be."""
        leading = [side if isinstance(side, int) else 1 for side in list(output.shape or [])[:-2]]
        places = len(leading) - 1
        while places and math.prod(leading[places:]) % len(bias):
            places -= 1
        inner = leading[places:]
        whole = np.tile(bias, (math.prod(inner) // len(bias), 1, 1))
        return self._builder.constant(f"{self._site.name}_bias", whole.reshape(*inner, *bias.shape[1:]))

    def lower(self, plan: AttentionPlan, probabilities: UniformCodes) -> None:
        """Replace the node."""
        builder, site = self._builder, self._site
        operands = [value for value in site.node.inputs[:3] if value is not None]
        q, k, v = (
            builder.dequantize(builder.quantize(value, codes))
            for value, codes in zip(operands, (plan.q, plan.k, plan.v), strict=True)
        )
        scores = self._op("MatMul", [q, self._swapped(k, self._rank, -2)])
        if site.scale != 1.0:
            factor = builder.constant(f"{site.name}_factor", np.array(site.scale, np.float32))
            scores = self._op("Mul", [scores, factor])
        if site.tables is not None:
            scores = self._op("Add", [scores, self._position(q, site.tables)])
        if site.bias is not None:
            scores = self._op("Add", [scores, self._bias(constant(site.bias), site.node.outputs[0])])
        softmax = self._op("Softmax", [scores], axis=-1)
        p = builder.dequantize(builder.quantize(softmax, probabilities))
        output = site.node.outputs[0]
        made = self._op("MatMul", [p, v])
        made.shape, made.type = output.shape, output.type
        take_place(builder.graph, output, made, [site.node])


def _rank(site: AttentionSite) -> int | None:
    values = [*site.node.inputs[:3], site.node.outputs[0]]
    return next((len(value.shape) for value in values if value is not None and value.shape is not None), None)


def lower_qdq_attention(lifted: Lifted, builder: Builder, plan: QuantPlan) -> Report:
    """Replace the attention nodes of the plan, in place."""
    report = Report("attention")
    for site in lifted.attentions:
        if site.name not in plan.attentions:
            continue
        codes, rank = plan.attentions[site.name], _rank(site)
        if rank is None or not isinstance(codes.probabilities, UniformCodes):
            reason = "the number of axes is not known" if rank is None else "its post-softmax codes are not uniform"
            report.refuse(site.name, f"stays float: {reason}")
            continue
        _Lowering(builder, site, rank).lower(codes, codes.probabilities)
        report.done.append(site.name)
    return report
