# SPDX-License-Identifier: Apache-2.0
"""Relatives of SAM from checkpoint to masks: tiny models with random weights of each family's own package."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch

import samq_onnx
from samq_onnx import assets, data, images
from samq_onnx.export.__main__ import main
from samq_onnx.export.hugging_face import Encoder, read_folder
from samq_onnx.export.torchvision_ops import import_torchvision
from samq_onnx.verify import verify

pytestmark = pytest.mark.slow

SIDE, WIDTH = 64, 32
CLOSE = 0.98  # share of pixels; packages resize images by other means
POINT = {"point_coords": np.array([[60.0, 70.0]]), "point_labels": np.ones(1)}
BOX = {"box": np.array([20.0, 30.0, 150.0, 120.0])}


class Source(NamedTuple):
    """A checkpoint: its place, and the model that it holds."""

    path: Path
    model: Any


@torch.no_grad()
def randomised(model: Any) -> Any:
    """Weights that keep activations about as large as they are, as zeros tell nothing."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * max(parameter[0].numel(), 1) ** -0.5)
        else:
            parameter.copy_(noise * 0.1 + parameter.abs().mean().round())
    return model.eval()


def masks_of(folder: Path) -> list[np.ndarray]:
    """Bool [M, H, W] of a point and of a box."""
    predictor = samq_onnx.SamPredictor(folder / "encoder.onnx", folder / "decoder.onnx")
    rgb = images.load(data.image_paths(assets.demo_images())[0])
    predictor.set_image(rgb)
    made = [predictor.predict(**POINT)[0], predictor.predict(**BOX, multimask_output=False)[0]]
    assert [one.shape for one in made] == [(3, *rgb.shape[:2]), (1, *rgb.shape[:2])]
    return made


