# SPDX-License-Identifier: Apache-2.0
"""ONNX model -> file, with the weights beside it where protobuf cannot hold them."""

from __future__ import annotations

from pathlib import Path

import onnx

from samq_onnx.external import data_name

__all__ = ["write"]

FILE_LIMIT = 2**31 - 2**24  # bytes of weights in one file; protobuf ends at 2 GiB, and the graph needs room
EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the .onnx file
MAX_IR_VERSION = 10


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to ``path``; weights beyond protobuf's limit go to one file beside it, ``path`` + ``.data``."""
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > FILE_LIMIT
    if large:
        onnx.save(
            model, path, save_as_external_data=True, location=data_name(path.name), size_threshold=EXTERNAL_THRESHOLD
        )
    else:
        onnx.save(model, path)
