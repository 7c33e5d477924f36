# SPDX-License-Identifier: Apache-2.0
"""Lower a linear with many rows to one integer node of the samq domain, with what follows it.

    y = W x + b                     ->  QLinear(Quantize(x), W codes, b' codes, s_x s_w)          float y
    Quantize(view(y)) as q, k or v  ->  QLinearQuantize(.., s_x s_w / s_y, z_y), then the view    u8 codes
    Quantize(GELU(y))               ->  QLinearLut(.., s_x s_w / step, -low / step, table)        u8 codes

The integer sum stands for s_x s_w (sum), per output channel; b' = b - z_x sum W holds the zero point of x. Operands of
attention are quantized per output channel with the codes of the operand that the channel belongs to, so that views
(Reshape, Transpose, Split, ...) run on codes. GELU goes through a table over y = low + step i; outside it GELU's codes
do not change.

Takes MatMul and Gemm whose input has `MANY_ROWS` rows or more, or is a batch of unknown size; refuses others, among
them transposed inputs and activations that are read as float too: they stay QDQ.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
from scipy.special import erf

from samq_onnx.codes import UniformCodes
from samq_onnx.ops import DOMAIN
from samq_onnx.passes.fold.edit import reaches_only_attention
from samq_onnx.passes.lift import Gelu, Lifted, Linear
from samq_onnx.passes.lift.trace import nodes_between
from samq_onnx.passes.lower.build import Builder, Codes, take_place
from samq_onnx.plan import QuantPlan

__all__ = ["Epilogues", "lower_qlinear", "takes_qlinear"]

MANY_ROWS = 256  # the weight is packed in every run, which few rows would not repay
TABLE_SIZE = 2**14
FARTHEST_GELU = -6.0  # below it GELU is 0 for codes of any scale worth having


def takes_qlinear(linear: Linear) -> bool:
    """Whether the linear is a product of many rows."""
    if linear.node.op_type not in ("MatMul", "Gemm") or linear.x.shape is None:
        return False
    transposed = linear.node.attributes.get("transA")
    if transposed is not None and transposed.as_int():
        return False
    known = [d for d in linear.x.shape[:-1] if isinstance(d, int)]
    # unknown rows alone are the tokens of one prompt, unknown rows in an unknown batch those of many
    return math.prod(known) >= MANY_ROWS or len(linear.x.shape) - 1 - len(known) > 1


@dataclasses.dataclass
class _Operands:
    """Codes of attention operands: per output channel of the linear, and per operand value."""

    scale: np.ndarray
    zero_point: np.ndarray
    bits: int
    values: list[tuple[ir.Value, UniformCodes]]


class Epilogues:
    """What the outputs of linears are quantized to."""

    def __init__(self, lifted: Lifted, plan: QuantPlan) -> None:
        self._lifted = lifted
        self._plan = plan
        self._gelus = {gelu.x: gelu for gelu in lifted.gelus}
        self._inputs = {
            linear.node: plan.linears[linear.name].input for linear in lifted.linears if linear.name in plan.linears
        }

    def gelu(self, linear: Linear) -> tuple[Gelu, UniformCodes] | None:
        """The GELU that alone reads the linear, and its codes, if linears of one plan alone read it."""
        gelu = self._gelus.get(linear.output)
        if gelu is None or gelu.output.is_graph_output() or nodes_between(linear.output, gelu.output) is None:
            return None
        codes = {self._inputs.get(node) if index == 0 else None for node, index in gelu.output.uses()}
        only = codes.pop() if len(codes) == 1 else None
        return (gelu, only) if only is not None else None

    def operands(self, linear: Linear) -> _Operands | None:
        """Codes of the attention operands that alone read the linear, if they take each channel once."""
        if not reaches_only_attention(linear.output):
            return None
        count = linear.out_features
        made = _Operands(np.zeros(count, np.float64), np.zeros(count, np.float32), 0, [])
        taken = np.zeros(count, np.int64)
        widths = set()
        for site in self._lifted.attentions:
            for index, name in enumerate("qkv"):
                projection = getattr(site, name)
                if projection is None or projection.linear.node is not linear.node:
                    continue
                value = site.node.inputs[index]
                if site.name not in self._plan.attentions or value is None:
                    return None
                codes: UniformCodes = getattr(self._plan.attentions[site.name], name)
                np.add.at(taken, projection.channels.ravel(), 1)
                made.scale[projection.channels] = codes.scale
                made.zero_point[projection.channels] = codes.zero_point
                made.values.append((value, codes))
                widths.add(codes.bits)
        if len(widths) != 1 or np.any(taken != 1) or _attention_inputs(linear.output) != len(made.values):
            return None
        made.bits = widths.pop()
        return made


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


def _gelu_table(codes: UniformCodes) -> tuple[np.ndarray, float, float]:
    """Codes of GELU(low + step i), low and step."""

    def gelu(y: np.ndarray) -> np.ndarray:
        return 0.5 * y * (1 + erf(y / math.sqrt(2)))

    top = 2**codes.bits - 1
    far = np.linspace(FARTHEST_GELU, -1, 1001)
    zeros = np.abs(gelu(far)) < codes.scale / 4
    low = float(far[max(0, int(np.argmin(zeros)) - 1)]) if not zeros.all() else -1.0
    high = max(1.0, codes.scale * (top + 1 - codes.zero_point) + 0.2)  # GELU(y) > y - 0.2
    y, step = np.linspace(low, high, TABLE_SIZE, retstep=True)
    table = np.clip(np.rint(gelu(y) / codes.scale) + codes.zero_point, 0, top)
    return table.astype(np.uint8), low, float(step)


def lower_qlinear(
    builder: Builder,
    linear: Linear,
    x: Codes,
    stored: ir.Value,
    bias: np.ndarray,
    scale: np.ndarray,
    epilogues: Epilogues,
) -> None:
    """Put the integer node in the place of a linear.

    Args:
        x: codes of its input. stored: its weight codes s8 [K, N]. bias: s32 [N] in units of ``scale``, with the zero
            point of x.
        scale: float32 [N], what 1 of a sum stands for.
    """
    name = linear.name

    def add(op_type: str, *arrays: np.ndarray, dtype: ir.DataType, bits: int | None = None) -> ir.Value:
        held = [builder.constant(f"{name}_{op_type}", array) for array in (bias, *arrays)]
        output = ir.Value(name=f"{linear.output.name}_{op_type}", type=ir.TensorType(dtype), shape=linear.output.shape)
        inputs = [x.value, stored, *held]
        attributes: dict[str, int | float] = {"bits": bits} if bits is not None else {}
        builder.node(op_type, inputs, output, linear.output.producer(), attributes, DOMAIN)
        return output

    wide = scale.astype(np.float64)
    found = epilogues.gelu(linear)
    if found is not None:
        gelu, codes = found
        table, low, step = _gelu_table(codes)
        zero = np.array(-low / step, np.float32)
        made = add("QLinearLut", (wide / step).astype(np.float32), zero, table, dtype=ir.DataType.UINT8)
        made.shape = gelu.output.shape
        builder.provide(gelu.output, codes, made)
        return
    operands = epilogues.operands(linear)
    if operands is not None:
        factor = (wide / operands.scale).astype(np.float32)
        made = add("QLinearQuantize", factor, operands.zero_point, dtype=ir.DataType.UINT8, bits=operands.bits)
        views = _views(linear.output)
        for node, index in linear.output.uses():
            node.replace_input_with(index, made)
        for view in views[1:]:
            view.type = ir.TensorType(ir.DataType.UINT8)
        for value, codes in operands.values:
            made_value = made if value is linear.output else value
            builder.provide(made_value, codes, made_value)
        return
    made = add("QLinear", scale, dtype=ir.DataType.FLOAT)
    take_place(builder.graph, linear.output, made, filter(None, (linear.bias_node, linear.node)))
