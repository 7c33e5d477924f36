# SPDX-License-Identifier: Apache-2.0
"""Networks without SAM's structure are quantized too: all their linears and convolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.parser
import pytest

from samq_onnx import assets, data, images, quantize, verify
from tests import nets
from tests.conftest import run_model

LINEAR_OPS = ("Conv", "Gemm", "MatMul")


class Quantized(NamedTuple):
    source: Path
    output: Path
    report: dict[str, Any]
    printed: str


@pytest.fixture(params=list(nets.NETS))
def quantized(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Quantized:
    """A network through the command."""
    source, output, report = (tmp_path / name for name in ("float.onnx", "quantized.onnx", "report.json"))
    onnx.save(nets.build(request.param), source)
    arguments = [source, "-o", output, "--calib", assets.calibration_images(), "--json", report]
    assert quantize.main([str(argument) for argument in arguments]) == 0
    return Quantized(source, output, json.loads(report.read_text()), capsys.readouterr().out)


def test_a_network_without_attention_is_quantized_whole(quantized: Quantized) -> None:
    before, after = (onnx.load(path).graph for path in (quantized.source, quantized.output))
    assert list(after.input) == list(before.input) and list(after.output) == list(before.output)

    producers = {name: node.op_type for node in after.node for name in node.output}
    linears = [node for node in after.node if node.op_type in LINEAR_OPS]
    assert len(linears) == sum(node.op_type in LINEAR_OPS for node in before.node) == quantized.report["linears"]
    for node in linears:
        assert [producers.get(name) for name in node.input] == ["DequantizeLinear"] * len(node.input)
    assert quantized.report["fusion"]["integer_share"] == 1.0
    assert "no SAM structure found: quantized as a generic network" in quantized.printed

    image = images.preprocess(images.load(data.image_paths(assets.demo_images())[0]), nets.SIDE)
    expected, found = (run_model(path, {"image": image})[0] for path in (quantized.source, quantized.output))
    assert verify.sqnr(expected, found) > 25


def test_an_old_opset_is_raised(tmp_path: Path) -> None:
    source, output = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    model = nets.build("convolutional")
    model.opset_import[0].version = 11
    onnx.save(model, source)
    assert quantize.main([str(source), "-o", str(output), "--calib", str(assets.calibration_images())]) == 0
    assert onnx.load(output).opset_import[0].version >= 13


def test_weights_of_other_types_stay(tmp_path: Path) -> None:
    source, output, report = (tmp_path / name for name in ("float.onnx", "quantized.onnx", "report.json"))
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    half (float[1, 3, 64, 64] image) => (float[1, 3, 64, 8] y) <float16[64, 8] w, float[8, 8] v>
    { x = Cast <to = 10> (image)
      product = MatMul (x, w)
      wide = Cast <to = 1> (product)
      y = MatMul (wide, v) }
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 8), np.float16), "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "v"))
    onnx.save(model, source)
    arguments = [source, "-o", output, "--calib", assets.calibration_images(), "--json", report]
    assert quantize.main([str(argument) for argument in arguments]) == 0
    assert list(json.loads(report.read_text())["kept_float"].values()) == ["its weights are not float32"]
