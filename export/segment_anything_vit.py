# SPDX-License-Identifier: Apache-2.0
"""The model family of the published checkpoints: ViT-B, ViT-L and ViT-H at 1024 px."""

from __future__ import annotations

from collections.abc import Callable

from samq_onnx.export.sam import Sam, sam_model_registry

__all__ = ["BUILDERS"]

BUILDERS: dict[str, Callable[[], Sam]] = {name: sam_model_registry[name] for name in ("vit_b", "vit_l", "vit_h")}
