# SPDX-License-Identifier: Apache-2.0
"""Reading a user's ONNX file: is it one, and how large."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from samq_onnx.errors import UserError

__all__ = [
    "load_model",
    "model_bytes",
    "model_sha256",
    "read_model",
    "tap",
]


def read_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; external data stays where it is.

    Raises:
        UserError: no such file, not an ONNX model, or external data missing.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the path of an .onnx model")
    try:
        model = ir.load(file)
    except Exception as error:  # protobuf raises its own kinds
        raise UserError(f"{file}: not an ONNX model ({type(error).__name__}); export it again") from error
    if not len(model.graph) or not model.graph.outputs:
        raise UserError(f"{file}: not an ONNX model (it holds no graph); export it again")
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).is_file():
            raise UserError(f"{file}: its weights file {tensor.path} is missing; keep both files in one folder")
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).stat().st_size < _end(tensor):
            raise UserError(f"{file}: its weights file {tensor.path} is cut short; copy or export it again")
    return model


def _end(tensor: ir.ExternalTensor) -> int:
    """First byte behind the tensor in its file."""
    return (tensor.offset or 0) + (tensor.length or 0)


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file with its external data.

    Raises:
        UserError: as `read_model`.
    """
    return ir.external_data.load_to_model(read_model(path))


def _files(path: str | os.PathLike[str]) -> list[Path]:
    """A model file and the external data files that it names."""
    tensors = (value.const_value for value in ir.load(path).graph.initializers.values())
    return [Path(path), *sorted({Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})]


def model_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a model file and of the external data files it names."""
    return sum(file.stat().st_size for file in _files(path))


def model_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a model file and of the external data files it names."""
    digest = hashlib.sha256()
    for part in _files(path):
        with part.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def tap(model: ir.Model, names: Iterable[str]) -> None:
    """Make the float values of these names outputs too, behind those there are."""
    made = {value.name: value for node in model.graph for value in node.outputs}
    present = {value.name for value in model.graph.outputs}
    for name in names:
        if name not in present:
            made[name].type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(made[name])
