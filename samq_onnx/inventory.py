# SPDX-License-Identifier: Apache-2.0
"""Every file that a command reads and every file that it will write: none of these is one of those."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from samq_onnx import data
from samq_onnx.array_feeds import SUFFIX
from samq_onnx.errors import UserError
from samq_onnx.external import data_name
from samq_onnx.files import resolved
from samq_onnx.models import model_files

__all__ = ["check_files"]


def check_files(reads: Iterable[Path | None], writes: Iterable[Path | None]) -> None:
    """Refuse outputs that would replace an input or each other, or be the folder of one another.

    Args:
        reads: models, whose external data are read too; folders, whose images and annotations are, or arrays; other
            files. None is nothing.
        writes: files. None is nothing.

    Raises:
        UserError: two of them are one file, links of both kinds followed, or one lies in the other.
    """
    outputs = [path for path in writes if path is not None]
    for path in outputs:
        if any(resolved(path) in resolved(other).parents for other in outputs):
            raise UserError(f"{path}: is also the folder of another output; choose another path")
    taken = {_identity(file) for path in reads if path is not None for file in _files(path)}
    taken |= {_identity(path.with_name(data_name(path.name))) for path in outputs}  # which external data may take
    for path in outputs:
        if _identity(path) in taken:
            raise UserError(f"{path}: would replace an input or another output; choose another path")
        taken.add(_identity(path))


def _files(path: Path) -> list[Path]:
    """What is read with it; what cannot be read is told by who reads it."""
    arrays = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else []
    try:
        return [*arrays, *(data.files(path) if path.is_dir() else model_files(path))]
    except (UserError, OSError):
        return [path, *arrays]


def _identity(path: Path) -> tuple[int, int] | Path:
    """Equal for two names of one file, links of both kinds included."""
    try:
        status = os.stat(path)
    except OSError:
        return resolved(path)
    return status.st_dev, status.st_ino
