# SPDX-License-Identifier: Apache-2.0
"""Reading a checkpoint file: tensors by name and nothing else, never code.

Tensors stay in the file, which is mapped into memory, until they have been looked at: their names, their types and
whether the file is large enough for what they claim to hold.
"""

from __future__ import annotations

import math
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

__all__ = ["StateDict", "map_state_dict", "read_state_dict", "short", "to_single"]

StateDict = dict[str, torch.Tensor]

PICKLE_PROTOCOL_MARK = b"\x80"  # first byte of the files torch.save wrote before its zip format
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = torch.int64  # of batches that a BatchNorm has seen
LONGEST_NAME = 80


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Tensors of a checkpoint as `map_state_dict` finds them, in memory and as float32.

    Raises:
        UserError: as `map_state_dict` and `to_single`.
    """
    return to_single(map_state_dict(path), str(path))


def map_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Tensors of a ``.safetensors`` file or of a state dict saved by ``torch.save``, not yet read: floats and counters.

    A state dict may be one entry of a dict, as training programs write it, if no other entry is one.

    Raises:
        UserError: no such file, not a checkpoint, one that holds something else than a state dict, tensors that are
            not floating, dense and in the file, or claim more than it holds.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the path of a SAM checkpoint (.pth, .pt or .safetensors)")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    state = _state_dict(content)
    if state is None:
        raise UserError(
            f"{file}: not a state dict but {_describe(content)}; save weights with torch.save(model.state_dict(), ...)"
        )
    for name, tensor in state.items():
        kind = _foreign_kind(tensor)
        if kind:
            raise UserError(f"{file}: its {short(name)} is {kind}; save weights as dense tensors of float32")
    claimed = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in state.values())
    if claimed > file.stat().st_size:
        raise UserError(
            f"{file}: its tensors claim {claimed:.1e} bytes, more than the file has; save weights that are not expanded"
        )
    return state


def to_single(state: StateDict, where: str) -> StateDict:
    """Copies of the tensors, floating ones as float32.

    Raises:
        UserError: one holds values that are not finite in float32; the message begins with ``where``.
    """
    single = {
        name: tensor.detach().to(torch.float32 if tensor.is_floating_point() else None, copy=True).contiguous()
        for name, tensor in state.items()
    }
    for name, tensor in single.items():
        if not tensor.isfinite().all():
            raise UserError(f"{where}: its {short(name)} holds values that are not finite; use an undamaged checkpoint")
    return single


def short(name: str) -> str:
    """A name from a file, fit for a message."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def _read_safetensors(file: Path) -> StateDict:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file}: not a safetensors file ({short(str(error))}); download or save it again") from error
    except OSError as error:
        raise _unreadable(file, error) from error
    except Exception as error:  # types that torch does not know raise errors of several kinds
        raise UserError(f"{file}: not a safetensors file that can be read; download or save it again") from error


def _read_torch(file: Path) -> Any:
    zipped = _is_zip(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if zipped or _is_pickle(file):
            raise UserError(
                f"{file}: holds Python objects beside tensors, which are not loaded because they could run code; "
                "save the weights with torch.save(model.state_dict(), ...)"
            ) from error
        raise _not_a_checkpoint(file) from error
    except OSError as error:
        raise _unreadable(file, error) from error
    except Exception as error:  # the unpickler raises errors of any kind on files that are no pickles
        raise _not_a_checkpoint(file) from error


def _is_zip(file: Path) -> bool:
    """Whether the file is an archive. torch.save compresses nothing; what is compressed may unfold to any size."""
    try:
        if not zipfile.is_zipfile(file):
            return False
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except Exception as error:  # damaged archives raise errors of several kinds
        raise _not_a_checkpoint(file) from error
    if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in parts):
        raise _not_a_checkpoint(file)
    return True


def _not_a_checkpoint(file: Path) -> UserError:
    return UserError(f"{file}: not a PyTorch checkpoint, or a damaged one; download or save it again")


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file}: cannot be read ({error.strerror or error}); download or save it again")


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == PICKLE_PROTOCOL_MARK


def _state_dict(content: Any) -> StateDict | None:
    """The one state dict that ``content`` is or has."""
    if not isinstance(content, dict):
        return None
    found = [value for value in (content, *content.values()) if _is_state_dict(value)]
    return found[0] if len(found) == 1 else None


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _foreign_kind(tensor: torch.Tensor) -> str:
    """What keeps a tensor from being plain weights; empty if nothing does."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}, without values"
    if tensor.dtype not in (*FLOATS, COUNTER):
        return f"of the type {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        names = [short(key) for key in content if isinstance(key, str)]
        several = " with several state dicts" if sum(map(_is_state_dict, content.values())) > 1 else ""
        return f"a dict of {', '.join(names[:4]) or 'nothing'}{several}"
    return f"a {type(content).__name__}"
