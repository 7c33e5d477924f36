# SPDX-License-Identifier: Apache-2.0
"""Graphs of PyTorch's newer exporter (``dynamo=True``) are lifted as those of the TorchScript exporter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samq_onnx import ops
from samq_onnx.export.families import BUILDERS
from samq_onnx.export.part import Part
from samq_onnx.export.parts import decoder_part, encoder_part
from samq_onnx.export.sam import Sam
from samq_onnx.export.trace import trace
from samq_onnx.models import load_model
from samq_onnx.passes.lift import Lifted, Projection, lift, simplify
from tests.conftest import Feed, made_once, relative_error, run_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:# The axis name"),  # the exporter's own
]

PARTS = {"encoder": encoder_part, "decoder": decoder_part}


class LiftedFile(NamedTuple):
    path: Path
    model: ir.Model
    structure: Lifted


class Pair(NamedTuple):
    torchscript: LiftedFile
    dynamo: LiftedFile


def export_by_dynamo(part: Part, path: Path) -> None:
    dynamic = tuple(
        {axis: torch.export.Dim(side) for axis, side in enumerate(shape) if isinstance(side, str)}
        for shape in part.inputs.values()
    )
    torch.onnx.export(
        part.module.eval(),
        part.sample,
        path,
        input_names=list(part.inputs),
        output_names=list(part.outputs),
        dynamic_shapes=dynamic,
        dynamo=True,
        verbose=False,
    )


def lifted(path: Path) -> LiftedFile:
    model = load_model(path)
    simplify(model)
    return LiftedFile(path, model, lift(model))


@pytest.fixture(scope="module")
def vit_b() -> Sam:
    """ViT-B in its own sizes at 1024 px with random weights; of its 12 blocks one windowed and one global."""
    torch.manual_seed(0)
    sam = BUILDERS["vit_b"]().eval()
    encoder = sam.image_encoder
    encoder.blocks = encoder.blocks[1:3]
    assert [block.window_size for block in encoder.blocks] == [14, 0]
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name:  # zeros, as built
            torch.nn.init.normal_(parameter)
    return sam


@pytest.fixture(scope="module", params=[("sam", "encoder"), ("sam", "decoder"), ("vit_b", "encoder")], ids="-".join)
def pair(request: pytest.FixtureRequest, nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One part of SAM-Nano (fixture ``sam``), as bundled, or ViT-B, as traced, and by the newer exporter.

    ViT-B's decoder is SAM-Nano's but for its width.
    """
    name, part_name = request.param

    def make(folder: Path) -> None:
        part = PARTS[part_name](request.getfixturevalue(name))
        if name == "sam":
            shutil.copy(nano / f"{part_name}.onnx", folder / "torchscript.onnx")
        else:
            trace(part, folder / "torchscript.onnx")
        export_by_dynamo(part, folder / "dynamo.onnx")

    folder = made_once(tmp_path_factory, f"{name}_{part_name}", make)
    return Pair(lifted(folder / "torchscript.onnx"), lifted(folder / "dynamo.onnx"))


def test_everything_is_found(pair: Pair) -> None:
    expected, found = pair.torchscript.structure, pair.dynamo.structure
    assert all(site.kind != "generic" for site in found.attentions) and not found.refused
    for parts in ("linears", "norms", "gelus"):
        assert len(getattr(found, parts)) == len(getattr(expected, parts)) > 0
    for one, two in zip(expected.attentions, found.attentions, strict=True):
        assert (two.kind, two.heads, two.scale) == (one.kind, one.heads, pytest.approx(one.scale))


def test_projections_and_tables_are_the_same(pair: Pair) -> None:
    for one, two in zip(pair.torchscript.structure.attentions, pair.dynamo.structure.attentions, strict=True):
        for expected, found in ((one.q, two.q), (one.k, two.k), (one.v, two.v)):
            assert isinstance(expected, Projection) and isinstance(found, Projection)
            np.testing.assert_array_equal(found.channels, expected.channels)
        assert (two.tables is not None) == two.kind.startswith("encoder")
        for table, other in zip(one.tables or (), two.tables or (), strict=True):
            assert table.const_value is not None and other.const_value is not None
            np.testing.assert_allclose(other.const_value.numpy(), table.const_value.numpy(), atol=1e-5)


@pytest.mark.parametrize("pair", [("sam", "encoder"), ("sam", "decoder")], indirect=True, ids="-".join)
def test_lifted_graph_computes_the_same(pair: Pair, request: pytest.FixtureRequest) -> None:
    path, model, structure = pair.dynamo
    feed: Feed = request.getfixturevalue("encoder_feed" if structure.attentions[0].tables else "decoder_feed")
    ops.add_functions(model)
    assert relative_error(run_model(path, feed), run_model(model, feed)) < 5e-5
