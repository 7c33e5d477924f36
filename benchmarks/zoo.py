# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights of every family of SAM that Python packages hold, and their exports.

A family is a name and a function that gives its files: modules with inputs, and the names that exporters give to these.
Nothing is downloaded; a family whose package is not installed says which one it needs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samq_onnx.errors import UserError
from samq_onnx.export.torchvision_ops import import_torchvision

__all__ = ["EXPORTERS", "FAMILIES", "File", "export"]

SIDE = 64  # of images
WIDTH = 32  # channels of an embedding
GRID = SIDE // 16
LOW_RES = 4 * GRID
EXPORTERS = ("torchscript", "dynamo")


@dataclasses.dataclass(frozen=True)
class File:
    """A module that becomes one file.

    Attributes:
        role: what the file is called.
        sample: tensors to export with, by name of the input.
        outputs: names.
        free: inputs and outputs -> the axes whose size is free, with their names.
    """

    role: str
    module: nn.Module
    sample: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    free: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)


class Called(nn.Module):
    """A function of a module, as a module whose inputs are positional."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self._function = module, function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._function(self.module, *inputs)


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    """The module with weights that keep activations about as large as they are, biases that are not zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            fan_in = parameter[0].numel() if parameter.ndim != 3 else parameter.shape[-1]
            parameter.copy_(noise * max(fan_in, 1) ** -0.5)
        else:
            scales = name.endswith("weight") or "gamma" in name
            parameter.copy_(noise * 0.1 + (1.0 if scales else 0.0))
    return module.eval().requires_grad_(False)


def _package(name: str, install: str | None = None) -> Any:
    import_torchvision()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"needs the package {install or name}") from error


def _image() -> dict[str, torch.Tensor]:
    return {"image": torch.randn(1, 3, SIDE, SIDE)}


def _prompt(points: int = 2) -> dict[str, torch.Tensor]:
    return {"point_coords": torch.rand(1, points, 2) * SIDE, "point_labels": torch.ones(1, points)}


def _mask() -> dict[str, torch.Tensor]:
    return {"mask_input": torch.randn(1, 1, LOW_RES, LOW_RES), "has_mask_input": torch.ones(1)}


POINTS_FREE = {"point_coords": {1: "points"}, "point_labels": {1: "points"}}


# Hugging Face: SAM and SAM-HQ


def _hf_sam(kind: str, attention: str) -> nn.Module:
    transformers = _package("transformers")
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
    decoder = {"hidden_size": WIDTH, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    if kind == "sam_hq":
        decoder["vit_dim"] = 48
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE, "mask_input_channels": 8},
        mask_decoder_config=decoder,
    )
    config._attn_implementation = attention
    return randomised(getattr(transformers, f"{prefix}Model")(config))


def hf_sam(attention: str) -> list[File]:
    """Image encoder, prompt encoder with mask decoder, as Optimum cuts them; and both in one file."""
    model = _hf_sam("sam", attention)

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
    free = {"input_points": {2: "points"}, "input_labels": {2: "points"}}
    made = ("iou_scores", "pred_masks")
    return [
        File("encoder", Called(model, encode), pixels, ("image_embeddings", "image_positional_embeddings")),
        File("decoder", Called(model, decode), points | embedding, made, free),
        File("whole", Called(model, whole), pixels | points, made, free),
    ]


def hf_sam_hq(attention: str) -> list[File]:
    """Image encoder with its intermediate embeddings, prompt encoder with mask decoder."""
    model = _hf_sam("sam_hq", attention)

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
    free = {"input_points": {2: "points"}, "input_labels": {2: "points"}}
    return [
        File(
            "encoder",
            Called(model, encode),
            {"pixel_values": torch.randn(1, 3, SIDE, SIDE)},
            ("image_embeddings", "intermediate_embeddings"),
        ),
        File("decoder", Called(model, decode), points | embedding, ("iou_scores", "pred_masks"), free),
    ]


# Packages with the interface of segment-anything


def _decoder_parts(package: str, install: str, hq: bool = False) -> tuple[nn.Module, nn.Module]:
    modeling = _package(f"{package}.modeling", install)
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=2)
    decoder = {"num_multimask_outputs": 3, "transformer": transformer, "transformer_dim": WIDTH}
    decoder |= {"iou_head_depth": 3, "iou_head_hidden_dim": 32}
    prompt = modeling.PromptEncoder(
        embed_dim=WIDTH, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE), mask_in_chans=8
    )
    return prompt, modeling.MaskDecoderHQ(**decoder, vit_dim=48) if hq else modeling.MaskDecoder(**decoder)


