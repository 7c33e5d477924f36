# SPDX-License-Identifier: Apache-2.0
"""Networks of timm."""

from __future__ import annotations

from typing import Any

import torch

from zoo.files import SIDE, File, package, randomised

__all__ = ["timm_model"]


def timm_model(name: str, **options: Any) -> list[File]:
    """A network of timm."""
    timm = package("timm")
    model = randomised(timm.create_model(name, pretrained=False, num_classes=10, **options))
    size = options.get("img_size", SIDE)
    return [File("encoder", model, {"image": torch.randn(1, 3, size, size)}, ("logits",))]
