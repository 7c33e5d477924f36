# SPDX-License-Identifier: Apache-2.0
"""segment_anything's classes, imported the one way that works with every build of torchvision."""

from __future__ import annotations

from samq_onnx.export.torchvision_ops import import_torchvision

import_torchvision()

from segment_anything import sam_model_registry  # noqa: E402 - it imports torchvision
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils.onnx import SamOnnxModel  # noqa: E402
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402

__all__ = [
    "ImageEncoderViT",
    "MaskDecoder",
    "PromptEncoder",
    "ResizeLongestSide",
    "Sam",
    "SamOnnxModel",
    "TwoWayTransformer",
    "sam_model_registry",
]
