# SPDX-License-Identifier: Apache-2.0
"""Archives of arrays (npz) that others may have written: bounded, without objects, every member there once."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

__all__ = ["read_arrays"]


def read_arrays(path: Path, largest: int) -> dict[str, np.ndarray]:
    """All arrays of a file, by name.

    Args:
        largest: bytes that they may unpack to.

    Raises:
        ValueError: it is no such archive; the message is one line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > largest:
            raise ValueError(f"unpacks to {size / 1e9:.0f} GB")
        if len({member.filename for member in members}) != len(members):
            raise ValueError("has a member twice")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile and numpy raise errors of any kind
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if not all(isinstance(array, np.ndarray) for array in found.values()):
        raise ValueError("has members that are no arrays")
    return found
