# SPDX-License-Identifier: Apache-2.0
"""The verify command refuses what it cannot compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import samq_onnx
from samq_onnx import assets, quantize, verify
from tests import nets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model, its quantized form, models that do not belong to it, and a text."""
    folder = tmp_path_factory.mktemp("verify")
    for name, model in {
        "float": nets.build("convolutional"),
        "larger": nets.build("convolutional", 2 * nets.SIDE),
        "other": nets.build("transformer_mlp"),
    }.items():
        onnx.save(model, folder / f"{name}.onnx")
    calibration = ["--calib", str(assets.calibration_images())]
    assert quantize.main([str(folder / "float.onnx"), "-o", str(folder / "quantized.onnx"), *calibration]) == 0
    renamed = nets.build("convolutional")
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "scores"
    onnx.save(renamed, folder / "renamed.onnx")
    (folder / "text.onnx").write_text("this is not a model")
    return folder


def test_the_float_model_it_came_from_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert verify.main(["quantized.onnx", "--reference", "float.onnx"]) == 0


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path, one_image: Path) -> None:
    model = nets.build("convolutional")
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "float.onnx")
    samq_onnx.quantize(tmp_path / "float.onnx", one_image, method="minmax").save(tmp_path / "quantized.onnx")
    assert [value.name for value in onnx.load(tmp_path / "quantized.onnx").graph.input] == ["image"]
    assert verify.verify(tmp_path / "quantized.onnx", tmp_path / "float.onnx")["same"]


def test_an_output_that_is_the_same_for_all_images(tmp_path: Path, one_image: Path) -> None:
    """Such as positions that an encoder gives beside its embedding; quantized it is a constant."""
    model = nets.build("convolutional")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 2), np.float32), "held"))
    node = onnx.helper.make_node("Identity", ["held"], ["positions"])
    model.graph.node.insert(0, node)
    model.graph.output.append(onnx.helper.make_tensor_value_info("positions", 1, [1, 2]))
    onnx.save(model, tmp_path / "float.onnx")
    samq_onnx.quantize(tmp_path / "float.onnx", one_image, method="minmax").save(tmp_path / "quantized.onnx")
    assert verify.verify(tmp_path / "quantized.onnx", tmp_path / "float.onnx")["same"]


@pytest.mark.parametrize("rounding", [0.01, 10])  # of what is allowed
def test_only_an_attention_in_float_may_round(
    folder: Path, tiny_sam: Path, one_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounding: float
) -> None:
    run = verify._run

    def rounded(model: Any, feed: Any, native: bool = True, where: str = "") -> dict[str, np.ndarray]:
        values = run(model, feed, native, where)
        return {name: value * (1 + rounding * verify.ROUNDING * native) for name, value in values.items()}

    encoder = tmp_path / "encoder.onnx"
    plans = samq_onnx.quantize(tiny_sam / "encoder.onnx", one_image, method="minmax").plans
    plans["model"].attentions.clear()
    samq_onnx.lower(tiny_sam / "encoder.onnx", plans).save(encoder)
    monkeypatch.setattr(verify, "_run", rounded)
    assert verify.main([str(encoder), "--reference", str(tiny_sam / "encoder.onnx")]) == (0 if rounding < 1 else 1)
    assert verify.main([str(folder / "quantized.onnx"), "--reference", str(folder / "float.onnx")]) == 1


@pytest.mark.parametrize(
    ("quantized", "reference", "report", "reason"),
    [
        ("missing.onnx", "float.onnx", "report.json", "missing.onnx: no such file"),
        ("quantized.onnx", "missing.onnx", "report.json", "missing.onnx: no such file"),
        ("text.onnx", "float.onnx", "report.json", "text.onnx: not an ONNX model"),
        ("quantized.onnx", "text.onnx", "report.json", "text.onnx: not an ONNX model"),
        ("float.onnx", "float.onnx", "report.json", "float.onnx: not written by samq_onnx.quantize"),
        ("quantized.onnx", "renamed.onnx", "report.json", "the float model it came from"),
        ("quantized.onnx", "larger.onnx", "report.json", "the float model it came from"),
        ("quantized.onnx", "other.onnx", "report.json", "the float model it came from"),
        ("quantized.onnx", "float.onnx", "text.onnx/report.json", "cannot write"),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quantized: str,
    reference: str,
    report: str,
    reason: str,
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert verify.main([quantized, "--reference", reference, "--json", report]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and reason in errors
    assert sorted(folder.iterdir()) == before
