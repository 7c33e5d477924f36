# SPDX-License-Identifier: Apache-2.0
"""Lower a linear with many rows to one integer node of the samq domain, with what follows it.

    y = W x + b                     ->  QLinear(Quantize(x), W codes, b' codes, s_x s_w)          float y
    Quantize(view(y)) as q, k or v  ->  QLinearQuantize(.., s_x s_w / s_y, z_y), then the view    u8 codes
    Quantize(GELU(y))               ->  QLinearLut(.., s_x s_w / step, -low / step, table)        u8 codes

The integer sum stands for s_x s_w (sum), per output channel; b' = b - z_x sum W holds the zero point of x. Operands of
attention are quantized per output channel with the codes of the operand that the channel belongs to, so that views
(Reshape, Transpose, Split, ...) run on codes. GELU goes through a table over y = low + step i; outside it GELU's codes
do not change.

Takes MatMul and Gemm whose input has `MANY_ROWS` rows or more, or is a batch of unknown size; others stay QDQ.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
from scipy.special import erf

from samq_onnx.codes import HybridCodes, UniformCodes
from samq_onnx.ops import DOMAIN
from samq_onnx.passes.fold.edit import reaches_only_attention
from samq_onnx.passes.graph import constant
from samq_onnx.passes.lift import Gelu, Lifted, Linear
from samq_onnx.passes.lift.trace import nodes_between
from samq_onnx.passes.lower.build import Builder, Codes, take_place
from samq_onnx.passes.report import Report
from samq_onnx.plan import QuantPlan

__all__ = ["IntegerLinears", "has_many_rows"]

MANY_ROWS = 256  # the weight is packed in every run, which few rows would not repay
TABLE_SIZE = 2**14
FARTHEST_GELU = -6.0  # below it GELU is 0 for codes of any scale worth having


def has_many_rows(value: ir.Value) -> bool:
    """Whether a value [..., C] has many rows, or is a batch of unknown size."""
    if value.shape is None:
        return False
    known = [d for d in value.shape[:-1] if isinstance(d, int)]
    # unknown rows alone are the tokens of one prompt, unknown rows in an unknown batch those of many
    return math.prod(known) >= MANY_ROWS or len(value.shape) - 1 - len(known) > 1


@dataclasses.dataclass
class _Operands:
    """Codes of attention operands: per output channel of the linear, and per operand value."""

    scale: np.ndarray
    zero_point: np.ndarray
    bits: int
    values: list[tuple[ir.Value, UniformCodes]]


class IntegerLinears:
    """Puts integer nodes in the place of linears of many rows, with what follows them.

    Attributes:
        gelus, attention: reports of the GELUs and of the operands of attention that follow.
    """

    def __init__(self, lifted: Lifted, builder: Builder, plan: QuantPlan) -> None:
        self.gelus, self.attention = Report("tables of GELU"), Report("codes for attention")
        self._lifted = lifted
        self._builder = builder
        self._plan = plan
        self._gelus = {gelu.x: gelu for gelu in lifted.gelus}
        self._inputs = {
            linear.node: plan.linears[linear.name].hybrid or plan.linears[linear.name].input
            for linear in lifted.linears
            if linear.name in plan.linears
        }

    def takes(self, linear: Linear) -> bool:
        """Whether the linear is a product of many rows."""
        return linear.node.op_type in ("MatMul", "Gemm") and has_many_rows(linear.x)

    def _gelu(self, linear: Linear) -> tuple[Gelu, UniformCodes | HybridCodes] | None:
        """The GELU that alone reads the linear, and its codes, if linears of one plan alone read it."""
        gelu = self._gelus.get(linear.output)
        if gelu is None:
            return None
        if nodes_between(linear.output, gelu.output) is None:
            self.gelus.refuse(linear.name, "GELU stays float: something else reads what it is made of")
            return None
        codes = {self._inputs.get(node) if index == 0 else None for node, index in gelu.output.uses()}
        only = codes.pop() if len(codes) == 1 and not gelu.output.is_graph_output() else None
        if only is None:
            self.gelus.refuse(linear.name, "GELU stays float: something else reads it than linears with one plan")
            return None
        return gelu, only

    def _operands(self, linear: Linear) -> _Operands | str | None:
        """Codes of the attention operands that alone read the linear, if they take each channel once, or what keeps
        them from being made with it; None of a linear that makes no operands."""
        read = [
            (site, index, name)
            for site in self._lifted.attentions
            for index, name in enumerate("qkv")
            if (projection := getattr(site, name)) is not None and projection.linear.node is linear.node
        ]
        if not read:
            return None

        apart = ", ".join(name for _, _, name in read) + " quantized apart from their linear: "
        if not reaches_only_attention(linear.output):
            return apart + "something else reads it"
        count = linear.out_features
        made = _Operands(np.zeros(count, np.float64), np.zeros(count, np.float32), 0, [])
        taken = np.zeros(count, np.int64)
        widths = set()
        for site, index, name in read:
            value = site.node.inputs[index]
            if site.name not in self._plan.attentions or value is None:
                return apart + f"attention {site.name} stays float"
            channels, codes = getattr(site, name).channels, getattr(self._plan.attentions[site.name], name)
            np.add.at(taken, channels.ravel(), 1)
            made.scale[channels] = codes.scale
            made.zero_point[channels] = codes.zero_point
            made.values.append((value, codes))
            widths.add(codes.bits)
        if len(widths) != 1:
            return apart + "their codes have different widths"
        if np.any(taken != 1) or _attention_inputs(linear.output) != len(made.values):
            return apart + "they do not take each of its channels once"
        made.bits = widths.pop()
        return made

    def lower(self, linear: Linear, x: Codes, stored: ir.Value, bias: np.ndarray, scale: np.ndarray) -> None:
        """Put the integer node in the place of a linear.

        Args:
            x: codes of its input. stored: its weight codes s8 [K, N].
            bias: s32 [N] in units of ``scale``, with the zero point of x.
            scale: float32 [N], what 1 of a sum stands for.
        """
        name, builder = linear.name, self._builder

        def add(op_type: str, *arrays: np.ndarray, dtype: ir.DataType, bits: int | None = None) -> ir.Value:
            held = [builder.constant(f"{name}_{op_type}", array) for array in (bias, *arrays)]
            output = ir.Value(
                name=f"{linear.output.name}_{op_type}", type=ir.TensorType(dtype), shape=linear.output.shape
            )
            inputs = [x.value, stored, *held]
            attributes: dict[str, int | float] = {"bits": bits} if bits is not None else {}
            builder.node(op_type, inputs, output, linear.output.producer(), attributes, DOMAIN)
            return output

        wide = scale.astype(np.float64)
        found = self._gelu(linear)
        if found is not None:
            gelu, codes = found
            table, low, step = _gelu_table(codes)
            zero = np.array(-low / step, np.float32)
            made = add("QLinearLut", (wide / step).astype(np.float32), zero, table, dtype=ir.DataType.UINT8)
            made.shape = gelu.output.shape
            builder.provide(gelu.output, codes, made)
            self.gelus.done.append(name)
            return
        operands = self._operands(linear)
        if isinstance(operands, str):
            self.attention.refuse(name, operands)
        elif operands is not None:
            factor = (wide / operands.scale).astype(np.float32)
            made = add("QLinearQuantize", factor, operands.zero_point, dtype=ir.DataType.UINT8, bits=operands.bits)
            views = _views(linear.output)
            if linear.fill is not None:
                self._fill(linear, linear.fill, operands)
            for node, index in linear.output.uses():
                node.replace_input_with(index, made)
            for view in views[1:]:
                view.type = ir.TensorType(ir.DataType.UINT8)
            for value, codes in operands.values:
                made_value = made if value is linear.output else value
                builder.provide(made_value, codes, made_value)
            self.attention.done.append(name)
            return
        made = add("QLinear", scale, dtype=ir.DataType.FLOAT)
        take_place(builder.graph, linear.output, made, filter(None, (linear.bias_node, linear.node)))

    def _fill(self, linear: Linear, fill: ir.Value, operands: _Operands) -> None:
        """Let the rows that pad the linear's output be codes too."""
        codes = np.rint(constant(fill) / operands.scale) + operands.zero_point
        stored = np.clip(codes, 0, 2**operands.bits - 1).astype(np.uint8)
        made = self._builder.constant(f"{linear.name}_fill", stored)
        for node, index in fill.uses():
            node.replace_input_with(index, made)


