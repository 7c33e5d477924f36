# SPDX-License-Identifier: Apache-2.0
"""Commands take the size of images of a model that leaves it open, and what pixels it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from samq_onnx import SamPredictor, analyze, assets, bench, data, evaluate, quantize, segment, verify
from tests.fuzz import tiny

ENCODER = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, h, w] image) => (float[1, 16, a, b] embedding)
{ embedding = Conv <strides = [16, 16]> (image, weight) }"""


class Free(NamedTuple):
    """Files of an encoder that takes images of any size and of a decoder."""

    folder: Path
    encoder: Path
    decoder: Path


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Free:
    folder = tmp_path_factory.mktemp("free")
    model = onnx.parser.parse_model(ENCODER)
    weight = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32) / 16
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    onnx.save(model, folder / "encoder.onnx")
    onnx.save(tiny.decoder(), folder / "decoder.onnx")
    return Free(folder, folder / "encoder.onnx", folder / "decoder.onnx")


def bench_(free: Free, folder: Path) -> list[object]:
    return [free.encoder, "--runs", 1]


def segment_(free: Free, folder: Path) -> list[object]:
    image = data.image_paths(assets.demo_images())[0]
    return [image, "--encoder", free.encoder, "--decoder", free.decoder, "--point", "60,70", "-o", folder / "a.png"]


def evaluate_(free: Free, folder: Path) -> list[object]:
    pair = ["--encoder", free.encoder, "--decoder", free.decoder, "--data", assets.demo_images()]
    return [*pair, "--prompt", "box", "--limit", 1, "--instances", 2, "--against", free.folder]


def analyze_(free: Free, folder: Path) -> list[object]:
    return [free.folder, "--calib", assets.calibration_images(), "-o", folder / "page.html", "--method", "minmax"]


def quantize_(free: Free, folder: Path) -> list[object]:
    calibration = ["--calib", assets.calibration_images(), "--method", "minmax"]
    return [free.decoder, "--encoder", free.encoder, "-o", folder / "decoder.onnx", *calibration]


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (bench.main, bench_),
        (segment.main, segment_),
        (evaluate.main, evaluate_),
        (analyze.main, analyze_),
        (quantize.main, quantize_),
    ],
    ids=["bench", "segment", "evaluate", "analyze", "quantize"],
)
def test_a_size_is_asked_for_and_taken(
    main: Callable[[Sequence[str]], int],
    arguments: Callable[[Free, Path], list[object]],
    free: Free,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(word) for word in arguments(free, tmp_path)]
    assert main(given) == 2
    assert "an image of free sides; give --input-size SIDE" in capsys.readouterr().err
    assert main([*given, "--input-size", "64"]) == 0


def test_a_quantized_file_remembers(free: Free, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It needs no option, nor does the float model that it is compared with; a decoder's float encoder does."""
    files = ["-o", str(tmp_path / "both"), "--calib", str(assets.calibration_images()), "--method", "minmax"]
    assert quantize.main([str(free.folder), *files, "--input-size", "64"]) == 0
    encoder, decoder = tmp_path / "both" / "encoder.onnx", tmp_path / "both" / "decoder.onnx"
    assert verify.main([str(encoder), "--reference", str(free.encoder)]) == 0
    assert bench.main([str(encoder), "--runs", "1"]) == 0
    predictor = SamPredictor(encoder, decoder)
    assert predictor.image_size == 64
    pair = [str(decoder), "--reference", str(free.decoder), "--encoder"]
    assert verify.main([*pair, str(encoder)]) == 0
    assert verify.main([*pair, str(free.encoder)]) == 2
    assert "give --input-size SIDE" in capsys.readouterr().err
    assert verify.main([*pair, str(free.encoder), "--input-size", "64"]) == 0


def test_pixels_are_said(free: Free, tmp_path: Path) -> None:
    """Bytes are two orders of magnitude larger than what is normalised: the masks are others."""
    ious = []
    for pixels in ("normalised", "bytes"):
        report = tmp_path / f"{pixels}.json"
        arguments = [*segment_(free, tmp_path), "--input-size", 64, "--preprocess", pixels, "--json", report]
        assert segment.main([str(word) for word in arguments]) == 0
        ious.append(json.loads(report.read_text())["predicted_iou"])
    assert ious[0] != ious[1]
