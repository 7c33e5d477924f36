# SPDX-License-Identifier: Apache-2.0
"""Models of the families' own packages, with their own wrappers for export where they have some."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from zoo.files import GRID, POINTS_FREE, SIDE, WIDTH, Called, File, image, mask, package, prompt, randomised

__all__ = ["edge_sam", "efficient_sam", "efficient_vit_sam", "mobile_sam", "sam", "sam2", "sam_hq", "tiny_vit"]


def _decoder_parts(name: str, install: str, hq: bool = False, width: int = WIDTH) -> tuple[nn.Module, nn.Module]:
    modeling = package(f"{name}.modeling", install)
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=64, num_heads=2)
    decoder = {"num_multimask_outputs": 3, "transformer": transformer, "transformer_dim": width}
    decoder |= {"iou_head_depth": 3, "iou_head_hidden_dim": 32}
    prompt = modeling.PromptEncoder(
        embed_dim=width, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE), mask_in_chans=8
    )
    return prompt, modeling.MaskDecoderHQ(**decoder, vit_dim=48) if hq else modeling.MaskDecoder(**decoder)


def _vit(name: str, install: str) -> nn.Module:
    return package(f"{name}.modeling", install).ImageEncoderViT(
        img_size=SIDE,
        embed_dim=48,
        depth=3,
        num_heads=3,
        out_chans=WIDTH,
        use_rel_pos=True,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        window_size=3,
        global_attn_indexes=(1,),
    )


SAM_OUTPUTS = ("masks", "iou_predictions", "low_res_masks")


def _sam(width: int = WIDTH) -> nn.Module:
    parts = package("segment_anything.modeling", "segment-anything")
    prompts, decoder = _decoder_parts("segment_anything", "segment-anything", width=width)
    return randomised(parts.Sam(_vit("segment_anything", "segment-anything"), prompts, decoder))


def sam() -> list[File]:
    """segment_anything, with Meta's own wrapper of the decoder."""
    model = _sam()
    return [File("encoder", model.image_encoder, image(), ("image_embeddings",)), _meta_decoder(model, WIDTH)]


def _meta_decoder(model: nn.Module, width: int) -> File:
    """The decoder as Meta's script exports it."""
    module = package("segment_anything.utils.onnx", "segment-anything").SamOnnxModel(model, return_single_mask=False)
    sample = {
        "image_embeddings": torch.randn(1, width, GRID, GRID),
        **prompt(),
        **mask(),
        "orig_im_size": torch.tensor([50.0, 60.0]),
    }
    return File("decoder", module, sample, SAM_OUTPUTS, POINTS_FREE)


def sam_hq() -> list[File]:
    """segment_anything_hq, with its own wrapper of the decoder."""
    onnx = package("segment_anything_hq.utils.onnx", "segment-anything-hq")
    parts = package("segment_anything_hq.modeling", "segment-anything-hq")
    prompts, decoder = _decoder_parts("segment_anything_hq", "segment-anything-hq", hq=True)
    model = randomised(parts.Sam(_vit("segment_anything_hq", "segment-anything-hq"), prompts, decoder))

    def encode(encoder: Any, image: Any) -> tuple[Any, Any]:
        made, intermediate = encoder(image)
        return made, torch.stack(intermediate)

    return [
        File("encoder", Called(model.image_encoder, encode), image(), ("image_embeddings", "interm_embeddings")),
        File(
            "decoder",
            onnx.SamOnnxModel(model, multimask_output=False),
            {
                "image_embeddings": torch.randn(1, WIDTH, GRID, GRID),
                "interm_embeddings": torch.randn(1, 1, GRID, GRID, 48),
                **prompt(),
                **mask(),
                "orig_im_size": torch.tensor([50.0, 60.0]),
            },
            SAM_OUTPUTS,
            POINTS_FREE,
        ),
    ]


def tiny_vit(**options: Any) -> nn.Module:
    """MobileSAM's encoder, whose head is left out.

    Args:
        options: of the package's TinyViT.
    """
    encoder = package("mobile_sam.modeling", "mobilesam-mirror").TinyViT(in_chans=3, num_classes=2, **options)
    randomised(encoder)
    for module in encoder.modules():
        if hasattr(module, "attention_biases"):
            module.eval()
            module.ab = module.attention_biases[:, module.attention_bias_idxs]
    grid = options["img_size"] // 16

    def encode(vit: Any, pixels: Any) -> Any:
        x = vit.layers[0](vit.patch_embed(pixels))
        for layer in vit.layers[1:]:
            x = layer(x)
        return vit.neck(x.reshape(1, grid, grid, -1).permute(0, 3, 1, 2))

    return Called(encoder, encode)


