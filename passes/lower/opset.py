# SPDX-License-Identifier: Apache-2.0
"""Raise a model to the lowest opset that can hold what lowering writes.

QDQ with per-channel weights needs opset 13, int4 tensors opset 21. Raising changes no value: each operator is
rewritten to its newer form by onnxscript's converter, but for the reductions, whose axes became an input in opset
18 and which that converter leaves as they are. Refuses (UserError) what the converter does not know.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import version_converter

from samq_onnx.errors import UserError

__all__ = ["INT4_OPSET", "QDQ_OPSET", "raise_opset"]

QDQ_OPSET = 13
INT4_OPSET = 21


REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"}
    | {"ReduceSumSquare"}
)
AXES_INPUT_OPSET = 18


def _axes_to_input(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type in REDUCTIONS and "axes" in node.attributes:
            axes = np.array(node.attributes.pop("axes").as_ints(), np.int64)
            name = f"{node.outputs[0].name}_axes"
            value = ir.Value(name=name, const_value=ir.tensor(axes, name=name))
            value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(axes.shape)
            model.graph.register_initializer(value)
            node.resize_inputs(2)
            node.replace_input_with(1, value)


def raise_opset(model: ir.Model, weight_bits: int) -> None:
    """Raise the default-domain opset of ``model``, in place, if weights of ``weight_bits`` need a newer one."""
    needed = INT4_OPSET if weight_bits <= 4 else QDQ_OPSET
    current = model.opset_imports.get("", 0)
    if current >= needed:
        return
    if current < QDQ_OPSET:
        needed = max(needed, AXES_INPUT_OPSET)  # the converter knows no way to opsets between
    if current < AXES_INPUT_OPSET <= needed:
        _axes_to_input(model)
    try:
        version_converter.convert_version(model, needed)
    except Exception as error:  # the converter raises errors of any kind
        raise UserError(f"opset {current} cannot be raised to {needed} ({error}); export the model again") from error
    if model.opset_imports.get("", 0) < needed:
        raise UserError(
            f"the model has opset {current} and cannot be raised to {needed}; export it with opset {needed}"
        )
    model.ir_version = max(model.ir_version, 10 if needed == INT4_OPSET else 8)
