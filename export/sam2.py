# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SAM 2 and 2.1 in the form of the package sam2, of which images need a part: memory is left out.

Files have the interface of samexporter: three maps of features, and a decoder of low-resolution masks. All four masks
come out as they are; SAM 2's fallback of an unstable first mask to the best of the others is not in the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from torch import nn

from samq_onnx.errors import UserError
from samq_onnx.export.checkpoint import StateDict
from samq_onnx.export.family import Family, package
from samq_onnx.export.part import Feed, Part
from samq_onnx.export.parts import decoder_of, encoder_of
from samq_onnx.export.reference import image_of, prompts

__all__ = ["SAM2_EMBEDDINGS", "SAM2_OUTPUTS", "Sam2", "sam2_parts"]

SAM2_EMBEDDINGS = ("image_embed", "high_res_feats_0", "high_res_feats_1")  # as the decoder takes them
ENCODED = (*SAM2_EMBEDDINGS[1:], SAM2_EMBEDDINGS[0])  # as the encoder gives them
SAM2_OUTPUTS = ("masks", "iou_predictions")
SIZES = {"sam2_t": "t", "sam2_s": "s", "sam2_b+": "b+", "sam2_l": "l"}
OF_IMAGES = ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed")


class Sam2(Family):
    """See the module."""

    types = tuple(SIZES)

    def takes(self, names: Container[str]) -> bool:
        return "image_encoder.trunk.patch_embed.proj.weight" in names

    def make(self, model_type: str) -> nn.Module:
        build = package("sam2.build_sam", "sam2").build_sam2
        name = f"configs/sam2.1/sam2.1_hiera_{SIZES[model_type]}.yaml"  # that of SAM 2 differs in memory alone
        with torch.device("cpu"), warnings.catch_warnings():  # it computes with numbers while it is built
            warnings.simplefilter("ignore")  # remarks on how it is configured
            return for_images(build(name, device="cpu", apply_postprocessing=False))

    def own(self, state: StateDict) -> StateDict:
        return {name: tensor for name, tensor in state.items() if name.partition(".")[0] in OF_IMAGES}

    def parts(self, model: Any, batched: bool) -> list[Part]:
        if batched:
            raise UserError("SAM 2 has no batched decoder; leave out --batched")
        encode, decode = Encoder(model), Decoder(model)
        return sam2_parts(encode, decode, model.image_size, lambda feed: reference(model, feed))

    def image_size(self, model: Any) -> int:
        return int(model.image_size)


def for_images(model: Any) -> nn.Module:
    """The model without what only videos need."""
    for name in {name.partition(".")[0] for name in model.state_dict()} - set(OF_IMAGES):
        delattr(model, name)
    return model


class Encoder(nn.Module):
    """Image -> features of a quarter and an eighth of its sides, and the embedding."""

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine, finer, embedding = self.sam.forward_image(image)["backbone_fpn"]
        return fine, finer, embedding + self.sam.no_mem_embed.reshape(1, -1, 1, 1)


class Decoder(nn.Module):
    """Four low-resolution masks of one prompt."""

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.sam = sam

    def forward(
        self,
        image_embed: torch.Tensor,
        fine: torch.Tensor,
        finer: torch.Tensor,
        coords: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor,
        has_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        prompt = self.sam.sam_prompt_encoder
        dense = has_mask * prompt.mask_downscaling(mask)
        dense = dense + (1 - has_mask) * prompt.no_mask_embed.weight.reshape(1, -1, 1, 1)
        masks, iou, _, _ = self.sam.sam_mask_decoder.predict_masks(
            image_embeddings=image_embed,
            image_pe=prompt.get_dense_pe(),
            sparse_prompt_embeddings=prompt._embed_points(coords, labels, pad=False),
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[fine, finer],
        )
        return masks, iou


def sam2_parts(
    encoder: nn.Module,
    decoder: nn.Module,
    side: int,
    reference: Callable[[Feed], tuple[torch.Tensor, ...]],
    prompted: Sequence[Feed] | None = None,
    repeats: bool = False,
) -> list[Part]:
    """Both files of SAM 2.

    Args:
        encoder: image -> as `Encoder`. decoder: as `Decoder`. reference: as of `decoder_of`.
        prompted: prompts to compare on, instead of random ones.
    """
    with torch.no_grad():
        made = dict(zip(ENCODED, encoder(image_of(side)), strict=True))
    embeddings = {name: made[name] for name in SAM2_EMBEDDINGS}
    mask = tuple(4 * size for size in embeddings[SAM2_EMBEDDINGS[0]].shape[2:])
    feeds = [embeddings | feed for feed in prompted or prompts(side, (mask[0], mask[1]))]
    for feed in feeds:
        feed.pop("orig_im_size", None)
    return [
        encoder_of(encoder, side, ENCODED, encoder),
        decoder_of(decoder, feeds, SAM2_OUTPUTS, reference, repeats),
    ]


def reference(sam: Any, feed: Feed) -> tuple[torch.Tensor, ...]:
    """What the package's decoder gives, asked for one mask and for three."""
    prompt = sam.sam_prompt_encoder
    _, dense = prompt(None, None, feed["mask_input"] if feed["has_mask_input"].all() else None)
    both = [
        sam.sam_mask_decoder(
            image_embeddings=feed["image_embed"],
            image_pe=prompt.get_dense_pe(),
            sparse_prompt_embeddings=prompt._embed_points(feed["point_coords"], feed["point_labels"], pad=False),
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=[feed["high_res_feats_0"], feed["high_res_feats_1"]],
        )[:2]
        for multimask in (False, True)
    ]
    (first, first_iou), (others, other_iou) = both
    return torch.cat([first, others], 1), torch.cat([first_iou, other_iou], 1)
