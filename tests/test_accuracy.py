# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark: its rows, that none is measured twice, and what it writes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samq_onnx import assets
from samq_onnx.errors import UserError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def accuracy() -> Iterator[ModuleType]:
    """benchmarks/accuracy.py, which finds its neighbours as a script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("accuracy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of 64 x 48 with two annotated objects."""
    folder = tmp_path_factory.mktemp("annotated")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    annotations = [
        {"id": n, "image_id": 1, "bbox": [x, 8, 20, 30], "segmentation": [[x, 8, x + 20, 8, x + 20, 38, x, 38]]}
        for n, x in enumerate((4, 36))
    ]
    listed = [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}]
    (folder / "annotations.json").write_text(json.dumps({"images": listed, "annotations": annotations}))
    return folder


@pytest.fixture
def arguments(
    accuracy: ModuleType, folder: Path, tiny_sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What is given in every test, SAM-Nano replaced by a tiny one."""
    monkeypatch.setattr(assets, "nano_dir", lambda: tiny_sam)
    return ["--calib", str(folder), "--data", str(folder), "-o", str(tmp_path / "out")]


def test_a_row_is_a_word(accuracy: ModuleType) -> None:
    for text in ("minmax@w8a8", "samq:probabilities=uniform,gptq.damping=0.1@w4a4-strict", "float"):
        assert str(accuracy.Row.parse(text)) == text
    row = accuracy.Row.parse("samq:probabilities=uniform,compensate=false@w6a8-strict")
    assert row == accuracy.Row("samq", "w6a8", (("probabilities", "uniform"), ("compensate", "false")), True)


@pytest.mark.parametrize("text", ["samq", "samq@", "samq@w8", "samq:x@w8a8", "@w8a8", "samq@w8a8-loose", "a@b@w8a8"])
def test_what_is_no_row_is_refused(accuracy: ModuleType, text: str) -> None:
    with pytest.raises(UserError, match="wanted METHOD@wXaY"):
        accuracy.Row.parse(text)


@pytest.mark.slow
def test_rows_of_ours_and_of_others(accuracy: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    rows = ["--rows", "minmax@w4a4-strict", "samq:probabilities=uniform@w8a8"]
    assert accuracy.main([*arguments, *rows, "--peers", "ort-static-minmax", "ort-dynamic"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"accuracy.{end}" for end in ("json", "md", "png")
    ]
    records = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    words = [record["settings"]["row"] for record in records]
    assert words == ["float", *rows[1:], "ort-static-minmax@w8a8", "ort-dynamic@w8a8"]
    for record in records:
        assert "error" not in record
        for prompt in ("box", "point"):
            assert record[prompt]["instances"] == 2 and record[prompt]["prompt"] == prompt
            assert ("agreement" in record[prompt]) == (record["settings"]["row"] != "float")
    found = {record["settings"]["row"]: record["box"] for record in records}
    for word in words[1:]:
        assert found[word]["agreement"]["float"]["mean_iou"] == found["float"]["mean_iou"]
    agreement = {word: found[word]["agreement"]["mean_iou"] for word in words[1:]}
    assert agreement["minmax@w4a4-strict"] < agreement["samq:probabilities=uniform@w8a8"]
    table = (tmp_path / "out" / "accuracy.md").read_text()
    heads = [line for line in table.splitlines() if line.startswith("#")]
    assert heads == ["### SAM-Nano, box prompts", "### SAM-Nano, point prompts"]
    first = [line.split(" | ")[:2] for line in table.splitlines() if line.startswith("| ")][:7]
    assert first[2:] == [
        ["| float", ""],
        ["| samq:probabilities=uniform", "w8a8"],
        ["| ort-static-minmax", "w8a8"],
        ["| ort-dynamic", "w8a8"],
        ["| minmax", "w4a4-strict"],
    ]
    picture = Image.open(tmp_path / "out" / "accuracy.png")
    assert picture.width > 1000 and np.asarray(picture).std() > 0


def stub(accuracy: ModuleType, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> list[str]:
    """Let rows be measured by naming them; ``fails`` fails."""
    asked: list[str] = []

    def measured(row: Any, source: Path, _: Any) -> dict[str, Any]:
        asked.append(str(row))
        if str(row) == fails:
            raise ValueError("a | b\nc")
        score = {"mean_iou": 0.5, "mean_dice": 0.625, "oracle_mean_iou": 0.75, "instances": 3, "images": 2}
        if str(row) != "float":
            loss = {"iou": {"mean": -0.01, "standard_error": 0.002 if "w8" in str(row) else float("nan")}}
            score["agreement"] = {"mean_iou": 0.875, "shares": {"0.96": 0.25}, "difference": loss}
        return {"seconds": 12.3, "box": score, "point": score}

    monkeypatch.setattr(accuracy, "measured", measured)
    return asked


def test_nothing_is_measured_twice(
    accuracy: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stub(accuracy, monkeypatch, fails="minmax@w4a4")
    grid = ["--methods", "minmax", "--bits", "w8a8", "W4A4", "--peers"]
    assert accuracy.main([*arguments, *grid]) == 0
    assert asked == ["float", "minmax@w8a8", "minmax@w4a4"]
    text = (tmp_path / "out" / "accuracy.md").read_text()
    assert r"| minmax | w4a4 | ValueError: a \| b c | " in text
    again = stub(accuracy, monkeypatch)
    assert accuracy.main([*arguments, *grid, "nncf", "--strict", "both"]) == 0
    assert again == ["minmax@w8a8-strict", "minmax@w4a4", "minmax@w4a4-strict", "nncf@w8a8"]  # what failed, what is new
    assert stub(accuracy, monkeypatch) == [] and accuracy.main([*arguments, *grid]) == 0
    other = stub(accuracy, monkeypatch)
    assert accuracy.main([*arguments, *grid, "--instances", "5"]) == 0
    assert other == ["float", "minmax@w8a8", "minmax@w4a4"]  # of other settings, beside the others
    assert len(json.loads((tmp_path / "out" / "accuracy.json").read_text())) == 6 + 3


def test_every_named_table_has_rows_that_can_be_quantized(accuracy: ModuleType) -> None:
    assert list(accuracy.TABLES) == ["learned", "big-agq", "softmax", "grouping", "clipping", "par"]
    for rows in accuracy.TABLES.values():
        assert len(set(rows)) == len(rows) > 3
        for row in rows:
            row.check()
    words = [str(row) for row in accuracy.TABLES["big-agq"]]
    assert words[0] == "ptq4sam-s:big=never,probabilities=uniform@w6a6-strict" and len(words) == 16
    assert {"pq-sam-l@w2a4-strict", "qdrop@w4a4-strict", "minmax@w6a6-strict"} <= set(
        map(str, accuracy.TABLES["learned"])
    )


def test_a_table_is_measured_with_what_is_set(
    accuracy: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stub(accuracy, monkeypatch)
    assert accuracy.main([*arguments, "--table", "par", "--set", "iterations=3", "--set", "regulariser=1"]) == 0
    assert asked[0] == "float" and len(asked) == 9
    assert asked[1:5] == [
        "saq-sam:iterations=3,regulariser=1@w6a6-strict",
        "saq-sam:iterations=3,regulariser=1,response=false@w6a6-strict",
        "saq-sam:iterations=3,regulariser=0@w6a6-strict",
        "saq-sam-s@w6a6-strict",
    ]


def test_the_table(
    accuracy: ModuleType, arguments: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(accuracy, monkeypatch)
    assert accuracy.main([*arguments, "--rows", "samq@w4a4", "samq@w8a8", "--peers"]) == 0
    lines = (tmp_path / "out" / "accuracy.md").read_text().splitlines()
    assert lines[2].startswith(f"3 objects of 2 images of {folder.parent.name}/{folder.name}, calibrated on ")
    assert lines[4:9] == [
        "| row | width | IoU | against float | Dice | kept at 0.96 | agreement | oracle IoU | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| float |  | 50.00 |  | 62.50 |  |  | 75.00 |  |",
        "| samq | w8a8 | 50.00 | -1.00 +- 0.20 | 62.50 | 25.0 | 87.50 | 75.00 | 12 |",
        "| samq | w4a4 | 50.00 | -1.00 | 62.50 | 25.0 | 87.50 | 75.00 | 12 |",
    ]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (["--rows", "nothing@w8a8"], "nothing"),
        (["--rows", "samq:nothing=1@w8a8"], "has no parameter 'nothing'"),
        (["--rows", "samq@w9a9"], "unknown width"),
        (["--bits", "w1a8"], "unknown width"),
        (["--calib", "missing"], "missing: no such folder"),
        (["--data", "missing"], "missing"),
        (["--limit", "0"], "limit must be 1 or more"),
    ],
)
def test_wrong_input_is_one_line(
    accuracy: ModuleType, arguments: list[str], changed: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main([*arguments, *changed]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and reason in errors


def test_other_files_are_not_taken_for_results(
    accuracy: ModuleType, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    for content in ("[1]", "{}", "nothing"):
        (tmp_path / "out" / "accuracy.json").write_text(content)
        assert accuracy.main(arguments) == 2
        assert "remove it to measure all rows again" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_told(
    accuracy: ModuleType, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--nncf-python", str(tmp_path / "none")]
    assert accuracy.main([*arguments, "--rows", "--peers", "nncf", *other]) == 0
    assert "nncf@w8a8: " in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "accuracy.json").read_text())[-1]
    assert record["settings"]["row"] == "nncf@w8a8" and "No such file" in record["error"]


def test_nncf_that_is_missing_is_one_line(
    accuracy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert importlib.import_module("nncf_worker").main(["model", "feeds", "output"]) == 2
    assert capsys.readouterr().err == "nncf is not installed; pip install nncf onnx, in any environment\n"


def test_a_hard_model_is_made_once(accuracy: ModuleType, arguments: list[str], tiny_sam: Path, tmp_path: Path) -> None:
    titles = ["SAM-Nano", "SAM-Nano-hard, seed 1", "SAM-Nano-hard, seed 2"]
    found = accuracy.models(["hard", "nano"], [1, 2], tmp_path / "out")
    assert list(found) == titles and found["SAM-Nano"] == tiny_sam
    made = [found[title] / "encoder.onnx" for title in titles]
    assert len({path.read_bytes() for path in made}) == 3
    before = [path.stat().st_mtime_ns for path in made]
    assert accuracy.models(["nano", "hard"], [1, 2], tmp_path / "out") == found
    assert [path.stat().st_mtime_ns for path in made] == before
