# SPDX-License-Identifier: Apache-2.0
"""Reading a checkpoint file: tensors by name and nothing else, never code."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from samq_onnx.errors import UserError

__all__ = ["StateDict", "read_state_dict"]

StateDict = dict[str, torch.Tensor]

PICKLE_PROTOCOL_MARK = b"\x80"  # first byte of the files torch.save wrote before its zip format


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Tensors of a ``.safetensors`` file or of a state dict saved by ``torch.save``; floating ones become float32.

    Raises:
        UserError: no such file, not a checkpoint, or one that holds something else than a state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the path of a SAM checkpoint (.pth, .pt or .safetensors)")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    if not _is_state_dict(content):
        raise UserError(
            f"{file}: not a state dict but {_describe(content)}; save weights with torch.save(model.state_dict(), ...)"
        )
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content.items()}


def _read_safetensors(file: Path) -> StateDict:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file}: not a safetensors file ({error}); download or save it again") from error


def _read_torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_pickle(file):
            raise UserError(
                f"{file}: holds Python objects beside tensors, which are not loaded because they could run code; "
                "save the weights with torch.save(model.state_dict(), ...)"
            ) from error
        raise _not_a_checkpoint(file) from error
    except OSError:
        raise
    except Exception as error:  # the unpickler raises errors of any kind on files that are no pickles
        raise _not_a_checkpoint(file) from error


def _not_a_checkpoint(file: Path) -> UserError:
    return UserError(f"{file}: not a PyTorch checkpoint, or a damaged one; download or save it again")


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == PICKLE_PROTOCOL_MARK or zipfile.is_zipfile(stream)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict of {', '.join(str(key) for key in list(content)[:4]) or 'nothing'}"
    return f"a {type(content).__name__}"
