# SPDX-License-Identifier: Apache-2.0
"""The parts of SAM that become a file each: module, sample inputs, names and shapes."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from samq_onnx.export.decoder import BatchedDecoder, Decoder
from samq_onnx.export.sam import Sam

__all__ = ["Part", "Shape", "batched_decoder_part", "decoder_part", "encoder_part"]

Shape = tuple[int | str, ...]  # a string names a dynamic dimension

POINTS = 5  # in the sample
PROMPTS = 3


@dataclasses.dataclass(frozen=True)
class Part:
    """A module to be traced.

    Attributes:
        name: of the file, without suffix.
        sample: float32 tensors to trace with, one for each graph input.
        inputs, outputs: graph inputs and outputs in order, name -> shape.
    """

    name: str
    module: nn.Module
    sample: tuple[torch.Tensor, ...]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]


def encoder_part(sam: Sam) -> Part:
    """`image`, normalised and padded -> `image_embeddings`."""
    side = sam.image_encoder.img_size
    outputs: dict[str, Shape] = {"image_embeddings": _embeddings_shape(sam)}
    sample = torch.randn(1, 3, side, side)
    return Part("encoder", sam.image_encoder, (sample,), {"image": (1, 3, side, side)}, outputs)


def decoder_part(sam: Sam) -> Part:
    """segment_anything's own decoder interface; the number of points is dynamic."""
    return Part("decoder", Decoder(sam), _sample(sam, 1), *_interface(sam, 1, 1))


def batched_decoder_part(sam: Sam) -> Part:
    """The same names for many prompts on one image, see `BatchedDecoder`."""
    interface = _interface(sam, "num_prompts", "num_mask_inputs")
    return Part("decoder_batched", BatchedDecoder(sam), _sample(sam, PROMPTS), *interface)


def _embeddings_shape(sam: Sam) -> tuple[int, ...]:
    return (1, sam.prompt_encoder.embed_dim, *sam.prompt_encoder.image_embedding_size)


def _interface(sam: Sam, prompts: int | str, masks_in: int | str) -> tuple[dict[str, Shape], dict[str, Shape]]:
    low_res = sam.prompt_encoder.mask_input_size
    count = sam.mask_decoder.num_mask_tokens
    inputs: dict[str, Shape] = {
        "image_embeddings": _embeddings_shape(sam),
        "point_coords": (prompts, "num_points", 2),
        "point_labels": (prompts, "num_points"),
        "mask_input": (masks_in, 1, *low_res),
        "has_mask_input": (masks_in,),
        "orig_im_size": (2,),
    }
    outputs: dict[str, Shape] = {
        "masks": (prompts, count, "height", "width"),
        "iou_predictions": (prompts, count),
        "low_res_masks": (prompts, count, *low_res),
    }
    return inputs, outputs


def _sample(sam: Sam, prompts: int) -> tuple[torch.Tensor, ...]:
    """Random decoder inputs, in order, each prompt with its own mask."""
    side = sam.image_encoder.img_size
    return (
        torch.randn(_embeddings_shape(sam)),
        torch.rand(prompts, POINTS, 2) * side,
        torch.randint(0, 4, (prompts, POINTS)).float(),
        torch.randn(prompts, 1, *sam.prompt_encoder.mask_input_size),
        torch.ones(prompts),
        torch.tensor([0.75 * side, 1.25 * side]).floor(),
    )
