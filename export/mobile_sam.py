# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of MobileSAM: TinyViT with the decoder of SAM."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch

from samq_onnx.export import sam_hq
from samq_onnx.export.family import Family, package
from samq_onnx.export.part import Part
from samq_onnx.export.parts import sam_parts

__all__ = ["TINY_VIT", "MobileSam"]

TINY_VIT = "image_encoder.patch_embed.seq.0.c.weight"  # first layer of its encoder


class MobileSam(Family):
    """See the module."""

    types = ("vit_t",)

    def takes(self, names: Container[str]) -> bool:
        return TINY_VIT in names and sam_hq.TOKEN not in names

    def make(self, model_type: str) -> Any:
        build = package("mobile_sam", "mobilesam-mirror").sam_model_registry[model_type]
        with torch.device("cpu"):  # it computes with numbers while it is built
            return build()

    def parts(self, model: Any, batched: bool) -> list[Part]:
        return sam_parts(model, batched)

    def image_size(self, model: Any) -> int:
        return int(model.image_encoder.img_size)
