# SPDX-License-Identifier: Apache-2.0
"""A model file of bfloat16 as one of float32, for those who look at it only: ONNX Runtime computes none on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from samq_onnx.external import scopes, tensors

__all__ = ["has_bfloat16", "without_bfloat16"]

TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")  # whose number is a type


def has_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether a model has tensors of bfloat16, or makes some."""
    made = (one.i for one in _attributes(model) if one.name in TYPE_ATTRIBUTES)
    return TensorProto.BFLOAT16 in {*(tensor.data_type for tensor in tensors(model)), *made}


def without_bfloat16(model: onnx.ModelProto) -> None:
    """Make all of it float32, in place; tensors hold their data themselves, or in other files zeros alone."""
    for tensor in tensors(model):
        if tensor.data_type != TensorProto.BFLOAT16:
            continue
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.data_type = TensorProto.FLOAT
            for entry in tensor.external_data:
                if entry.key == "length":
                    entry.value = str(2 * int(entry.value))
        else:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for attribute in _attributes(model):
        if attribute.name in TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
    for scope in scopes(model.graph, *model.functions):
        outer = [*scope.input, *scope.output] if isinstance(scope, onnx.GraphProto) else []
        for value in (*outer, *scope.value_info):
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT


def _attributes(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for scope in scopes(model.graph, *model.functions):
        for node in scope.node:
            yield from node.attribute
