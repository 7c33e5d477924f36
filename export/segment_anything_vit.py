# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of segment_anything: ViT-B, ViT-L and ViT-H at 1024 px, and SAM-Nano, which has its classes."""

from __future__ import annotations

from collections.abc import Callable, Container

from samq_onnx.export import nano, sam_hq
from samq_onnx.export.family import Family
from samq_onnx.export.part import Part
from samq_onnx.export.parts import sam_parts
from samq_onnx.export.sam import Sam, sam_model_registry

__all__ = ["SegmentAnything"]

BUILDERS: dict[str, Callable[[], Sam]] = {
    **{name: sam_model_registry[name] for name in ("vit_b", "vit_l", "vit_h")},
    "nano": nano.build_nano,
}


class SegmentAnything(Family):
    """See the module."""

    types = tuple(BUILDERS)

    def takes(self, names: Container[str]) -> bool:
        return "image_encoder.blocks.0.attn.qkv.weight" in names and sam_hq.TOKEN not in names

    def make(self, model_type: str) -> Sam:
        return BUILDERS[model_type]()

    def parts(self, model: Sam, batched: bool) -> list[Part]:
        return sam_parts(model, batched)

    def image_size(self, model: Sam) -> int:
        return model.image_encoder.img_size
