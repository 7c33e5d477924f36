# SPDX-License-Identifier: Apache-2.0
"""segment-anything's own export at old opsets: raised, it computes the same, and all attention is found."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.onnx import SamOnnxModel

from samq_onnx.passes.lift import lift, simplify
from samq_onnx.passes.lower import raise_opset
from tests.conftest import relative_error, run_model

pytestmark = pytest.mark.slow

SIDE, GRID, WIDTH = 64, 4, 32


def _sam() -> Sam:
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=SIDE, patch_size=16, embed_dim=WIDTH, depth=2, num_heads=2, qkv_bias=True, use_rel_pos=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), global_attn_indexes=(1,), window_size=3, out_chans=WIDTH,
    )  # fmt: skip
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=4)
    decoder = MaskDecoder(transformer_dim=WIDTH, transformer=transformer, iou_head_hidden_dim=32)
    return Sam(encoder, PromptEncoder(WIDTH, (GRID, GRID), (SIDE, SIDE), 16), decoder).eval()


def _feed(part: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    if part == "encoder":
        return {"image": torch.randn(1, 3, SIDE, SIDE)}
    return {
        "image_embeddings": torch.randn(1, WIDTH, GRID, GRID),
        "point_coords": torch.rand(1, 3, 2) * SIDE,
        "point_labels": torch.tensor([[1.0, 0.0, -1.0]]),
        "mask_input": torch.randn(1, 1, 4 * GRID, 4 * GRID),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([48.0, 60.0]),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("part", "opset", "sites"), [("encoder", 12, 2), ("decoder", 11, 7), ("decoder", 16, 7)])
def test_segment_anything(tmp_path: Path, part: str, opset: int, sites: int) -> None:
    feed, path = _feed(part), str(tmp_path / "model.onnx")
    module = _sam().image_encoder if part == "encoder" else SamOnnxModel(_sam(), return_single_mask=False)
    axes = {} if part == "encoder" else {"point_coords": {1: "points"}, "point_labels": {1: "points"}}
    torch.onnx.export(
        module, tuple(feed.values()), path, input_names=list(feed), dynamic_axes=axes, opset_version=opset, dynamo=False
    )
    arrays = {name: np.asarray(value) for name, value in feed.items()}
    expected = run_model(path, arrays)
    for weight_bits in (8, 4):
        model = ir.from_proto(onnx.load(path))
        raise_opset(model, weight_bits)
        assert relative_error(expected, run_model(model, arrays)) < 1e-5
        simplify(model)
        assert len(lift(model).attentions) == sites
