# SPDX-License-Identifier: Apache-2.0
"""Activations of all inputs, kept on disk for whoever sees them many times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

__all__ = ["ActivationCache"]


class ActivationCache:
    """Collects tensors of each feed on disk; equal ones, as the image of many prompts, are kept once."""

    def __init__(self, tensors: Sequence[str], folder: Path) -> None:
        self.tensors = tuple(tensors)
        self.inputs = None
        self._folder = folder
        self._files: list[list[Path]] = []

    def update(self, *arrays: np.ndarray) -> None:
        files = []
        for array in arrays:
            file = self._folder / f"{hashlib.sha256(array.tobytes()).hexdigest()}-{array.ndim}.npy"
            if not file.exists():
                np.save(file, array, allow_pickle=False)
            files.append(file)
        self._files.append(files)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [torch.from_numpy(np.load(file, allow_pickle=False)) for file in self._files[index]]

    def __len__(self) -> int:
        return len(self._files)