def _vit(package: str, install: str) -> nn.Module:
    return _package(f"{package}.modeling", install).ImageEncoderViT(
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


def sam() -> list[File]:
    """segment_anything, with Meta's own wrapper of the decoder."""
    onnx = _package("segment_anything.utils.onnx", "segment-anything")
    package = _package("segment_anything.modeling", "segment-anything")
    prompt, decoder = _decoder_parts("segment_anything", "segment-anything")
    model = randomised(package.Sam(_vit("segment_anything", "segment-anything"), prompt, decoder))
    return [
        File("encoder", model.image_encoder, _image(), ("image_embeddings",)),
        File(
            "decoder",
            onnx.SamOnnxModel(model, return_single_mask=False),
            {
                "image_embeddings": torch.randn(1, WIDTH, GRID, GRID),
                **_prompt(),
                **_mask(),
                "orig_im_size": torch.tensor([50.0, 60.0]),
            },
            SAM_OUTPUTS,
            POINTS_FREE,
        ),
    ]


def sam_hq() -> list[File]:
    """segment_anything_hq, with its own wrapper of the decoder."""
    onnx = _package("segment_anything_hq.utils.onnx", "segment-anything-hq")
    package = _package("segment_anything_hq.modeling", "segment-anything-hq")
    prompt, decoder = _decoder_parts("segment_anything_hq", "segment-anything-hq", hq=True)
    model = randomised(package.Sam(_vit("segment_anything_hq", "segment-anything-hq"), prompt, decoder))

    def encode(encoder: Any, image: Any) -> tuple[Any, Any]:
        made, intermediate = encoder(image)
        return made, torch.stack(intermediate)

    return [
        File("encoder", Called(model.image_encoder, encode), _image(), ("image_embeddings", "interm_embeddings")),
        File(
            "decoder",
            onnx.SamOnnxModel(model, multimask_output=False),
            {
                "image_embeddings": torch.randn(1, WIDTH, GRID, GRID),
                "interm_embeddings": torch.randn(1, 1, GRID, GRID, 48),
                **_prompt(),
                **_mask(),
                "orig_im_size": torch.tensor([50.0, 60.0]),
            },
            SAM_OUTPUTS,
            POINTS_FREE,
        ),
    ]


def mobile_sam() -> list[File]:
    """TinyViT with the decoder of SAM; TinySAM is the same."""
    package = _package("mobile_sam.modeling", "mobilesam-mirror")
    prompt, decoder = _decoder_parts("mobile_sam", "mobilesam-mirror")
    encoder = package.TinyViT(
        img_size=SIDE,
        in_chans=3,
        num_classes=2,
        embed_dims=[16, 32, 32, 320],  # 320 is what tells it not to halve the grid,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 10],
        window_sizes=[3, 3, 4, 3],
        mbconv_expand_ratio=2.0,
    )
    randomised(encoder)
    for module in encoder.modules():
        if hasattr(module, "attention_biases"):
            module.eval()
            module.ab = module.attention_biases[:, module.attention_bias_idxs]

    def encode(vit: Any, image: Any) -> Any:
        x = vit.layers[0](vit.patch_embed(image))
        for layer in vit.layers[1:]:
            x = layer(x)
        return vit.neck(x.reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2))

    del prompt, decoder
    return [File("encoder", Called(encoder, encode), _image(), ("image_embeddings",))]


# SAM 2 of Hugging Face


def _sam2_model(attention: str) -> nn.Module:
    transformers = _package("transformers")
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
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 64,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    )
    config._attn_implementation = attention
    return randomised(transformers.Sam2Model(config))


