# SPDX-License-Identifier: Apache-2.0
"""The evaluate command: its arithmetic, its choice of instances, its report and its errors."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from samq_onnx import assets
from samq_onnx import evaluate as command
from samq_onnx.errors import UserError
from samq_onnx.evaluate import evaluate, overlap
from samq_onnx.intake import Intake
from samq_onnx.predictor import Best, Choices


def test_overlap() -> None:
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert overlap(first, second) == (1, 1)
    first[:2], second[1:3] = True, True
    assert overlap(first, second) == (4 / 12, 8 / 16)
    assert overlap(first, ~first) == (0, 0)


class LeftHalf:
    """Stands in for a model: the left half of the image, or three quarters where its encoder is one of ``float``, each
    of which could also have been the whole image; and what it was asked."""

    asked: list[Any]
    embedded = 0
    image_size = 1024

    def __init__(self, encoder: Any, decoder: Any, hints: object) -> None:
        LeftHalf.asked, LeftHalf.embedded = [], 0
        self.quarters = 3 if "float" in str(encoder) else 2

    def set_image(self, rgb: np.ndarray, shape: tuple[int, int]) -> None:
        assert rgb.shape[:2] == shape
        self.shape = shape
        LeftHalf.embedded += 1

    def choices(self, points: Any = None, labels: Any = None, box: Any = None) -> Choices:
        LeftHalf.asked.append(box.tolist() if points is None else points.tolist())
        mask = np.zeros(self.shape, bool)
        mask[:, : self.quarters * self.shape[1] // 4] = True
        return Choices(Best(mask, 1.0), np.stack([mask, ~np.zeros_like(mask)]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images of 8 x 8: objects of 32, 16 and 4 pixels and a crowd in the first, one of 12 pixels in the second."""
    monkeypatch.setattr(command, "SamPredictor", LeftHalf)
    (tmp_path / "images").mkdir()
    boxes = [(1, (0, 0, 4, 8)), (1, (2, 0, 4, 4)), (1, (0, 0, 2, 2)), (1, (0, 0, 8, 8)), (2, (4, 0, 3, 4))]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "iscrowd": int(number == 3),
            "area": w * h,
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for number, (image, (x, y, w, h)) in enumerate(boxes)
    ]
    listed = [{"id": number, "file_name": f"{number}.png", "width": 8, "height": 8} for number in (1, 2)]
    for entry in listed:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / str(entry["file_name"]))
    (tmp_path / "annotations.json").write_text(json.dumps({"images": listed, "annotations": annotations}))
    return tmp_path


def test_means_over_instances_without_crowds_and_specks(folder: Path) -> None:
    report = evaluate("e", "d", folder, "box", progress=False)
    assert report["mean_iou"] == pytest.approx((1 + 8 / 40 + 0) / 3)
    assert report["mean_dice"] == pytest.approx((1 + 16 / 48 + 0) / 3)
    assert (report["instances"], report["images"], report["prompt"], report["min_area"]) == (3, 2, "box", 12)
    assert LeftHalf.asked == [[0, 0, 4, 8], [2, 0, 6, 4], [4, 0, 7, 4]]


def test_the_oracle_takes_the_choice_that_is_nearest_to_the_truth(folder: Path) -> None:
    report = evaluate("e", "d", folder, "box", progress=False)
    assert report["oracle_mean_iou"] == pytest.approx((1 + 16 / 64 + 12 / 64) / 3)
    assert "agreement" not in report


def test_agreement_with_a_float_model(folder: Path) -> None:
    report = evaluate("e", "d", folder, "box", progress=False, against="float")
    found = report["agreement"]
    assert report["mean_iou"] == pytest.approx((1 + 8 / 40 + 0) / 3)
    floats = [32 / 48, 16 / 48, 8 / 52]
    assert found["float"]["mean_iou"] == pytest.approx(statistics.mean(floats))
    differences = [ours - theirs for ours, theirs in zip([1, 8 / 40, 0], floats, strict=True)]
    assert found["difference"]["iou"] == pytest.approx(
        {"mean": statistics.mean(differences), "standard_error": statistics.stdev(differences) / 3**0.5}
    )
    assert found["mean_iou"] == pytest.approx(32 / 48)
    assert found["shares"] == {"0.90": 0, "0.96": 0, "0.99": 0}
    images = folder / "images"
    places = [(str(images / "1.png"), 0), (str(images / "1.png"), 1), (str(images / "2.png"), 0)]
    assert [(bad["image"], bad["object"]) for bad in found["worst"]] == places
    assert LeftHalf.embedded == 2 * 2  # each image once by each model
    assert LeftHalf.asked[::2] == LeftHalf.asked[1::2] == [[0, 0, 4, 8], [2, 0, 6, 4], [4, 0, 7, 4]]