def mobile_sam() -> list[File]:
    """TinyViT with the decoder of SAM; TinySAM is the same."""
    encoder = tiny_vit(
        img_size=SIDE,
        embed_dims=[16, 32, 32, 320],  # 320 is what tells it not to halve the grid
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 10],
        window_sizes=[3, 3, 4, 3],
        mbconv_expand_ratio=2.0,
    )
    return [File("encoder", encoder, image(), ("image_embeddings",)), _meta_decoder(_sam(256), 256)]


class _Plain(nn.Module):
    """A decoder that takes points alone and gives four low-resolution masks, as EdgeSAM's export does."""

    def __init__(self, sam: Any) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, embeddings: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor) -> Any:
        encoder = self.sam.prompt_encoder
        points = encoder.pe_layer._pe_encoding((coords + 0.5) / SIDE)
        kinds = labels.unsqueeze(-1)
        points = points * (kinds != -1) + encoder.not_a_point_embed.weight * (kinds == -1)
        for kind, held in enumerate(encoder.point_embeddings):
            points = points + held.weight * (kinds == kind)
        masks, scores = self.sam.mask_decoder.predict_masks(
            image_embeddings=embeddings,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=points,
            dense_prompt_embeddings=encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, GRID, GRID),
        )
        return scores, masks


def edge_sam() -> list[File]:
    """Convolutions of RepViT, three of its stages and a layer in the place of its neck; its decoder is SAM's."""
    stages = package("timm").create_model(
        "repvit_m0_9", pretrained=False, features_only=True, out_indices=(2,), depth=(1, 1, 2, 1)
    )
    neck = nn.Conv2d(stages.feature_info.channels()[-1], WIDTH, 1)
    embedding = {"image_embeddings": torch.randn(1, WIDTH, GRID, GRID)}
    return [
        File("encoder", randomised(nn.Sequential(stages, _First(), neck)), image(), ("image_embeddings",)),
        File("decoder", _Plain(_sam()), embedding | prompt(), ("scores", "masks"), POINTS_FREE),
    ]


class _First(nn.Module):
    """The first of several."""

    def forward(self, given: list[torch.Tensor]) -> torch.Tensor:
        return given[0]


def efficient_vit_sam() -> list[File]:
    """EfficientViT: convolutions and linear attention, which has no softmax; its decoder is SAM's."""
    backbone = package("efficientsam.models.efficientvit.backbone", "efficientsam")
    parts = package("efficientsam.models.efficientvit.sam", "efficientsam")
    trunk = backbone.EfficientViTLargeBackbone(width_list=[8, 16, 32, 64, 64], depth_list=[1, 1, 1, 2, 2], qkv_dim=16)
    neck = parts.SamNeck(
        fid_list=["stage4", "stage3", "stage2"],
        in_channel_list=[64, 64, 32],
        head_width=64,
        head_depth=1,
        expand_ratio=1,
        middle_op="fmb",
    )
    return [File("encoder", randomised(parts.EfficientViTSamImageEncoder(trunk, neck)), image(), ("embeddings",))]


