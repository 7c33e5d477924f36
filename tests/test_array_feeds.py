# SPDX-License-Identifier: Apache-2.0
"""A model whose inputs nobody can make from images is calibrated on arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from samq_onnx import assets, quantize
from tests.fuzz import tiny

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
two (float[n, 8] x, int64[2] index) => (float y) { p = MatMul (x, w)
  y = Gather (p, index) }"""
RANDOM = np.random.default_rng(0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two inputs, and a folder of inputs for it."""
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    weight = RANDOM.standard_normal((8, 16)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "two.onnx")
    (tmp_path / "feeds").mkdir()
    for number in range(3):
        x = RANDOM.standard_normal((number + 2, 8)).astype(np.float32)
        np.savez(tmp_path / "feeds" / f"{number}.npz", x=x, index=np.array([0, 1]))
    return tmp_path / "two.onnx"


def _quantized(model: Path, *more: str) -> int:
    output = model.with_name("quantized.onnx")
    feeds = model.parent / "feeds"
    return quantize.main([str(model), "-o", str(output), "--feeds", str(feeds), "--method", "minmax", *more])


def test_arrays_calibrate_a_model_that_nobody_knows(model: Path) -> None:
    assert _quantized(model) == 0
    kinds = {node.op_type for node in onnx.load(model.with_name("quantized.onnx")).graph.node}
    assert "QLinear" in kinds or "QuantizeLinear" in kinds


def test_arrays_calibrate_a_decoder_without_an_encoder(tmp_path: Path) -> None:
    onnx.save(tiny.decoder(), tmp_path / "decoder.onnx")
    (tmp_path / "feeds").mkdir()
    np.savez(
        tmp_path / "feeds" / "one.npz",
        image_embeddings=RANDOM.standard_normal((1, tiny.WIDTH, tiny.GRID, tiny.GRID)).astype(np.float32),
        point_coords=np.array([[[20, 30], [0, 0]]], np.float32),
        point_labels=np.array([[1, -1]]),  # of another type, which the input's becomes
        mask_input=np.zeros((1, 1, 4 * tiny.GRID, 4 * tiny.GRID), np.float32),
        has_mask_input=np.zeros(1, np.float32),
        orig_im_size=np.array([48, 64], np.float32),
    )
    assert _quantized(tmp_path / "decoder.onnx") == 0


def _replace(model: Path, **arrays: object) -> None:
    np.savez(model.parent / "feeds" / "1.npz", **arrays)  # type: ignore[arg-type]


X, INDEX = np.ones((2, 8), np.float32), np.array([0, 1])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "has no array for the input 'index'; name the arrays index, x"),
        ({"x": X, "index": INDEX, "z": X}, "the model has no input 'z'"),
        ({"x": X[:, :4], "index": INDEX}, "the model takes x float32 [n, 8], got [2, 4]"),
        ({"x": X * np.nan, "index": INDEX}, "the array 'x' is empty, or has numbers that are not finite"),
        ({"x": np.array([[object()] * 8]), "index": INDEX}, "no archive of arrays"),
    ],
)
def test_arrays_that_do_not_fit(
    model: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, object], said: str
) -> None:
    _replace(model, **arrays)
    assert _quantized(model) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "1.npz" in line and said in line
    assert not model.with_name("quantized.onnx").exists()


def test_what_is_no_folder_of_arrays(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (model.parent / "feeds").iterdir():
        path.unlink()
    assert _quantized(model) == 2
    assert "has no .npz file; numpy.savez" in capsys.readouterr().err
    assert _quantized(model, "--calib", str(assets.calibration_images())) == 2
    assert "two ways to calibrate" in capsys.readouterr().err
