# SPDX-License-Identifier: Apache-2.0
"""The segment command, and the pictures it draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from samq_onnx import assets, data, images, overlay, segment
from samq_onnx.evaluate import overlap
from samq_onnx.predictor import SamPredictor

SAMPLE = data.load_coco(assets.demo_images())[0]
INSTANCE = max(SAMPLE.instances, key=lambda instance: instance.area)


def _models(nano: Path) -> list[str]:
    return ["--encoder", str(nano / "encoder.onnx"), "--decoder", str(nano / "decoder.onnx")]


@pytest.mark.parametrize("kind", ["box", "point"])
def test_the_picture_shows_the_mask(nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    prompt = INSTANCE.box if kind == "box" else INSTANCE.point()
    text = ",".join(str(number) for number in prompt)
    target, numbers = tmp_path / "new" / "overlay.png", tmp_path / "numbers.json"
    arguments = [str(SAMPLE.path), *_models(nano), f"--{kind}", text, "-o", str(target), "--json", str(numbers)]
    assert segment.main(arguments) == 0
    report = json.loads(numbers.read_text())
    predictor = SamPredictor(nano / "encoder.onnx", nano / "decoder.onnx")
    predictor.set_image(images.load(SAMPLE.path))
    best = predictor.best(box=np.array(prompt)) if kind == "box" else predictor.best(np.array([prompt]), np.ones(1))
    assert report["area"] == best.mask.sum() and report["predicted_iou"] == pytest.approx(best.iou, abs=1e-5)
    changed = (images.load(target) != images.load(SAMPLE.path)).any(axis=2)
    assert overlap(changed, best.mask)[0] > 0.8
    assert f"area {report['area']} pixels" in capsys.readouterr().out


def test_a_large_image_is_prompted_in_its_own_pixels(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = ",".join(str(number) for number in INSTANCE.box)
    areas = []
    for name in ("whole", "reduced"):
        numbers = tmp_path / f"{name}.json"
        output = tmp_path / f"{name}.png"
        arguments = [str(SAMPLE.path), *_models(nano), "--box", box, "-o", str(output), "--json", str(numbers)]
        assert segment.main(arguments) == 0
        areas.append(json.loads(numbers.read_text())["area"])
        monkeypatch.setattr(images, "REDUCED_ABOVE", 1)
        monkeypatch.setattr(images, "REDUCED_SIDE", max(SAMPLE.width, SAMPLE.height) // 2)
    assert images.load(output).shape == (SAMPLE.height // 2, SAMPLE.width // 2, 3)
    assert areas[1] == pytest.approx(areas[0], rel=0.05)


def test_several_points(nano: Path, tmp_path: Path) -> None:
    x, y = INSTANCE.point()
    points = ["--point", f"{x},{y}", "--point", f"{x + 1}, {y}"]
    assert segment.main([str(SAMPLE.path), *_models(nano), *points, "-o", str(tmp_path / "o.png")]) == 0
    assert (tmp_path / "o.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no prompt"),
        (["--point", "3"], "'3' is not X,Y"),
        (["--point", "3,four"], "'3,four' is not X,Y"),
        (["--point", "nan,4"], "'nan,4' is not X,Y"),
        (["--box", "1,2,3"], "'1,2,3' is not X0,Y0,X1,Y1"),
        (["--box", "9,2,3,8"], "is empty"),
        (["--box", "1,2,3,4", "--box", "2,2,3,4"], "2 boxes"),
        (["--point", "1e400,4"], "'1e400,4' is not X,Y"),
        (["--point=-1,4"], "outside of the image"),
        (["--point", "256,4"], "outside of the image of 256 x 256"),
        (["--box", "3,3,300,30"], "outside of the image"),
    ],
)
def test_wrong_prompts_are_one_line(
    nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert segment.main([str(SAMPLE.path), *_models(nano), *arguments, "-o", str(tmp_path / "o.png")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and reason in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image", "output", "reason"),
    [
        ("missing.png", "o.png", "no such image file"),
        ("text.png", "o.png", "does not decode"),
        ("", "text.png/o.png", "cannot write"),
        ("", "o.txt", "unknown kind of picture"),
    ],
)
def test_wrong_files_are_one_line(
    nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], image: str, output: str, reason: str
) -> None:
    (tmp_path / "text.png").write_text("no image")
    source = tmp_path / image if image else SAMPLE.path
    assert segment.main([str(source), *_models(nano), "--point", "9,9", "-o", str(tmp_path / output)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and reason in errors
    assert [path.name for path in tmp_path.iterdir()] == ["text.png"]


def test_masks_are_tinted_and_the_rest_is_left_alone() -> None:
    rgb = np.full((40, 60, 3), 90, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    drawn = overlay.draw_masks(rgb, [mask])
    assert np.array_equal((drawn != rgb).any(axis=2), mask)
    assert drawn[10, 20].tolist() == overlay.COLOURS[0].tolist() != drawn[20, 30].tolist()


def test_prompts_are_drawn_where_they_are() -> None:
    rgb = np.zeros((40, 60, 3), np.uint8)
    boxed = overlay.draw_box(rgb, (5, 6, 50, 30))
    assert boxed[6, 20].any() and boxed[30, 20].any() and not boxed[20, 20].any()
    dotted = overlay.draw_points(rgb, np.array([[10, 10], [40, 20]]), np.array([1, 0]))
    assert dotted[10, 10].tolist() == list(overlay.PROMPT_COLOUR)
    assert dotted[20, 40].tolist() == list(overlay.NEGATIVE_COLOUR)


def test_panels_are_of_one_size() -> None:
    wide, small = np.zeros((50, 100, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)
    row = overlay.side_by_side([("wide", wide), ("small", small)])
    side, gap = overlay.PANEL_SIDE, overlay.GAP
    assert row.shape == (side + overlay.CAPTION + gap, 2 * side + 3 * gap, 3)
    assert not row[overlay.CAPTION, gap : gap + side].any()
    assert (row[: overlay.CAPTION] < 128).any(), "no captions"
