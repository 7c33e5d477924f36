# SPDX-License-Identifier: Apache-2.0
"""Models of transformers, cut into files as they are published for it and for transformers.js."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.files import GRID, SIDE, WIDTH, Called, File, image, package, randomised

__all__ = ["dinov2", "edge_tam", "sam", "sam2", "sam3", "sam_hq", "swin"]

POINTS_FREE = {"input_points": {2: "points"}, "input_labels": {2: "points"}}
SMALL_DECODER = {"hidden_size": WIDTH, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def _sam_model(kind: str, attention: str) -> nn.Module:
    transformers = package("transformers")
    prefix = "Sam" if kind == "sam" else "SamHQ"
    vision = {
        "hidden_size": 48,
        "output_channels": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": WIDTH // 2,
        "mlp_dim": 96,
    }
    decoder = SMALL_DECODER | ({"vit_dim": 48} if kind == "sam_hq" else {})
    return _made(transformers, prefix, vision, decoder, attention)


def _made(transformers: Any, prefix: str, vision: Any, decoder: dict[str, Any], attention: str) -> nn.Module:
    """A model of an encoder's configuration and a decoder's."""
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE, "mask_input_channels": 8},
        mask_decoder_config=decoder,
    )
    config._attn_implementation = attention
    return randomised(getattr(transformers, f"{prefix}Model")(config))


def _free(*embeddings: str) -> dict[str, dict[int, str]]:
    """The free axes of a decoder as Optimum exports it: images, prompts and points."""
    prompts = {0: "batch_size", 1: "point_batch_size", 2: "nb_points_per_image"}
    return {"input_points": prompts, "input_labels": prompts, **{name: {0: "batch_size"} for name in embeddings}}


def sam(attention: str) -> list[File]:
    """Image encoder, prompt encoder with mask decoder, as Optimum cuts them; and both in one file."""
    model = _sam_model("sam", attention)

    def decode(sam: Any, points: Any, labels: Any, embeddings: Any, positions: Any) -> tuple[Any, Any]:
        sparse, dense = sam.prompt_encoder(input_points=points, input_labels=labels, input_boxes=None, input_masks=None)
        masks, iou = sam.mask_decoder(
            image_embeddings=embeddings,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )[:2]
        return iou, masks

    def encode(sam: Any, pixels: Any) -> tuple[Any, Any]:
        return sam.vision_encoder(pixels)[0], sam.get_image_wide_positional_embeddings()

    def whole(sam: Any, pixels: Any, points: Any, labels: Any) -> tuple[Any, Any]:
        made = sam(pixel_values=pixels, input_points=points, input_labels=labels)
        return made.iou_scores, made.pred_masks

    points = {"input_points": torch.rand(1, 1, 2, 2) * SIDE, "input_labels": torch.ones(1, 1, 2, dtype=torch.int64)}
    embedding = {
        "image_embeddings": torch.randn(1, WIDTH, GRID, GRID),
        "image_positional_embeddings": torch.randn(1, WIDTH, GRID, GRID),
    }
    pixels = {"pixel_values": torch.randn(1, 3, SIDE, SIDE)}
    made = ("iou_scores", "pred_masks")
    return [
        File("encoder", Called(model, encode), pixels, ("image_embeddings", "image_positional_embeddings")),
        File("decoder", Called(model, decode), points | embedding, made, _free(*embedding)),
        File("whole", Called(model, whole), pixels | points, made, POINTS_FREE),
    ]


def sam_hq(attention: str) -> list[File]:
    """Image encoder with its intermediate embeddings, prompt encoder with mask decoder."""
    model = _sam_model("sam_hq", attention)

    def encode(sam: Any, pixels: Any) -> tuple[Any, ...]:
        made = sam.vision_encoder(pixels)
        return made.last_hidden_state, torch.stack(made.intermediate_embeddings)

    def decode(sam: Any, points: Any, labels: Any, embeddings: Any, intermediate: Any) -> tuple[Any, Any]:
        made = sam(
            image_embeddings=embeddings,
            intermediate_embeddings=[intermediate[0]],
            input_points=points,
            input_labels=labels,
        )
        return made.iou_scores, made.pred_masks

    points = {"input_points": torch.rand(1, 1, 2, 2) * SIDE, "input_labels": torch.ones(1, 1, 2, dtype=torch.int64)}
    embedding = {
        "image_embeddings": torch.randn(1, WIDTH, GRID, GRID),
        "intermediate_embeddings": torch.randn(1, 1, GRID, GRID, 48),
    }
    return [
        File(
            "encoder",
            Called(model, encode),
            {"pixel_values": torch.randn(1, 3, SIDE, SIDE)},
            ("image_embeddings", "intermediate_embeddings"),
        ),
        File(
            "decoder",
            Called(model, decode),
            points | embedding,
            ("iou_scores", "pred_masks"),
            _free("image_embeddings"),
        ),
    ]


def _sam2_model(attention: str) -> nn.Module:
    transformers = package("transformers")
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[4, 2, 4, 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[4],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=WIDTH,
    )
    return _made(transformers, "Sam2", vision, SMALL_DECODER, attention)


def sam2(attention: str) -> list[File]:
    """SAM 2: Hiera with three feature maps, prompt encoder with mask decoder, as they are published for
    transformers.js."""
    return _with_features(_sam2_model(attention))


def edge_tam(attention: str) -> list[File]:
    """EdgeTAM: RepViT with three feature maps, the decoder of SAM 2."""
    transformers = package("transformers")
    package("timm")
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m0_9",
        model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3], "depth": [1, 1, 2, 1]},
    )
    vision = transformers.EdgeTamVisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[384, 192, 96, 48],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=WIDTH,
    )
    return _with_features(_made(transformers, "EdgeTam", vision, SMALL_DECODER, attention))


def _with_features(model: nn.Module) -> list[File]:
    """An encoder that gives three feature maps, and a decoder that takes them."""

    def encode(net: Any, pixels: Any) -> tuple[Any, ...]:
        return tuple(net.get_image_embeddings(pixels))

    def decode(net: Any, points: Any, labels: Any, *embeddings: Any) -> tuple[Any, ...]:
        made = net(input_points=points, input_labels=labels, image_embeddings=list(embeddings))
        return made.iou_scores, made.pred_masks, made.object_score_logits

    embeddings = {
        "image_embeddings.0": torch.randn(1, WIDTH // 8, 4 * GRID, 4 * GRID),
        "image_embeddings.1": torch.randn(1, WIDTH // 4, 2 * GRID, 2 * GRID),
        "image_embeddings.2": torch.randn(1, WIDTH, GRID, GRID),
    }
    points = {"input_points": torch.rand(1, 1, 2, 2) * SIDE, "input_labels": torch.ones(1, 1, 2, dtype=torch.int64)}
    made = ("iou_scores", "pred_masks", "object_score_logits")
    return [
        File("encoder", Called(model, encode), {"pixel_values": torch.randn(1, 3, SIDE, SIDE)}, tuple(embeddings)),
        File("decoder", Called(model, decode), points | embeddings, made, _free(*embeddings)),
    ]


def sam3(attention: str) -> list[File]:
    """SAM 3's image encoder: a ViT of windows with rotary positions, and a pyramid of features."""
    transformers = package("transformers")
    backbone = transformers.Sam3ViTConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=112,
        patch_size=14,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=56,
    )
    config = transformers.Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=WIDTH, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )
    config._attn_implementation = config.backbone_config._attn_implementation = attention
    model = randomised(transformers.Sam3VisionModel(config))

    def encode(net: Any, pixels: Any) -> tuple[Any, ...]:
        return tuple(net(pixels).fpn_hidden_states[:3])

    made = tuple(f"image_embeddings.{level}" for level in range(3))
    return [File("encoder", Called(model, encode), {"pixel_values": torch.randn(1, 3, 112, 112)}, made)]


def swin() -> list[File]:
    """Swin: windows with a bias, every second block with a mask of shifted windows."""
    transformers = package("transformers")
    config = transformers.SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    model = randomised(transformers.SwinModel(config))
    return [
        File("encoder", Called(model, lambda net, x: net(x).last_hidden_state), image(), ("features",)),
    ]


def dinov2(attention: str) -> list[File]:
    """DINOv2."""
    transformers = package("transformers")
    config = transformers.Dinov2Config(
        image_size=SIDE, patch_size=16, hidden_size=48, num_hidden_layers=3, num_attention_heads=3
    )
    config._attn_implementation = attention
    model = randomised(transformers.Dinov2Model(config))
    return [
        File("encoder", Called(model, lambda net, x: net(x).last_hidden_state), image(), ("features",)),
    ]
