# SPDX-License-Identifier: Apache-2.0
"""Reading a user's ONNX file: is it one, and how large."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from samq_onnx.digest import sha256_of
from samq_onnx.door import admit
from samq_onnx.errors import UserError, shortened
from samq_onnx.external import external_tensors, region, scopes, weight_files
from samq_onnx.passes.graph import tap

__all__ = [
    "load_model",
    "model_bytes",
    "model_files",
    "model_sha256",
    "read_model",
    "tap",
]


def read_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; external data stays where it is.

    Raises:
        UserError: no such file, not a valid ONNX model (see `samq_onnx.door`), or external data missing.
    """
    file = Path(path)
    proto = admit(file)
    for tensor in external_tensors(proto):
        place = region(tensor, file)
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = os.fspath(place.path)  # links were followed here, which onnx_ir refuses to do
    for scope in scopes(proto.graph):
        if isinstance(scope, onnx.GraphProto):
            scope.initializer.extend(map(_dense, scope.sparse_initializer))  # onnx_ir knows no others
            del scope.sparse_initializer[:]
    try:
        return ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises its own kinds
        raise UserError(f"{file}: onnx_ir cannot read it ({shortened(error)}); export it again") from error


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    places, values = (onnx.numpy_helper.to_array(tensor) for tensor in (sparse.indices, sparse.values))
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        dense.flat[places] = values
    else:
        dense[tuple(places.T)] = values
    return onnx.numpy_helper.from_array(dense, sparse.values.name)


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file with its external data.

    Raises:
        UserError: as `read_model`.
    """
    return ir.external_data.load_to_model(read_model(path))


def model_files(path: str | os.PathLike[str]) -> list[Path]:
    """A model file and the external data files that it names; the file alone if it is no model.

    Raises:
        UserError: external data missing.
    """
    if not Path(path).is_file():  # opened, a pipe would wait and a device never end
        return [Path(path)]
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf raises its own kinds
        return [Path(path)]
    return [Path(path), *weight_files(model, Path(path))]


def model_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a model file and of the external data files it names."""
    return sum(file.stat().st_size for file in model_files(path))


def model_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a model file and of the external data files it names."""
    return sha256_of(*model_files(path))
