# SPDX-License-Identifier: Apache-2.0
"""Reading a user's ONNX file: is it one, how large, which part of SAM is it, what does it want to be fed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from samq_onnx.digest import sha256_of
from samq_onnx.errors import UserError

__all__ = [
    "DECODER_INPUTS",
    "is_decoder",
    "load_model",
    "model_bytes",
    "model_files",
    "model_sha256",
    "read_model",
    "square_image_input",
    "tap",
]

DECODER_INPUTS = (
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
    "orig_im_size",
)


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


def model_files(path: str | os.PathLike[str]) -> list[Path]:
    """A model file and the external data files that it names; the file alone if it is no model."""
    try:
        model = ir.load(path)
    except Exception:  # as in `read_model`
        return [Path(path)]
    tensors = (value.const_value for value in model.graph.initializers.values())
    return [Path(path), *sorted({Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})]


def model_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a model file and of the external data files it names."""
    return sum(file.stat().st_size for file in model_files(path))


def model_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a model file and of the external data files it names."""
    return sha256_of(*model_files(path))


def is_decoder(model: ir.Model) -> bool:
    """Whether the graph has the inputs of segment-anything's exported decoder."""
    return {value.name for value in model.graph.inputs} == set(DECODER_INPUTS)


def square_image_input(model: ir.Model) -> tuple[str, int] | None:
    """Name and side of the only input if it is a float image [1 or N, 3, S, S], else None."""
    if len(model.graph.inputs) != 1:
        return None
    value = model.graph.inputs[0]
    shape = value.shape
    if value.dtype != ir.DataType.FLOAT or shape is None or len(shape) != 4 or shape[1] != 3:
        return None
    height, width = shape[2], shape[3]
    if not isinstance(height, int) or height != width:
        return None
    return value.name or "", height


def tap(model: ir.Model, names: Iterable[str]) -> None:
    """Make the float values of these names outputs too, behind those there are."""
    made = {value.name: value for node in model.graph for value in node.outputs}
    present = {value.name for value in model.graph.outputs}
    for name in names:
        if name not in present:
            made[name].type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(made[name])