def _attention_inputs(value: ir.Value) -> int:
    """How many inputs of samq nodes ``value`` reaches through views."""
    return sum(node.domain == DOMAIN for view in _views(value) for node, _ in view.uses())


def _views(value: ir.Value) -> list[ir.Value]:
    """The value and what views make of it."""
    found, pending = [], [value]
    while pending:
        current = pending.pop()
        found.append(current)
        for node in {node for node, index in current.uses() if index == 0 and node.domain != DOMAIN}:
            if node.op_type != "Shape":
                pending += node.outputs
    return found


def _gelu_table(codes: UniformCodes | HybridCodes) -> tuple[np.ndarray, float, float]:
    """Codes of GELU(low + step i), low and step."""
    if isinstance(codes, HybridCodes):
        table, low, step = _gelu_table(codes.grid)
        return codes.table()[table], low, step

    def gelu(y: np.ndarray) -> np.ndarray:
        made: np.ndarray = 0.5 * y * (1 + erf(y / math.sqrt(2)))
        return made

    top = 2**codes.bits - 1
    far = np.linspace(FARTHEST_GELU, -1, 1001)
    zeros = np.abs(gelu(far)) < codes.scale / 4
    low = float(far[max(0, int(np.argmin(zeros)) - 1)]) if not zeros.all() else -1.0
    high = max(1.0, codes.scale * (top + 1 - codes.zero_point) + 0.2)  # GELU(y) > y - 0.2
    y, step = np.linspace(low, high, TABLE_SIZE, retstep=True)
    table = np.clip(np.rint(gelu(y) / codes.scale) + codes.zero_point, 0, top)
    return table.astype(np.uint8), low, float(step)
