# SPDX-License-Identifier: Apache-2.0
"""What the exported files look like to a consumer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from samq_onnx import assets
from samq_onnx.export import job, parity, write
from samq_onnx.export.__main__ import main
from tests.export.conftest import Exported, decoder_feed

pytestmark = pytest.mark.slow

INPUTS = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"]
OUTPUTS = ["masks", "iou_predictions", "low_res_masks"]


def shapes(values: object) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}  # type: ignore


def test_encoder_interface(exported: Exported) -> None:
    graph = onnx.load(exported.folder / "encoder.onnx").graph
    assert shapes(graph.input) == {"image": [1, 3, 512, 512]}
    assert shapes(graph.output) == {"image_embeddings": [1, 128, 32, 32]}


def test_decoder_interface_in_order(exported: Exported) -> None:
    graph = onnx.load(exported.folder / "decoder.onnx").graph
    assert [value.name for value in graph.input] == INPUTS
    assert [value.name for value in graph.output] == OUTPUTS
    found = shapes(graph.input) | shapes(graph.output)
    assert found["point_coords"] == [1, "num_points", 2]
    assert found["point_labels"] == [1, "num_points"]
    assert found["masks"] == [1, 4, "height", "width"]
    assert found["low_res_masks"] == [1, 4, 128, 128]


def test_batched_decoder_interface(exported: Exported) -> None:
    graph = onnx.load(exported.folder / "decoder_batched.onnx").graph
    assert [value.name for value in graph.input] == INPUTS
    assert [value.name for value in graph.output] == OUTPUTS
    assert shapes(graph.input)["point_coords"] == ["num_prompts", "num_points", 2]
    assert shapes(graph.output)["masks"] == ["num_prompts", 4, "height", "width"]


@pytest.mark.parametrize("name", ["encoder", "decoder", "decoder_batched"])
def test_graph_is_valid_old_enough_and_folded(exported: Exported, name: str) -> None:
    model = onnx.load(exported.folder / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 17
    assert model.ir_version <= 10
    facts = exported.report["files"][name]
    assert len(model.graph.node) == facts["nodes"] < 0.6 * facts["nodes_traced"]
    assert facts["max_rel"] <= 1e-3
    assert facts["bytes"] == (exported.folder / f"{name}.onnx").stat().st_size


def test_no_shape_arithmetic_is_left_in_the_encoder(exported: Exported) -> None:
    kinds = {node.op_type for node in onnx.load(exported.folder / "encoder.onnx").graph.node}
    assert not kinds & {"Constant", "ConstantOfShape", "Shape", "Gather", "Cast", "Identity"}


def test_bundled_files_are_what_the_tool_writes(exported: Exported) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        bundled, made = onnx.load(assets.nano_dir() / name).graph, onnx.load(exported.folder / name).graph
        assert [node.op_type for node in bundled.node] == [node.op_type for node in made.node]
        assert shapes(bundled.input) == shapes(made.input)


def test_command_writes_all_files_and_nothing_else(exported: Exported) -> None:
    names = ["decoder.onnx", "decoder_batched.onnx", "encoder.onnx"]
    assert sorted(path.name for path in exported.folder.iterdir()) == names
    assert [Path(file["path"]).name for file in exported.report["files"].values()] == [names[2], *names[:2]]
    assert exported.report["image_size"] == 512
    assert exported.report["parameters"] == 3_968_384


def test_weights_beyond_the_limit_go_to_one_file_beside(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "FILE_LIMIT", 1_000_000)
    model = onnx.load(exported.folder / "decoder.onnx")
    write.write(model, tmp_path / "decoder.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.onnx", "decoder.onnx.data"]
    assert (tmp_path / "decoder.onnx").stat().st_size < 1_000_000
    feed = decoder_feed()
    found = Exported(tmp_path, {}).session("decoder").run(None, feed)
    for one, other in zip(found, exported.session("decoder").run(None, feed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_that_differs_from_pytorch_is_not_left(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = job._read

    def only_decoder(*arguments: Any) -> Any:
        *others, parts = read(*arguments)
        return *others, parts[1:]

    monkeypatch.setattr(job, "_read", only_decoder)
    monkeypatch.setattr(job, "trace", lambda _, path: shutil.copy(exported.folder / "decoder.onnx", path))
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    assert main(["--model-type", "nano", "-o", str(tmp_path)]) == 2
    assert "differs from PyTorch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_decoder_is_one_session_for_all_sizes(exported: Exported) -> None:
    session = exported.session("decoder")
    for height, width in ((64, 128), (128, 64), (1, 300)):
        assert session.run(None, decoder_feed(size=(height, width)))[0].shape == (1, 4, height, width)
        assert np.isfinite(session.run(None, decoder_feed(size=(height, width)))[0]).all()