def efficient_sam() -> list[File]:
    """EfficientSAM: images of any size, brought to the square inside; prompts in pixels of the image."""
    where = "efficient_sam, from the repository yformer/EfficientSAM"
    parts = package("efficient_sam.efficient_sam", where)
    encoder = parts.ImageEncoderViT(
        img_size=SIDE,
        patch_size=16,
        in_chans=3,
        patch_embed_dim=48,
        normalization_type="layer_norm",
        depth=3,
        num_heads=3,
        mlp_ratio=2.0,
        neck_dims=[WIDTH, WIDTH],
        act_layer=nn.GELU,
    )
    transformer = parts.TwoWayTransformer(
        depth=2, embedding_dim=WIDTH, num_heads=2, mlp_dim=64, activation=nn.GELU, normalize_before_activation=False
    )
    decoder = parts.MaskDecoder(
        transformer_dim=WIDTH,
        transformer=transformer,
        num_multimask_outputs=3,
        activation=nn.GELU,
        normalization_type="layer_norm",
        normalize_before_activation=False,
        iou_head_depth=2,
        iou_head_hidden_dim=32,
        upscaling_layer_dims=[16, 8],
    )
    prompts = parts.PromptEncoder(embed_dim=WIDTH, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE))
    model = randomised(parts.EfficientSam(encoder, prompts, 6, decoder))

    def decode(net: Any, embeddings: Any, coords: Any, labels: Any, size: Any) -> Any:
        height, width = size[0], size[1]
        return net.predict_masks(embeddings, coords, labels, True, height, width, height, width)

    points = {"batched_point_coords": torch.rand(1, 1, 3, 2) * SIDE, "batched_point_labels": torch.ones(1, 1, 3)}
    size = {"orig_im_size": torch.tensor([50, 60], dtype=torch.long)}
    embedding = {"image_embeddings": torch.randn(1, WIDTH, GRID, GRID)}
    free = {"batched_point_coords": {2: "num_points"}, "batched_point_labels": {2: "num_points"}}
    return [
        File(
            "encoder",
            Called(model, lambda net, images: net.get_image_embeddings(images)),
            {"batched_images": torch.rand(1, 3, 50, 60)},
            ("image_embeddings",),
            {"batched_images": {0: "batch", 2: "height", 3: "width"}},
        ),
        File(
            "decoder",
            Called(model, decode),
            embedding | points | size,
            ("output_masks", "iou_predictions"),
            {"image_embeddings": {0: "batch"}, **free},
        ),
    ]


class _Sam2(nn.Module):
    """What samexporter asks of SAM 2."""

    def __init__(self) -> None:
        super().__init__()
        trunk = package("sam2.modeling.backbones.hieradet", "sam2").Hiera(
            embed_dim=16,
            num_heads=1,
            stages=(1, 2, 3, 1),
            global_att_blocks=(4,),
            window_pos_embed_bkg_spatial_size=(4, 4),
            window_spec=(4, 2, 4, 2),
        )
        encoder = package("sam2.modeling.backbones.image_encoder", "sam2")
        positions = package("sam2.modeling.position_encoding", "sam2").PositionEmbeddingSine(num_pos_feats=WIDTH)
        neck = encoder.FpnNeck(
            positions, WIDTH, [128, 64, 32, 16], fpn_top_down_levels=[2, 3], fpn_interp_model="nearest"
        )
        self.image_encoder = encoder.ImageEncoder(trunk, neck, scalp=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.num_feature_levels, self.image_size = 3, SIDE
        self.sam_prompt_encoder = package("sam2.modeling.sam.prompt_encoder", "sam2").PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE), mask_in_chans=8
        )
        transformer = package("sam2.modeling.sam.transformer", "sam2").TwoWayTransformer(
            depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=2
        )
        self.sam_mask_decoder = package("sam2.modeling.sam.mask_decoder", "sam2").MaskDecoder(
            transformer_dim=WIDTH,
            transformer=transformer,
            iou_head_hidden_dim=32,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            dynamic_multimask_via_stability=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
        )


def sam2() -> list[File]:
    """SAM 2 as samexporter cuts it."""
    cuts = package("samexporter.export_sam2", "samexporter")
    model = randomised(_Sam2())
    features = {
        "high_res_feats_0": torch.randn(1, WIDTH // 8, 4 * GRID, 4 * GRID),
        "high_res_feats_1": torch.randn(1, WIDTH // 4, 2 * GRID, 2 * GRID),
    }
    embedding = {"image_embed": torch.randn(1, WIDTH, GRID, GRID)}
    prompts = {0: "num_labels", 1: "num_points"}
    return [
        File("encoder", cuts.SAM2ImageEncoder(model), image(), (*features, "image_embed")),
        File(
            "decoder",
            cuts.SAM2ImageDecoder(model, multimask_output=False),
            embedding | features | prompt() | mask(),
            ("masks", "iou_predictions"),
            {
                "point_coords": prompts,
                "point_labels": prompts,
                "mask_input": {0: "num_labels"},
                "has_mask_input": {0: "num_labels"},
            },
        ),
    ]
