# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of files of any size."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["sha256_of"]

BLOCK = 1 << 22  # bytes


def sha256_of(*files: Path) -> str:
    """Of the contents of files, one behind the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
