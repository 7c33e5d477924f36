# SPDX-License-Identifier: Apache-2.0
"""Let single inputs of nodes go through codes and back, in float, to see what that does to all that follows.

    value -> Quantize -> [Clip ->] Dequantize -> one input of one node

Other readers of the value, and other inputs, are left alone. For searches while a plan is made; `linear` and
`attention` lower what the plan then says.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from samq_onnx.codes import UniformCodes
from samq_onnx.passes.lower.build import Builder

__all__ = ["fake_quantize_inputs"]


def fake_quantize_inputs(model: ir.Model, codes: Mapping[tuple[str, int], UniformCodes]) -> None:
    """Insert codes, in place.

    Args:
        codes: name of a node of the graph and number of its input -> what that input goes through.
    """
    builder = Builder(model.graph)
    for node in list(model.graph):
        for index, value in enumerate(node.inputs):
            found = codes.get((node.name or "", index))
            if found is not None and value is not None:
                node.replace_input_with(index, builder.dequantize(builder.quantize(value, found)))
