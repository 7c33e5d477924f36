# SPDX-License-Identifier: Apache-2.0
"""What libraries have against a model; this runs in a process of its own, see `samq_onnx.isolate`."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.errors import UserError, shortened
from samq_onnx.runtime import open_session

__all__ = ["MODEL", "ZEROS", "fault"]

MODEL, ZEROS = "model.onnx", "zeros"  # a model without large weights, and the file that it has instead of them
TOLERATED = ("No Op registered", "topologically sorted")  # ONNX Runtime knows more operators, and sorts for itself


def fault(folder: str) -> str | None:
    """Why ONNX Runtime, ONNX's checker or onnx_ir refuses the model of a folder, None if none does."""
    os.chdir(folder)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        open_session(MODEL, threads=1, options=options)
    except UserError as error:
        return f"ONNX Runtime cannot load it ({shortened(error.__cause__ or error)})"
    model = onnx.ModelProto.FromString(Path(MODEL).read_bytes())
    model.graph.name = model.graph.name or "graph"  # the checker wants a name and shapes, and nothing else does
    for value in (*model.graph.input, *model.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        if not any(words in str(error) for words in TOLERATED):
            return f"ONNX's checker refuses it ({shortened(error)})"
    try:
        ir.to_proto(ir.from_proto(model))
    except Exception as error:  # onnx_ir raises its own kinds
        return f"onnx_ir cannot read it and write it again ({shortened(error.__cause__ or error)})"
    return None
