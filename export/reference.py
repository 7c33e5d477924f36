# SPDX-License-Identifier: Apache-2.0
"""What segment_anything's own methods compute, for inputs of the exported files."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from samq_onnx.export.part import Check, Feed
from samq_onnx.export.sam import ResizeLongestSide, Sam

__all__ = ["decoder_checks", "embedded_prompts", "full_size", "image_of", "prompts", "reference_decoder"]

SHAPES = ((1.0, 1.0), (0.5, 0.75), (1.25, 0.5))  # original height and width over the model's side
POINTS = (1, 2, 5)
LABELS = 4  # background, foreground, two corners of a box
PADDING = -1.0


def image_of(side: int) -> torch.Tensor:
    """A random image, as a model takes it."""
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def decoder_checks(sam: Sam, count: int) -> Iterator[Check]:
    """Inputs over numbers of points, sizes of the original image, with and without mask, and what they give.

    Args:
        count: prompts in one run; 1 for the plain decoder.
    """
    tokens, width = sam.prompt_encoder.image_embedding_size, sam.prompt_encoder.embed_dim
    for feed in prompts(sam.image_encoder.img_size, sam.prompt_encoder.mask_input_size, count):
        embedding = torch.randn(1, width, *tokens, generator=torch.Generator().manual_seed(1))
        feed = {"image_embeddings": embedding, **feed}
        yield feed, reference_decoder(sam, feed)


def reference_decoder(sam: Sam, feed: Feed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """masks, iou_predictions, low_res_masks for the inputs of the exported decoder, by the methods of `Sam`.

    Each prompt needs at least one point; labels as in the exported decoder.
    """
    sparse, dense = embedded_prompts(sam, feed)
    low_res, iou = sam.mask_decoder.predict_masks(
        image_embeddings=feed["image_embeddings"],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return full_size(sam, low_res, feed), iou, low_res


def embedded_prompts(sam: Sam, feed: Feed) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and mask of a feed, as the prompt encoder embeds them."""
    coords, labels = feed["point_coords"], feed["point_labels"]
    encoder = sam.prompt_encoder
    _, dense = encoder(points=None, boxes=None, masks=feed["mask_input"] if feed["has_mask_input"].all() else None)
    sparse = encoder._embed_points(coords, labels, pad=False)
    for corner in (2, 3):
        sparse[labels == corner] += encoder.point_embeddings[corner].weight
    return sparse, dense


def full_size(sam: Sam, low_res: torch.Tensor, feed: Feed) -> torch.Tensor:
    """Masks at the size of the original image."""
    side = sam.image_encoder.img_size
    height, width = (int(value) for value in feed["orig_im_size"])
    unpadded = ResizeLongestSide.get_preprocess_shape(height, width, side)
    return sam.postprocess_masks(low_res, unpadded, (height, width))


def prompts(side: int, mask_size: tuple[int, int], count: int = 1) -> Iterator[Feed]:
    """Random prompts as segment_anything's decoder takes them, all but the embedding."""
    generator = torch.Generator().manual_seed(0)
    for (height, width), points in zip(SHAPES, POINTS, strict=True):
        for has_mask in (0.0, 1.0):
            labels = torch.randint(0, LABELS, (count, points), generator=generator).float()
            if points > 1:
                labels[:, -1] = PADDING
            yield {
                "point_coords": torch.rand(count, points, 2, generator=generator) * side,
                "point_labels": labels,
                "mask_input": torch.randn(count, 1, *mask_size, generator=generator),
                "has_mask_input": torch.full((count,), has_mask),
                "orig_im_size": torch.tensor([int(height * side) - 3, int(width * side) + 1]).float(),
            }
