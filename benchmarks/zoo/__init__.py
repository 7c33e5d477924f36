# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights of every family of SAM that Python packages hold, and their exports.

A family is a name and a function that gives its files: modules with inputs, and the names that exporters give to these.
Nothing is downloaded; a family whose package is not installed says which one it needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from zoo import hugging_face, packages
from zoo.exporters import EVERYWHERE, EXPORTERS
from zoo.files import SIDE, File
from zoo.timm_models import timm_model

__all__ = ["EXPORTERS", "FAMILIES", "File", "export", "exporters", "slug"]

ATTENTIONS = ("eager", "sdpa")  # how transformers computes attention
REWRITTEN = "SAM"  # the family that all exporters are tried on


def _both(name: str, family: Callable[[str], list[File]]) -> dict[str, Callable[[], list[File]]]:
    return {f"{name}, Hugging Face, {attention}": functools.partial(family, attention) for attention in ATTENTIONS}


FAMILIES: dict[str, Callable[[], list[File]]] = {
    "SAM": packages.sam,
    **_both("SAM", hugging_face.sam),
    "SAM-HQ": packages.sam_hq,
    **_both("SAM-HQ", hugging_face.sam_hq),
    "MobileSAM, TinySAM": packages.mobile_sam,
    "EfficientSAM": packages.efficient_sam,
    "EdgeSAM": packages.edge_sam,
    "EfficientViT-SAM, encoder": packages.efficient_vit_sam,
    "SAM 2, samexporter": packages.sam2,
    **_both("SAM 2", hugging_face.sam2),
    **_both("EdgeTAM", hugging_face.edge_tam),
    **_both("SAM 3", hugging_face.sam3),
    "ViT, timm": functools.partial(
        timm_model, "vit_tiny_patch16_224", img_size=SIDE, depth=3, embed_dim=48, num_heads=3
    ),
    "Swin, timm": functools.partial(
        timm_model,
        "swin_tiny_patch4_window7_224",
        img_size=SIDE,
        depths=(2, 2),
        embed_dim=16,
        num_heads=(2, 4),
        window_size=4,
    ),
    "Swin, Hugging Face": hugging_face.swin,
    **_both("DINOv2", hugging_face.dinov2),
}


def exporters(family: str) -> list[str]:
    """Those that a family is exported by."""
    return list(EXPORTERS if family == REWRITTEN else EVERYWHERE)


def slug(name: str) -> str:
    """A family's name, or an exporter's, fit for a folder."""
    return "".join(letter for letter in name.replace(", ", "_") if letter.isalnum() or letter in "_-")


def export(file: File, exporter: str, path: Path) -> None:
    """Write a file.

    Raises:
        Exception: whatever the exporter raises.
    """
    EXPORTERS[exporter](file, path)