def test_a_model_agrees_with_itself(folder: Path) -> None:
    found = evaluate("e", "d", folder, "point", progress=False, against="other")["agreement"]
    assert found["mean_iou"] == 1 and found["shares"] == {"0.90": 1, "0.96": 1, "0.99": 1}
    assert all(change == {"mean": 0, "standard_error": 0} for change in found["difference"].values())


def test_an_image_without_objects_is_not_read(folder: Path) -> None:
    change(folder, lambda content: content["annotations"].pop())
    evaluate("e", "d", folder, "box", progress=False, against="float")
    assert LeftHalf.embedded == 2


def test_limits(folder: Path) -> None:
    assert evaluate("e", "d", folder, "box", limit=1, progress=False)["instances"] == 2
    report = evaluate("e", "d", folder, "box", instances=1, progress=False)
    assert (report["instances"], report["images"]) == (2, 2)


def test_points_are_inside_of_their_masks(folder: Path) -> None:
    evaluate("e", "d", folder, "point", limit=1, progress=False)
    for [[x, y]], (x0, y0, x1, y1) in zip(LeftHalf.asked, [(0, 0, 4, 8), (2, 0, 6, 4)], strict=True):
        assert x0 < x < x1 - 1 and y0 < y < y1 - 1


def change(folder: Path, function: Callable[[dict[str, Any]], object]) -> None:
    """Change what the annotations say."""
    content = json.loads((folder / "annotations.json").read_text())
    function(content)
    (folder / "annotations.json").write_text(json.dumps(content))


def test_an_area_that_is_missing_is_that_of_the_mask(folder: Path) -> None:
    before = evaluate("e", "d", folder, "box", progress=False)
    change(folder, lambda content: [entry.pop("area") for entry in content["annotations"]])
    assert evaluate("e", "d", folder, "box", progress=False) == before


@pytest.mark.parametrize(
    "segmentation",
    [[], None, [[0, 0, 1e18, 0, 1e18, 1e18]], {"size": [8, 8], "counts": ""}, [[20, 20, 30, 20, 30, 30]], [["a"] * 6]],
)
def test_one_bad_annotation_is_left_out(folder: Path, segmentation: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = evaluate("e", "d", folder, "box", progress=False)
    assert before["left_out"] == [] and capsys.readouterr().err == ""
    bad = {"id": 9, "image_id": 1, "bbox": [0, 0, 4, 8], "area": 32, "segmentation": segmentation}
    change(folder, lambda content: content["annotations"].insert(1, bad))
    report = evaluate("e", "d", folder, "box", progress=False)
    (line,) = report.pop("left_out")
    assert report == {key: value for key, value in before.items() if key != "left_out"}
    assert line.startswith(f"{folder / 'annotations.json'}: annotation 9 of 1.png: the segmentation ")
    assert capsys.readouterr().err == f"warning: left out: {line}\n"
    with pytest.raises(UserError, match="annotation 9"):
        evaluate("e", "d", folder, "box", progress=False, intake=Intake(strict=True))


def test_an_image_that_does_not_decode_is_left_out_with_its_objects(folder: Path) -> None:
    Image.effect_noise((8, 8), 90).save(folder / "images" / "1.png")
    (folder / "images" / "1.png").write_bytes((folder / "images" / "1.png").read_bytes()[:-40])
    report = evaluate("e", "d", folder, "point", progress=False)
    assert (report["instances"], report["images"], len(report["left_out"])) == (1, 1, 1)
    assert "1.png: the image does not decode" in report["left_out"][0]


def test_ten_are_told_and_the_others_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, lambda content: content["annotations"].extend([{"id": number} for number in range(100, 125)]))
    assert len(evaluate("e", "d", folder, "box", progress=False)["left_out"]) == 25
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and all(line.startswith("warning: ") for line in lines)
    assert lines[-1] == "warning: 15 more left out; --json lists all of them"


