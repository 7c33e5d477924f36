# SPDX-License-Identifier: Apache-2.0
"""Whether an exported file computes what segment_anything computes in PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from samq_onnx.errors import UserError
from samq_onnx.export.sam import ResizeLongestSide, Sam

__all__ = ["Difference", "check_decoder", "check_encoder", "reference_decoder"]

TOLERANCE = 1e-3
SHAPES = ((1.0, 1.0), (0.5, 0.75), (1.25, 0.5))  # original height and width over the model's side
POINTS = (1, 2, 5)
LABELS = 4  # background, foreground, two corners of a box
PADDING = -1.0
TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass
class Difference:
    """The largest difference found, and the largest relative to its tensor's largest value."""

    absolute: float = 0.0
    relative: float = 0.0

    def update(self, found: np.ndarray, wanted: torch.Tensor) -> None:
        """Compare two float32 arrays of one shape."""
        reference = wanted.numpy()
        if found.shape != reference.shape:
            raise UserError(f"the exported model gives {list(found.shape)} where PyTorch gives {list(reference.shape)}")
        absolute = np.abs(found - reference).max()
        # np.maximum keeps not-a-number, max does not
        self.absolute = float(np.maximum(self.absolute, absolute))
        self.relative = float(np.maximum(self.relative, absolute / np.maximum(np.abs(reference).max(), TINY)))

    def check(self, name: str) -> None:
        """Raise `UserError` if the relative difference exceeds the tolerance or is not a number."""
        if not self.relative <= TOLERANCE:
            raise UserError(
                f"{name}: differs from PyTorch by {self.relative:.1e} of its largest value (limit {TOLERANCE:.0e}); "
                "nothing was written; is the checkpoint damaged?"
            )


def check_encoder(path: Path, sam: Sam) -> Difference:
    """Compare an encoder file with PyTorch on a random image."""
    generator = torch.Generator().manual_seed(0)
    side = sam.image_encoder.img_size
    image = torch.randn(1, 3, side, side, generator=generator)
    with torch.no_grad():
        wanted = sam.image_encoder(image)
    difference = Difference()
    difference.update(_session(path).run(None, {"image": image.numpy()})[0], wanted)
    return difference


def check_decoder(path: Path, sam: Sam, prompts: int) -> Difference:
    """Compare a decoder file with PyTorch over numbers of points, sizes of the original image, with and without mask.

    Args:
        prompts: in one run; 1 for the plain decoder.
    """
    session = _session(path)
    difference = Difference()
    for feed in _feeds(sam, prompts):
        with torch.no_grad():
            wanted = reference_decoder(sam, feed)
        found = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        for one, other in zip(found, wanted, strict=True):
            difference.update(one, other)
    return difference


def reference_decoder(sam: Sam, feed: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """masks, iou_predictions, low_res_masks for the inputs of the exported decoder, by the methods of `Sam`.

    Each prompt needs at least one point; labels as in the exported decoder.
    """
    coords, labels = feed["point_coords"], feed["point_labels"]
    encoder = sam.prompt_encoder
    _, dense = encoder(points=None, boxes=None, masks=feed["mask_input"] if feed["has_mask_input"].all() else None)
    sparse = encoder._embed_points(coords, labels, pad=False)
    for corner in (2, 3):
        sparse[labels == corner] += encoder.point_embeddings[corner].weight
    low_res, iou = sam.mask_decoder.predict_masks(
        image_embeddings=feed["image_embeddings"],
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    side = sam.image_encoder.img_size
    height, width = (int(value) for value in feed["orig_im_size"])
    unpadded = ResizeLongestSide.get_preprocess_shape(height, width, side)
    return sam.postprocess_masks(low_res, unpadded, (height, width)), iou, low_res


def _feeds(sam: Sam, prompts: int) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    side, tokens = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size
    for (height, width), points in zip(SHAPES, POINTS, strict=True):
        for has_mask in (0.0, 1.0):
            labels = torch.randint(0, LABELS, (prompts, points), generator=generator).float()
            if points > 1:
                labels[:, -1] = PADDING
            yield {
                "image_embeddings": torch.randn(1, sam.prompt_encoder.embed_dim, *tokens, generator=generator),
                "point_coords": torch.rand(prompts, points, 2, generator=generator) * side,
                "point_labels": labels,
                "mask_input": torch.randn(prompts, 1, *sam.prompt_encoder.mask_input_size, generator=generator),
                "has_mask_input": torch.full((prompts,), has_mask),
                "orig_im_size": torch.tensor([int(height * side) - 3, int(width * side) + 1]).float(),
            }


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])
