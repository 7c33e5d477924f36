# SPDX-License-Identifier: Apache-2.0
"""Networks without SAM's structure are quantized too: all their linears and convolutions."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.parser
import pytest
from onnxruntime import quantization

import samq_onnx
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
    assert "no attention found: quantized as a generic network" in quantized.printed

    image = images.preprocess(images.load(data.image_paths(assets.demo_images())[0]), nets.SIDE)
    expected, found = (run_model(path, {"image": image})[0] for path in (quantized.source, quantized.output))
    assert verify.sqnr(expected, found) > 35


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
    half (float[1, 3, 64, 64] image) => (float[1, 3, 64, 8] y) <double[64, 8] w, float[8, 8] v>
    { x = Cast <to = 11> (image)
      product = MatMul (x, w)
      wide = Cast <to = 1> (product)
      y = MatMul (wide, v) }
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 8), np.float64), "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "v"))
    onnx.save(model, source)
    arguments = [source, "-o", output, "--calib", assets.calibration_images(), "--json", report]
    assert quantize.main([str(argument) for argument in arguments]) == 0
    assert list(json.loads(report.read_text())["kept_float"].values()) == ["its weights are not float32"]


def _refusal(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What quantize says of a file that it refuses."""
    output = source.with_name("quantized.onnx")
    assert quantize.main([str(source), "-o", str(output), "--calib", str(assets.calibration_images())]) == 2
    assert not output.exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_what_is_quantized_already_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, dynamic = tmp_path / "float.onnx", tmp_path / "dynamic.onnx"
    onnx.save(nets.build("transformer_mlp"), source)
    quantization.quantize_dynamic(source, dynamic)
    said = _refusal(dynamic, capsys)
    assert "dynamic.onnx: is already quantized, by onnx.quantize (" in said and "DynamicQuantizeLinear" in said
    model = nets.build("convolutional")
    for name, values in (("scale", np.float32(0.1)), ("zero", np.uint8(0))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["codes"]),
        onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["rounded"]),
    ]
    model.graph.node[0].input[0] = "rounded"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, source)
    assert "(1 QuantizeLinear, 1 DequantizeLinear)" in _refusal(source, capsys)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x = Cast <to = 11> (image)\n p = MatMul (x, half)\n y = Cast <to = 1> (p)", "0 of 1 linears .*not float32"),
        ("x = Transpose <perm = [0, 1, 3, 2]> (image)\n y = MatMul (image, x)", "0 of 0 linears .*constant weights"),
        ("y = Relu (image)", "0 of 0 linears"),
    ],
)
def test_nothing_quantized_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, said: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    none (float[1, 3, 8, 8] image) => (float[1, 3, 8, 8] y) <double[8, 8] half> {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    if "half" in body:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8), np.float64), "half"))
    onnx.save(model, tmp_path / "float.onnx")
    assert re.search(said, _refusal(tmp_path / "float.onnx", capsys))


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    source, output, report = (tmp_path / name for name in ("float.onnx", "quantized.onnx", "report.json"))
    text = """
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    nested (float[1, 3, 8, 8] image) => (float[1, 3, 8, 8] y) <float[8, 8] v, float[8, 8] w>
    { a = local.outer (image, v)
      y = local.outer (a, w) }
    <domain: "local", opset_import: ["" : 17, "local" : 1]>
    outer (x, w) => (y) { z = local.inner (x, w)
      y = Relu (z) }
    <domain: "local", opset_import: ["" : 17]>
    inner (x, w) => (y) { y = MatMul (x, w) }
    """
    model = onnx.parser.parse_model(text)
    for name in "vw":
        weights = np.random.default_rng(0).standard_normal((8, 8), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    onnx.save(model, source)
    arguments = [source, "-o", output, "--calib", assets.calibration_images(), "--json", report]
    assert quantize.main([str(argument) for argument in arguments]) == 0
    assert json.loads(report.read_text())["linears"] == 2
    assert verify.main([str(output), "--reference", str(source)]) == 0


def test_nodes_may_come_in_any_order(tmp_path: Path) -> None:
    """ONNX Runtime takes them so, and its tools for half precision write them so."""
    source, output = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    model = nets.build("convolutional")
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, source)
    assert quantize.main([str(source), "-o", str(output), "--calib", str(assets.calibration_images())]) == 0
    assert verify.main([str(output), "--reference", str(source)]) == 0


def test_attention_of_any_kind_is_told(tmp_path: Path, one_image: Path) -> None:
    onnx.save(nets.build("convolutional"), tmp_path / "float.onnx")
    part = samq_onnx.quantize(tmp_path / "float.onnx", one_image, method="minmax").parts["model"]
    assert quantize.described(part)[0].startswith("no attention found")
    assert quantize.described(dataclasses.replace(part, sites={"generic": 3}))[0] == "attention sites: 3 generic"
