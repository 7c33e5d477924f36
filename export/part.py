# SPDX-License-Identifier: Apache-2.0
"""`Part`: a module that becomes a file, with sample inputs, names, shapes, and what it has to compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import nn

__all__ = ["Check", "Feed", "Part", "Shape"]

Shape: TypeAlias = tuple[int | str, ...]  # a string names a dynamic dimension
Feed: TypeAlias = dict[str, torch.Tensor]  # float32
Check: TypeAlias = tuple[Feed, tuple[torch.Tensor, ...]]  # inputs, and what they give in PyTorch


@dataclasses.dataclass(frozen=True)
class Part:
    """A module to be traced.

    Attributes:
        name: of the file, without suffix.
        sample: float32 tensors to trace with, one for each graph input.
        inputs, outputs: graph inputs and outputs in order, name -> shape.
        checks: inputs and outputs, computed without the module where its package has another way.
        repeats: whether the module computes some things twice, which are to be merged.
    """

    name: str
    module: nn.Module
    sample: tuple[torch.Tensor, ...]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    checks: Callable[[], Iterable[Check]]
    repeats: bool = False