def test_the_command_leaves_out_or_is_strict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, lambda content: content["annotations"][0].update(bbox=[1, 2]))
    arguments = ["--encoder", "e", "--decoder", "d", "--data", str(folder), "--prompt", "box"]
    assert command.main([*arguments, "--json", str(folder / "report.json")]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("warning: left out: ") and said.err.count("\n") == 1 and "1 left out" in said.out
    assert len(json.loads((folder / "report.json").read_text())["left_out"]) == 1
    assert command.main([*arguments, "--strict-data"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    change(folder, lambda content: [entry.pop("bbox") for entry in content["annotations"]])
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(("prompt", "floor"), [("box", 0.6), ("point", 0.5)])
def test_the_command_on_sam_nano(nano: Path, tmp_path: Path, prompt: str, floor: float) -> None:
    target = tmp_path / "report.json"
    models = ["--encoder", str(nano / "encoder.onnx"), "--decoder", str(nano / "decoder.onnx")]
    choice = ["--data", str(assets.demo_images()), "--prompt", prompt, "--limit", "2", "--instances", "4"]
    assert command.main([*models, *choice, "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["images"] == 2 and report["instances"] == 8 and report["encoder"] == str(nano / "encoder.onnx")
    assert floor < report["mean_iou"] < report["mean_dice"] < 1
    assert floor < report["oracle_mean_iou"] < 1


def test_the_command_against_float(
    nano: Path, tiny_sam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, target = tmp_path / "worst", tmp_path / "report.json"
    models = ["--encoder", str(tiny_sam / "encoder.onnx"), "--decoder", str(tiny_sam / "decoder.onnx")]
    choice = ["--data", str(assets.demo_images()), "--prompt", "box", "--limit", "1", "--instances", "3"]
    arguments = [*models, *choice, "--against", str(nano), "--worst", str(pictures), "--json", str(target)]
    assert command.main(arguments) == 0
    found = json.loads(target.read_text())["agreement"]
    assert found["against"] == str(nano) and found["mean_iou"] < 0.1 < 0.4 < found["float"]["mean_iou"]
    assert [bad["iou"] for bad in found["worst"]] == sorted(bad["iou"] for bad in found["worst"])
    assert sorted(path.name for path in pictures.iterdir()) == ["worst_01.png", "worst_02.png", "worst_03.png"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "IoU with float masks: mean " in lines[1] and "difference -0." in lines[2]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"--encoder": "missing.onnx"}, "missing.onnx: no such file"),
        ({"--encoder": "text.onnx"}, "text.onnx"),
        ({"--data": "empty"}, "annotations.json"),
        ({"--data": "missing"}, "no such folder"),
        ({"--limit": "0"}, "limit must be 1 or more"),
        ({"--json": "text.onnx/report.json"}, "cannot write"),
        ({"--against": "empty"}, "empty/encoder.onnx: no such file"),
        ({"--worst": "pictures"}, "give it as against"),
        ({"--worst": "text.onnx"}, "cannot write"),
        ({"--against": "empty", "--worst": "empty", "--json": "empty/worst_02.png"}, "would replace"),
    ],
)
def test_wrong_input_is_one_line(
    nano: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.onnx").write_text("not a model")
    options = {"--encoder": str(nano / "encoder.onnx"), "--decoder": str(nano / "decoder.onnx")}
    options |= {"--data": str(assets.demo_images()), "--prompt": "box", "--json": "report.json"} | changed
    assert command.main([part for option in options.items() for part in option]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and reason in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.onnx"]


def test_only_float_models_are_a_reference(tmp_path: Path, nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        model = onnx.load(nano / name)
        model.metadata_props.add(key="samq_onnx.recipe", value="{}")
        onnx.save(model, tmp_path / name)
    models = ["--encoder", str(nano / "encoder.onnx"), "--decoder", str(nano / "decoder.onnx")]
    data = ["--data", str(assets.demo_images()), "--prompt", "box", "--limit", "1"]
    assert command.main([*models, *data, "--against", str(tmp_path)]) == 2
    assert "already quantized" in capsys.readouterr().err
