# SPDX-License-Identifier: Apache-2.0
"""What families of models are made of: files, random weights, sample inputs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from samq_onnx.errors import UserError
from samq_onnx.export.torchvision_ops import import_torchvision

__all__ = [
    "GRID",
    "LOW_RES",
    "POINTS_FREE",
    "SIDE",
    "WIDTH",
    "Called",
    "File",
    "image",
    "mask",
    "package",
    "prompt",
    "randomised",
]

SIDE = 64  # of images
WIDTH = 32  # channels of an embedding
GRID = SIDE // 16
LOW_RES = 4 * GRID


@dataclasses.dataclass(frozen=True)
class File:
    """A module that becomes one file.

    Attributes:
        role: what the file is called.
        sample: tensors to export with, by name of the input.
        outputs: names.
        free: inputs and outputs -> the axes whose size is free, with their names.
    """

    role: str
    module: nn.Module
    sample: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    free: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)


class Called(nn.Module):
    """A function of a module, as a module whose inputs are positional."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self._function = module, function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._function(self.module, *inputs)


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    """The module with weights that keep activations about as large as they are, biases that are not zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            fan_in = parameter[0].numel() if parameter.ndim != 3 else parameter.shape[-1]
            parameter.copy_(noise * max(fan_in, 1) ** -0.5)
        else:
            scales = name.endswith("weight") or "gamma" in name
            parameter.copy_(noise * 0.1 + (1.0 if scales else 0.0))
    return module.eval().requires_grad_(False)


def package(name: str, install: str | None = None) -> Any:
    import_torchvision()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"needs the package {install or name}") from error


def image() -> dict[str, torch.Tensor]:
    return {"image": torch.randn(1, 3, SIDE, SIDE)}


def prompt(points: int = 2) -> dict[str, torch.Tensor]:
    return {"point_coords": torch.rand(1, points, 2) * SIDE, "point_labels": torch.ones(1, points)}


def mask() -> dict[str, torch.Tensor]:
    return {"mask_input": torch.randn(1, 1, LOW_RES, LOW_RES), "has_mask_input": torch.ones(1)}


POINTS_FREE = {"point_coords": {1: "points"}, "point_labels": {1: "points"}}
