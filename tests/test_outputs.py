# SPDX-License-Identifier: Apache-2.0
"""No command lets a report replace a model or an annotation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from samq_onnx import assets, bench, evaluate, verify
from samq_onnx.export.__main__ import main as export


@pytest.mark.parametrize("name", ["evaluate", "annotations", "verify", "bench", "export"])
def test_reports_replace_nothing_that_is_read_or_written(
    name: str, nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sam, images = tmp_path / "sam", tmp_path / "images"
    shutil.copytree(nano, sam)
    shutil.copytree(assets.demo_images(), images)
    encoder, decoder, annotations = sam / "encoder.onnx", sam / "decoder.onnx", images / "annotations.json"
    judged = ["--encoder", encoder, "--decoder", decoder, "--data", images, "--prompt", "box", "--limit", "1"]
    main, arguments, target = {
        "evaluate": (evaluate.main, judged, decoder),
        "annotations": (evaluate.main, judged, annotations),
        "verify": (verify.main, [encoder, "--reference", decoder], encoder),
        "bench": (bench.main, [encoder, decoder, "--runs", "1"], decoder),
        "export": (export, ["--model-type", "nano", "-o", sam], encoder),
    }[name]
    before = target.read_bytes()
    assert main([*map(str, arguments), "--json", str(target)]) == 2
    assert "would replace an input or another output" in capsys.readouterr().err
    assert target.read_bytes() == before
