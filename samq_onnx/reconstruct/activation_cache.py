# SPDX-License-Identifier: Apache-2.0
"""Activations of all inputs, kept in memory as far as they fit and on disk beyond, for whoever sees them many times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

__all__ = ["ActivationCache"]


class ActivationCache:
    """Collects tensors of each feed; equal ones, as the image of many prompts, are kept once.

    Args:
        tensors: their names. folder: for files. memory: bytes that may be kept without one.
    """

    def __init__(self, tensors: Sequence[str], folder: Path, memory: float = 0) -> None:
        self.tensors = tuple(tensors)
        self.inputs = None
        self._folder, self._memory = folder, memory
        self._held: dict[str, torch.Tensor | Path] = {}
        self._names: list[list[str]] = []
        self.shapes: list[tuple[tuple[int, ...], ...]] = []  # of the tensors of each feed

    def update(self, *arrays: np.ndarray) -> None:
        self._names.append([self._keep(array) for array in arrays])
        self.shapes.append(tuple(array.shape for array in arrays))

    def _keep(self, array: np.ndarray) -> str:
        shape = "x".join(map(str, array.shape))
        name = f"{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}-{shape}-{array.dtype}"
        if name not in self._held:
            if array.nbytes <= self._memory:
                self._memory -= array.nbytes
                self._held[name] = torch.from_numpy(array.copy())
            else:
                self._held[name] = self._folder / f"{name}.npy"
                np.save(self._folder / f"{name}.npy", array, allow_pickle=False)
        return name

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        found = (self._held[name] for name in self._names[index])
        return [torch.from_numpy(np.load(one, allow_pickle=False)) if isinstance(one, Path) else one for one in found]

    def __len__(self) -> int:
        return len(self._names)

    def clear(self) -> None:
        """Give everything back."""
        for one in self._held.values():
            if isinstance(one, Path):
                one.unlink(missing_ok=True)
        self._held.clear()
        self._names.clear()
        self.shapes.clear()