def hf_sam2(attention: str) -> list[File]:
    """Hiera with three feature maps, prompt encoder with mask decoder, as they are published for transformers.js."""
    model = _sam2_model(attention)

    def encode(sam: Any, pixels: Any) -> tuple[Any, ...]:
        return tuple(sam.get_image_embeddings(pixels))

    def decode(sam: Any, points: Any, labels: Any, *embeddings: Any) -> tuple[Any, ...]:
        made = sam(input_points=points, input_labels=labels, image_embeddings=list(embeddings))
        return made.iou_scores, made.pred_masks, made.object_score_logits

    embeddings = {
        "image_embeddings.0": torch.randn(1, WIDTH // 8, 16, 16),
        "image_embeddings.1": torch.randn(1, WIDTH // 4, 8, 8),
        "image_embeddings.2": torch.randn(1, WIDTH, 4, 4),
    }
    points = {"input_points": torch.rand(1, 1, 2, 2) * SIDE, "input_labels": torch.ones(1, 1, 2, dtype=torch.int64)}
    return [
        File("encoder", Called(model, encode), {"pixel_values": torch.randn(1, 3, SIDE, SIDE)}, tuple(embeddings)),
        File(
            "decoder",
            Called(model, decode),
            points | embeddings,
            ("iou_scores", "pred_masks", "object_score_logits"),
            {"input_points": {2: "points"}, "input_labels": {2: "points"}},
        ),
    ]


# Encoders alone


def timm_model(name: str, **options: Any) -> list[File]:
    """A network of timm."""
    timm = _package("timm")
    model = randomised(timm.create_model(name, pretrained=False, num_classes=10, **options))
    size = options.get("img_size", SIDE)
    return [File("encoder", model, {"image": torch.randn(1, 3, size, size)}, ("logits",))]


def hf_swin() -> list[File]:
    """Swin: windows with a bias, every second block with a mask of shifted windows."""
    transformers = _package("transformers")
    config = transformers.SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    model = randomised(transformers.SwinModel(config))
    return [
        File("encoder", Called(model, lambda net, x: net(x).last_hidden_state), _image(), ("features",)),
    ]


def hf_dinov2(attention: str) -> list[File]:
    """DINOv2."""
    transformers = _package("transformers")
    config = transformers.Dinov2Config(
        image_size=SIDE, patch_size=16, hidden_size=48, num_hidden_layers=3, num_attention_heads=3
    )
    config._attn_implementation = attention
    model = randomised(transformers.Dinov2Model(config))
    return [
        File("encoder", Called(model, lambda net, x: net(x).last_hidden_state), _image(), ("features",)),
    ]


FAMILIES: dict[str, Callable[[], list[File]]] = {
    "SAM": sam,
    "SAM, Hugging Face, eager": functools.partial(hf_sam, "eager"),
    "SAM, Hugging Face, sdpa": functools.partial(hf_sam, "sdpa"),
    "SAM-HQ": sam_hq,
    "SAM-HQ, Hugging Face, eager": functools.partial(hf_sam_hq, "eager"),
    "SAM-HQ, Hugging Face, sdpa": functools.partial(hf_sam_hq, "sdpa"),
    "MobileSAM, TinySAM": mobile_sam,
    "SAM 2, Hugging Face, eager": functools.partial(hf_sam2, "eager"),
    "SAM 2, Hugging Face, sdpa": functools.partial(hf_sam2, "sdpa"),
    "ViT, timm": functools.partial(
        timm_model, "vit_tiny_patch16_224", img_size=SIDE, depth=3, embed_dim=48, num_heads=3
    ),
    "Swin, Hugging Face": hf_swin,
    "DINOv2, Hugging Face, eager": functools.partial(hf_dinov2, "eager"),
    "DINOv2, Hugging Face, sdpa": functools.partial(hf_dinov2, "sdpa"),
}


def export(file: File, exporter: str, path: Path) -> None:
    """Write a file.

    Raises:
        Exception: whatever the exporter raises.
    """
    arguments: dict[str, Any] = {"input_names": list(file.sample), "output_names": list(file.outputs)}
    module = copy.deepcopy(file.module)
    sample = tuple(file.sample.values())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(
                module, sample, str(path), dynamo=False, opset_version=17, dynamic_axes=file.free, **arguments
            )
        else:
            shapes = tuple(dict.fromkeys(file.free.get(name, {}), torch.export.Dim.DYNAMIC) for name in file.sample)
            torch.onnx.export(
                module,
                sample,
                str(path),
                dynamo=True,
                external_data=False,
                optimize=True,
                verbose=False,
                dynamic_shapes=(shapes,) if isinstance(module, Called) else shapes,
                **arguments,
            )
