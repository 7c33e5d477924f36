# SPDX-License-Identifier: Apache-2.0
"""SAM's prompt encoder and mask decoder as one module that can be traced: segment_anything's own, corrected."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from samq_onnx.export.sam import Sam, SamOnnxModel

__all__ = ["BatchedDecoder", "Decoder", "at_original_size"]


class Decoder(SamOnnxModel):
    """All four masks of one prompt, at the size of the original image.

    segment_anything's wrapper turns the size of the image without its padding into Python integers, which freezes
    the sample's size into the traced graph. Here it stays a tensor, so the graph computes it from `orig_im_size`.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam, return_single_mask=False)

    def mask_postprocessing(self, masks: torch.Tensor, orig_im_size: torch.Tensor) -> torch.Tensor:
        return at_original_size(masks, orig_im_size, self.img_size)


def at_original_size(masks: torch.Tensor, orig_im_size: torch.Tensor, side: int) -> torch.Tensor:
    """Low-resolution logits [N, M, S/4, S/4] -> logits [N, M, H, W]: to the padded image, crop, to the original.

    Args:
        orig_im_size: height and width of the original, float [2]. side: of the padded image.
    """
    padded = functional.interpolate(masks, size=(side, side), mode="bilinear", align_corners=False)
    height, width = SamOnnxModel.resize_longest_image_size(orig_im_size, side).unbind()
    original: Any = orig_im_size.to(torch.int64).unbind()  # traced as a size, though the signature wants integers
    return functional.interpolate(padded[..., :height, :width], size=original, mode="bilinear", align_corners=False)


class BatchedDecoder(Decoder):
    """Many prompts on one image at once: `point_coords` [N, points, 2] -> masks [N, M, H, W].

    `mask_input` [B, 1, S/4, S/4] and `has_mask_input` [B] are one for all prompts (B = 1) or one a prompt (B = N).
    """

    def _embed_masks(self, input_mask: torch.Tensor, has_mask_input: torch.Tensor) -> torch.Tensor:
        return super()._embed_masks(input_mask, has_mask_input.reshape(-1, 1, 1, 1))