def agreement(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Share of pixels that are the same, of the worst."""
    return float(min(np.mean(one == other) for one, other in zip(found, wanted, strict=True)))


def of_predictor(predictor: Any) -> list[np.ndarray]:
    """As `masks_of`, by the package's own predictor."""
    predictor.set_image(images.load(data.image_paths(assets.demo_images())[0]))
    made = [predictor.predict(**POINT)[0], predictor.predict(**BOX, multimask_output=False)[0]]
    return [one.astype(bool) for one in made]


def softmaxes(path: Path) -> int:
    """How many attentions a float model has."""
    return sum(node.op_type == "Softmax" for node in onnx.load(path).graph.node)


def from_checkpoint_to_masks(source: Source, folder: Path, calibration: Path) -> list[np.ndarray]:
    """Export, masks of a point and a box, and the same quantized; the masks of the float files."""
    made, quantized = folder / "float", folder / "quantized"
    assert main(["--checkpoint", str(source.path), "-o", str(made)]) == 0
    wanted = masks_of(made)
    result = samq_onnx.quantize(made, calibration, method="minmax")
    result.save(quantized)
    for name in ("encoder", "decoder"):
        assert sum(result.parts[name].sites.values()) == softmaxes(made / f"{name}.onnx")
        encoder = quantized / "encoder.onnx" if name == "decoder" else None
        found = verify(quantized / f"{name}.onnx", made / f"{name}.onnx", encoder)
        assert found["same"]
        assert all(value is None or value > 12 for value in found["output_sqnr_db"].values()), found["output_sqnr_db"]
    assert agreement(masks_of(quantized), wanted) > 0.9
    return wanted


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """What packages initialise is the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def hugging_face(tmp_path: Path) -> Callable[[str], Source]:
    transformers = pytest.importorskip("transformers")
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
    prompt = {"hidden_size": WIDTH, "image_size": SIDE, "mask_input_channels": 8}
    decoder = {"hidden_size": WIDTH, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    hiera = {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 2, 4, 2],
        "global_attention_blocks": [4],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision2 = {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **hiera},
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": WIDTH,
    }

    def make(kind: str) -> Source:
        config = getattr(transformers, f"{kind}Config")(
            vision_config=vision2 if kind == "Sam2" else vision,
            prompt_encoder_config=prompt,
            mask_decoder_config=decoder | ({"vit_dim": 48} if kind == "SamHQ" else {}),
        )
        model = randomised(getattr(transformers, f"{kind}Model")(config))
        model.save_pretrained(tmp_path / kind, safe_serialization=True)
        return Source(tmp_path / kind, model)

    return make


@pytest.mark.parametrize("kind", ["Sam", "SamHQ", "Sam2"])
def test_hugging_face(kind: str, hugging_face: Callable[[str], Source], tmp_path: Path, calibration: Path) -> None:
    from_checkpoint_to_masks(hugging_face(kind), tmp_path, calibration)


@pytest.mark.parametrize(
    ("kind", "place", "value", "reason"),
    [
        ("Sam", ("vision_config", "num_hidden_layers"), 2, "more layers than its configuration, 14 tensors"),
        ("Sam", ("mask_decoder_config", "num_hidden_layers"), 1, "more layers than its configuration, 36 tensors"),
        ("Sam", ("vision_config", "num_hidden_layers"), 4, "its weights lack 14 tensors"),
        ("Sam", ("vision_config", "patch_size"), 8, "its weights lack 4 tensors or have them in another shape"),
        ("Sam", ("prompt_encoder_config", "image_size"), 2 * SIDE, "does not run at its image_size 128"),
        ("Sam", ("prompt_encoder_config", "image_size"), 10**7, "its image_size is 10000000; wanted is 1 to"),
        ("Sam2", ("vision_config", "backbone_feature_sizes"), [[32, 32], [8, 8], [4, 4]], "does not run at its image_"),
    ],
    ids=["fewer layers", "fewer decoder layers", "more layers", "patches", "side", "huge side", "maps"],
)
def test_a_configuration_of_other_weights(
    kind: str,
    place: tuple[str, str],
    value: object,
    reason: str,
    hugging_face: Callable[[str], Source],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model of fewer layers would run, and be another one."""
    file = hugging_face(kind).path / "config.json"
    config = json.loads(file.read_text())
    config[place[0]][place[1]] = value
    file.write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["--checkpoint", str(file.parent), "-o", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and reason in lines[0] and not (tmp_path / "out").exists()


def test_a_buffer_of_another_version_is_left(hugging_face: Callable[[str], Source], tmp_path: Path) -> None:
    folder = hugging_face("Sam").path
    torch_files = pytest.importorskip("safetensors.torch")
    weights = torch_files.load_file(folder / "model.safetensors")
    torch_files.save_file(
        weights | {"vision_encoder.position_ids": torch.arange(3)}, folder / "model.safetensors", {"format": "pt"}
    )
    assert read_folder(folder).model_type == "sam"


def test_a_vision_encoder_of_any_batch(
    hugging_face: Callable[[str], Source], tmp_path: Path, calibration: Path
) -> None:
    """As others export it: pixel_values in, and the number of images is open."""
    path = tmp_path / "vision_encoder.onnx"
    with torch.no_grad():
        torch.onnx.export(
            Encoder(hugging_face("Sam").model, intermediate=False),
            torch.randn(1, 3, SIDE, SIDE),
            str(path),
            input_names=["pixel_values"],
            output_names=["image_embeddings"],
            dynamic_axes={"pixel_values": {0: "batch_size"}},
            opset_version=17,
            dynamo=False,
        )
    result = samq_onnx.quantize(path, calibration, method="minmax")
    assert result.parts["model"].sites == {"encoder_global": 1, "encoder_window": 2}


def decoder_of(package: Any, **options: Any) -> Any:
    """A narrow mask decoder of a package with segment_anything's classes."""
    width = options.pop("width", WIDTH)
    return getattr(package, options.pop("kind", "MaskDecoder"))(
        num_multimask_outputs=3,
        transformer=package.TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=64, num_heads=2),
        transformer_dim=width,
        iou_head_depth=3,
        iou_head_hidden_dim=32,
        **options,
    )


def saved(model: Any, path: Path) -> Source:
    torch.save(model.state_dict(), path)
    return Source(path, model)


def test_sam_hq(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calibration: Path) -> None:
    import_torchvision()
    package = pytest.importorskip("segment_anything_hq")
    modeling = package.modeling

    def build() -> Any:
        encoder = modeling.ImageEncoderViT(
            img_size=SIDE,
            embed_dim=48,
            depth=3,
            num_heads=3,
            out_chans=WIDTH,
            use_rel_pos=True,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            window_size=3,
            global_attn_indexes=(1,),
        )
        grid = (SIDE // 16, SIDE // 16)
        prompt = modeling.PromptEncoder(WIDTH, grid, (SIDE, SIDE), 8)
        return modeling.Sam(encoder, prompt, decoder_of(modeling, kind="MaskDecoderHQ", vit_dim=48))

    monkeypatch.setitem(package.sam_model_registry, "vit_b", build)
    source = saved(randomised(build()), tmp_path / "hq.pth")
    masks = from_checkpoint_to_masks(source, tmp_path, calibration)
    point, box = of_predictor(package.SamPredictor(source.model))
    assert agreement([box], masks[1:]) > CLOSE
    assert max(agreement([point], [one[None]]) for one in masks[0]) > CLOSE  # its own has chosen


def test_mobile_sam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calibration: Path) -> None:
    """Narrow, but at 1024 px, which its encoder is written for."""
    import_torchvision()
    package = pytest.importorskip("mobile_sam")
    modeling = package.modeling

    def build() -> Any:
        encoder = modeling.TinyViT(
            img_size=1024,
            num_classes=2,
            embed_dims=[8, 8, 16, 320],  # 320 is what tells it not to halve the grid
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 10],
            window_sizes=[7, 7, 14, 7],
            mlp_ratio=1.0,
            mbconv_expand_ratio=1.0,
        )
        prompt = modeling.PromptEncoder(256, (64, 64), (1024, 1024), 8)
        return modeling.Sam(encoder, prompt, decoder_of(modeling, width=256))

    monkeypatch.setitem(package.sam_model_registry, "vit_t", build)
    source = saved(randomised(build()), tmp_path / "mobile_sam.pt")
    masks = from_checkpoint_to_masks(source, tmp_path, calibration)
    assert agreement(of_predictor(package.SamPredictor(source.model)), masks) > CLOSE


def test_sam2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calibration: Path) -> None:
    package = pytest.importorskip("sam2.build_sam")
    trunk = "++model.image_encoder.trunk."
    small = [
        "++model.image_size=128",
        f"{trunk}embed_dim=16",
        f"{trunk}stages=[1,2,2,1]",
        f"{trunk}global_att_blocks=[4]",
        f"{trunk}window_spec=[4,2,4,2]",
        f"{trunk}window_pos_embed_bkg_spatial_size=[4,4]",
        "++model.image_encoder.neck.backbone_channel_list=[128,64,32,16]",
    ]
    build = functools.partial(package.build_sam2, hydra_overrides_extra=small)
    model = randomised(build("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", apply_postprocessing=False))
    torch.save({"model": model.state_dict()}, tmp_path / "sam2.pt")
    monkeypatch.setattr(package, "build_sam2", build)
    masks = from_checkpoint_to_masks(Source(tmp_path / "sam2.pt", model), tmp_path, calibration)
    predictor = pytest.importorskip("sam2.sam2_image_predictor").SAM2ImagePredictor(model, mask_threshold=0.0)
    predictor._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]  # it knows those of 1024 px alone
    assert agreement(of_predictor(predictor), masks) > CLOSE
