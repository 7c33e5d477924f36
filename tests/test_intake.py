# SPDX-License-Identifier: Apache-2.0
"""What a run leaves out and says, and calibration of a model on a folder of which a part cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from samq_onnx import quantize
from samq_onnx.errors import UserError
from samq_onnx.intake import Intake, Unusable
from tests import nets


def test_what_is_unusable_is_told_on_one_line_that_a_terminal_does_not_obey(capsys: pytest.CaptureFixture[str]) -> None:
    intake = Intake()
    with intake.leaving_out():
        raise Unusable("a\nb: \x1b[31m\ud800" + "x" * 5000)
    assert capsys.readouterr().err.startswith("warning: left out: a b: \\x1b[31m\\ud800xxx")
    assert len(intake.left_out) == 1 and len(intake.left_out[0]) < 1000
    with pytest.raises(UserError, match="other"), intake.leaving_out():
        raise UserError("other mistakes stay errors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, of which one does not decode."""
    (tmp_path / "calib").mkdir()
    for number in range(2):
        Image.effect_noise((80, 60), 50 + number).save(tmp_path / "calib" / f"{number}.png")
    (tmp_path / "calib" / "cut.png").write_bytes((tmp_path / "calib" / "0.png").read_bytes()[:900])
    onnx.save(nets.build("convolutional"), tmp_path / "net.onnx")
    return tmp_path


def calibrated(folder: Path, name: str, *options: str) -> tuple[int, Path]:
    output = folder / name
    arguments = [str(folder / "net.onnx"), "-o", str(output), "--calib", str(folder / "calib"), "--method", "minmax"]
    return quantize.main([*arguments, *options]), output


def test_calibration_leaves_out_what_does_not_decode(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output = calibrated(folder, "part.onnx", "--json", str(folder / "report.json"))
    assert status == 0
    said = capsys.readouterr().err
    assert said.count("warning: left out: ") == 1 and "cut.png: the image does not decode" in said
    report = json.loads((folder / "report.json").read_text())
    assert report["feeds"] == 2 and len(report["left_out"]) == 1
    (folder / "calib" / "cut.png").unlink()
    status, whole = calibrated(folder, "whole.onnx")
    assert status == 0 and whole.read_bytes() == output.read_bytes()
    key = "samq_onnx.calibration.sha256"
    assert ir.load(whole).metadata_props[key] == ir.load(output).metadata_props[key]


def test_strict_calibration_ends(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output = calibrated(folder, "part.onnx", "--strict-data")
    assert status == 2 and not output.exists()
    assert "error: " in capsys.readouterr().err


def test_images_above_the_limit_are_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (1500, 1000)).save(folder / "calib" / "large.png")
    (folder / "calib" / "cut.png").unlink()
    status, _ = calibrated(folder, "part.onnx", "--max-megapixels", "1")
    assert status == 0 and "large.png: the image has more than 1 megapixels" in capsys.readouterr().err
