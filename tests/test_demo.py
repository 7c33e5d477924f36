# SPDX-License-Identifier: Apache-2.0
"""The demo, on one image and at one width."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from samq_onnx import assets, demo, overlay
from samq_onnx.evaluate import evaluate


@pytest.fixture
def one_image(tmp_path: Path) -> Path:
    """The first bundled image with three of its objects."""
    source, folder = assets.demo_images(), tmp_path / "data"
    whole = json.loads((source / "annotations.json").read_text())
    image = whole["images"][0]
    (folder / "images").mkdir(parents=True)
    shutil.copy(source / "images" / image["file_name"], folder / "images")
    annotations = [one for one in whole["annotations"] if one["image_id"] == image["id"]][:3]
    (folder / "annotations.json").write_text(json.dumps(whole | {"images": [image], "annotations": annotations}))
    return folder


@pytest.mark.slow
def test_table_rows_and_pictures(
    one_image: Path, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "QUICK", demo.QUICK[:1])
    monkeypatch.setattr(demo, "RUNS", 1)
    for name in ("demo_images", "calibration_images"):
        monkeypatch.setattr(assets, name, lambda: one_image)
    output, target = tmp_path / "demo", tmp_path / "rows.json"
    assert demo.main(["-o", str(output), "--json", str(target)]) == 0

    rows = json.loads(target.read_text())
    assert [row["model"] for row in rows] == ["float", "w8a8"]
    for row, folder in zip(rows, (nano, output / "w8a8"), strict=True):
        files = [folder / "encoder.onnx", folder / "decoder.onnx"]
        for prompt in ("box", "point"):
            assert row[f"{prompt}_iou"] == evaluate(*files, one_image, prompt, progress=False)["mean_iou"] > 0.35
        assert row["megabytes"] == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)
        assert row["seconds"] > 0 and (row["images"], row["instances"]) == (1, 3)

    printed = capsys.readouterr().out
    assert "1 bundled images, 3 instances" in printed
    numbers = [line.split() for line in printed.splitlines() if line.startswith(("float ", "w8a8 "))]
    columns = {"box_iou": (100, 1), "point_iou": (100, 1), "megabytes": (1, 1), "seconds": (1, 3)}
    for row, line in zip(rows, numbers, strict=True):
        assert line == [row["model"], *(f"{unit * row[name]:.{digits}f}" for name, (unit, digits) in columns.items())]

    (picture,) = output.glob("*.png")
    assert str(picture) in printed
    with Image.open(picture) as opened:
        opened.load()
        panels = 3  # annotation, float, w8a8
        assert opened.width == panels * (overlay.PANEL_SIDE + overlay.GAP) + overlay.GAP
