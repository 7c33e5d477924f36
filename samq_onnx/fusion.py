# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime really runs: multiply-accumulates in integers and in float, by executed kernel.

The count comes from a profiled run: operators, shapes and types are those of the kernels that ran after all graph
optimisation, so a QDQ pattern that was not fused shows up as the float operator it fell back to.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from samq_onnx.ops import CODE_ATTENTION, TERMS
from samq_onnx.profiling import Kernel, profiled

__all__ = ["FusionReport", "fusion_report"]

INTEGER_TYPES = frozenset({"uint8", "int8"})
INTEGER_DESPITE_FLOAT_INPUT = frozenset({"DynamicQuantizeMatMul"})

# blocks channels by 8 or 16, padding included, which the count must not see
BLOCKING = "NchwcTransformer"


@dataclasses.dataclass
class FusionReport:
    """Multiply-accumulates of one run.

    Attributes:
        integer_macs, float_macs: totals over matrix products, convolutions and attention.
        operators: operator name -> (integer MACs, float MACs), as executed.
    """

    integer_macs: int = 0
    float_macs: int = 0
    operators: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def integer_share(self) -> float:
        """Integer part of all multiply-accumulates, 0 to 1."""
        return self.integer_macs / max(1, self.integer_macs + self.float_macs)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "integer_share": self.integer_share}

    def lines(self) -> list[str]:
        """The report as text, largest operator first."""
        total = self.integer_macs + self.float_macs
        head = f"integer MACs: {self.integer_share:.1%} of {total / 1e9:.2f} G (read from the executed kernels)"
        rows = sorted(self.operators.items(), key=lambda item: -sum(item[1]))
        return [head] + [
            f"  {name:<28} {(whole + real) / 1e9:9.3f} G  {'integer' if whole >= real else 'float'}"
            for name, (whole, real) in rows
        ]


def _attribute(node: onnx.NodeProto | None, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None) if node is not None else None


def _matmul(kernel: Kernel) -> int:
    left = kernel.inputs[0][1]
    transposed = _attribute(kernel.node, "transA")
    return math.prod(kernel.output) * (left[-2] if transposed is not None and transposed.i else left[-1])


def _gemm(kernel: Kernel) -> int:
    return math.prod(kernel.output) * math.prod(kernel.inputs[0][1]) // kernel.output[0]


def _filter(kernel: Kernel) -> list[int]:
    """Shape of a convolution's weight, prepacked or not."""
    shapes = [*kernel.constants, *(shape for _, shape in kernel.inputs[1:])]
    return next((shape for shape in shapes if len(shape) == len(kernel.output)), [0, 0])


def _conv(kernel: Kernel) -> int:
    return math.prod(kernel.output) * math.prod(_filter(kernel)[1:])


def _conv_transpose(kernel: Kernel) -> int:
    return math.prod(kernel.inputs[0][1]) * math.prod(_filter(kernel)[1:])


def _einsum(kernel: Kernel) -> int:
    equation = _attribute(kernel.node, "equation")
    if equation is None:
        return 0
    terms = equation.s.decode().split("->")[0].replace(" ", "").split(",")
    shapes = [shape for _, shape in kernel.inputs]
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return math.prod(sizes.values())


def _attention(kernel: Kernel) -> int:
    rank = len(kernel.inputs[0][1])
    q, k, v = [shape for _, shape in kernel.inputs if len(shape) == rank][:3]
    return math.prod(q) * k[-2] + math.prod(q[:-1]) * k[-2] * v[-1]


def _attention_rel_pos(kernel: Kernel) -> int:
    """With q times both tables, [Hq, Hk, d] and [Wq, Wk, d], the last inputs of rank 3."""
    tables = [shape for _, shape in kernel.inputs if len(shape) == 3][-2:]
    return _attention(kernel) + math.prod(kernel.inputs[0][1]) * sum(shape[1] for shape in tables)


COUNTERS = {
    **dict.fromkeys(
        (
            *("MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul"),
            *("DynamicQuantizeMatMul", "MatMulNBits"),
            *("QLinear", "QLinearResidual", "QLinearQuantize", "QLinearLut"),
        ),
        _matmul,
    ),
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm"), _gemm),
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv"), _conv),
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    **{
        f"{name}{terms}{end}": _attention_rel_pos if terms == "RelPos" else _attention
        for name in ("Attention", *CODE_ATTENTION)
        for terms in TERMS
        for end in ("", "Quantize")
    },
}


def fusion_report(
    model: str | os.PathLike[str], feed: Mapping[str, np.ndarray], *, native: bool = True
) -> FusionReport:
    """Run ``model`` once on ``feed`` under ONNX Runtime's profiler and count what ran.

    Args:
        model: path of an ONNX file.
        feed: graph input name -> array.
        native: with the op library, or with the function bodies in its place.
    """
    report = FusionReport()
    operators: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for kernel in profiled(model, feed, native=native, without=BLOCKING):
        counter = COUNTERS.get(kernel.operator)
        if counter is None:
            continue
        integer = kernel.inputs[0][0] in INTEGER_TYPES or kernel.operator in INTEGER_DESPITE_FLOAT_INPUT
        operators[kernel.operator][0 if integer else 1] += counter(kernel)
    report.operators = {name: (whole, real) for name, (whole, real) in operators.items()}
    report.integer_macs = sum(whole for whole, _ in report.operators.values())
    report.float_macs = sum(real for _, real in report.operators.values())
    return report
