# SPDX-License-Identifier: Apache-2.0
"""segment_anything imports torchvision, and torchvision refuses to be imported without its compiled operators.

They do not load where torch and torchvision were built for different devices (a CPU torch beside the default
wheel of torchvision, say). No SAM model calls them, so declaring their signatures is enough.
"""

from __future__ import annotations

import importlib

import torch

__all__ = ["import_torchvision"]

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("nms", "qnms")


def import_torchvision() -> None:
    """Import torchvision, declaring the operators that its import asks for if its own do not load."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", SIGNATURE)
        importlib.import_module("torchvision")
