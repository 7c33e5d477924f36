# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime really runs: multiply-accumulates in integers and in float, by executed kernel.

The count comes from a profiled run: operators, shapes and types are those of the kernels that ran after all graph
optimisation, so a QDQ pattern that was not fused shows up as the float operator it fell back to.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from samq_onnx.runtime import open_session

__all__ = ["FusionReport", "fusion_report"]

INTEGER_TYPES = frozenset({"uint8", "int8"})
INTEGER_DESPITE_FLOAT_INPUT = frozenset({"DynamicQuantizeMatMul"})

Tensor = tuple[str, list[int]]


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


@dataclasses.dataclass
class _Run:
    """One executed kernel: its inputs as profiled, output shape, and the shapes of its constant inputs."""

    inputs: list[Tensor]
    output: list[int]
    node: onnx.NodeProto | None
    constants: list[list[int]]


def _attribute(node: onnx.NodeProto | None, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None) if node is not None else None


def _matmul(run: _Run) -> int:
    left = run.inputs[0][1]
    transposed = _attribute(run.node, "transA")
    return math.prod(run.output) * (left[-2] if transposed is not None and transposed.i else left[-1])


def _gemm(run: _Run) -> int:
    return math.prod(run.output) * math.prod(run.inputs[0][1]) // run.output[0]


def _conv(run: _Run) -> int:
    weight = next((shape for shape in run.constants if len(shape) == len(run.output)), None)
    return math.prod(run.output) * math.prod(weight[1:]) if weight else 0


def _conv_transpose(run: _Run) -> int:
    weight = next((shape for shape in run.constants if len(shape) == len(run.output)), None)
    return math.prod(run.inputs[0][1]) * math.prod(weight[1:]) if weight else 0


def _einsum(run: _Run) -> int:
    equation = _attribute(run.node, "equation")
    if equation is None:
        return 0
    terms = equation.s.decode().split("->")[0].replace(" ", "").split(",")
    shapes = [shape for _, shape in run.inputs]
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return math.prod(sizes.values())


def _attention(run: _Run) -> int:
    rank = len(run.inputs[0][1])
    q, k, v = [shape for _, shape in run.inputs if len(shape) == rank][:3]
    return math.prod(q) * k[-2] + math.prod(q[:-1]) * k[-2] * v[-1]


COUNTERS = {
    **dict.fromkeys(
        ("MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul"),
        _matmul,
    ),
    **dict.fromkeys(("MatMulNBits",), _matmul),
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm"), _gemm),
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv"), _conv),
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    **dict.fromkeys(
        (
            *("Attention", "AttentionRelPos", "QAttention", "QAttentionRelPos"),
            *("UniformAttention", "UniformAttentionRelPos"),
        ),
        _attention,
    ),
}


def _tensors(entries: list[dict[str, list[int]]]) -> list[Tensor]:
    return [(kind, shape) for entry in entries for kind, shape in entry.items()]


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
    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "run")
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        options.log_severity_level = 3
        session = open_session(os.fspath(model), native=native, options=options)
        session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimized = onnx.load(str(Path(scratch) / "optimized.onnx"), load_external_data=False)
    nodes = {node.name: node for node in optimized.graph.node}
    dims = {tensor.name: list(tensor.dims) for tensor in optimized.graph.initializer}
    for event in events:
        arguments = event.get("args", {})
        counter = COUNTERS.get(arguments.get("op_name", ""))
        if counter is None or not event["name"].endswith("_kernel_time"):
            continue
        inputs, outputs = _tensors(arguments["input_type_shape"]), _tensors(arguments["output_type_shape"])
        name = arguments["op_name"]
        node = nodes.get(event["name"].removesuffix("_kernel_time"))
        constants = [dims[source] for source in node.input if source in dims] if node is not None else []
        macs = counter(_Run(inputs, outputs[0][1], node, constants))
        integer = inputs[0][0] in INTEGER_TYPES or name in INTEGER_DESPITE_FLOAT_INPUT
        operators[name][0 if integer else 1] += macs
    report.operators = {name: (whole, real) for name, (whole, real) in operators.items()}
    report.integer_macs = sum(whole for whole, _ in report.operators.values())
    report.float_macs = sum(real for _, real in report.operators.values())
    return report
