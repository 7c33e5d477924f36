# SPDX-License-Identifier: Apache-2.0
"""SAM-Nano: segment_anything's modules in a size that a laptop trains and tests in minutes (4 M parameters, 512 px)."""

from __future__ import annotations

from functools import partial

from torch import nn

from samq_onnx.export.sam import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

__all__ = ["build_nano"]

IMAGE_SIZE = 512
PATCH = 16
EMBEDDING = 128
TOKENS = IMAGE_SIZE // PATCH  # on a side


def build_nano() -> Sam:
    """SAM-Nano with initial weights, in evaluation mode."""
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=IMAGE_SIZE,
            patch_size=PATCH,
            embed_dim=192,
            depth=6,
            num_heads=3,
            mlp_ratio=4,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=(2, 5),
            window_size=7,
            out_chans=EMBEDDING,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=EMBEDDING,
            image_embedding_size=(TOKENS, TOKENS),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING, mlp_dim=512, num_heads=8),
            transformer_dim=EMBEDDING,
            iou_head_depth=3,
            iou_head_hidden_dim=128,
        ),
    )
    return sam.eval()
