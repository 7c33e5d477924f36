# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SAM-HQ: the encoder also gives what its first global block makes, the decoder takes it.

The masks of the decoder's file are those of SAM, each with the mask of the high-quality token added, as the package's
own predictor adds it to the mask that it chooses.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import nn

from samq_onnx.errors import UserError
from samq_onnx.export.decoder import Decoder
from samq_onnx.export.family import Family, package
from samq_onnx.export.part import Feed, Part
from samq_onnx.export.parts import SAM_OUTPUTS, decoder_of, encoder_of
from samq_onnx.export.reference import embedded_prompts, full_size, image_of, prompts

__all__ = ["HQ_EMBEDDINGS", "TOKEN", "SamHq"]

TOKEN = "mask_decoder.hf_token.weight"  # what makes it SAM-HQ
INTERMEDIATE = "interm_embeddings"
HQ_EMBEDDINGS = ("image_embeddings", INTERMEDIATE)
PREFIX = "hq_"
NAMES = {"vit_b": "vit_b", "vit_l": "vit_l", "vit_h": "vit_h", "vit_t": "vit_tiny"}  # the package's


class SamHq(Family):
    """See the module."""

    types = tuple(PREFIX + name for name in NAMES)

    def takes(self, names: Container[str]) -> bool:
        return TOKEN in names

    def make(self, model_type: str) -> Any:
        name = NAMES[model_type.removeprefix(PREFIX)]
        build = package("segment_anything_hq", "segment-anything-hq").sam_model_registry[name]
        if name != "vit_tiny":
            return build()
        with torch.device("cpu"):  # it computes with numbers while it is built
            return build()

    def parts(self, model: Any, batched: bool) -> list[Part]:
        if batched:
            raise UserError("SAM-HQ has no batched decoder; leave out --batched")
        side, encoder = model.image_encoder.img_size, HqEncoder(model)
        return [
            encoder_of(encoder, side, HQ_EMBEDDINGS, encoder),
            decoder_of(HqDecoder(model), hq_feeds(encoder, model), SAM_OUTPUTS, lambda feed: reference(model, feed)),
        ]

    def image_size(self, model: Any) -> int:
        return int(model.image_encoder.img_size)


class HqEncoder(nn.Module):
    """Image -> embedding [1, C, G, G], and what the first global block makes, [1, 1, G, G, C]."""

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.encoder = sam.image_encoder

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding, intermediate = self.encoder(image)
        return embedding, intermediate[0].unsqueeze(0)


class HqDecoder(Decoder):
    """All four masks of one prompt."""

    def forward(  # type: ignore[override]
        self,
        image_embeddings: torch.Tensor,
        interm_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        decoder = self.mask_decoder
        early = interm_embeddings[0].permute(0, 3, 1, 2)
        masks, iou = decoder.predict_masks(
            image_embeddings=image_embeddings,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=self._embed_points(point_coords, point_labels),
            dense_prompt_embeddings=self._embed_masks(mask_input, has_mask_input),
            hq_features=decoder.embedding_encoder(image_embeddings) + decoder.compress_vit_feat(early),
        )
        low_res = masks[:, :-1] + masks[:, -1:]
        return self.mask_postprocessing(low_res, orig_im_size), iou, low_res


def hq_feeds(encoder: nn.Module, sam: Any) -> list[Feed]:
    """Inputs of the decoder: a random image's embeddings with prompts."""
    side = sam.image_encoder.img_size
    with torch.no_grad():
        embeddings = dict(zip(HQ_EMBEDDINGS, encoder(image_of(side)), strict=True))
    return [embeddings | feed for feed in prompts(side, sam.prompt_encoder.mask_input_size)]


def reference(sam: Any, feed: Feed) -> tuple[torch.Tensor, ...]:
    """What the package's own methods give: its decoder the first mask, its parts the others."""
    sparse, dense = embedded_prompts(sam, feed)
    decoder, early = sam.mask_decoder, feed[INTERMEDIATE][0]
    given = {
        "image_embeddings": feed["image_embeddings"],
        "image_pe": sam.prompt_encoder.get_dense_pe(),
        "sparse_prompt_embeddings": sparse,
        "dense_prompt_embeddings": dense,
    }
    first, _ = decoder(**given, multimask_output=False, hq_token_only=False, interm_embeddings=[early])
    features = decoder.embedding_encoder(feed["image_embeddings"]) + decoder.compress_vit_feat(
        early.permute(0, 3, 1, 2)
    )
    masks, iou = decoder.predict_masks(**given, hq_features=features)
    low_res = torch.cat([first, masks[:, 1:-1] + masks[:, -1:]], dim=1)
    return full_size(sam, low_res, feed), iou, low_res
