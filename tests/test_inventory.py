# SPDX-License-Identifier: Apache-2.0
"""What a command writes is nothing that it reads, under whatever name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
from PIL import Image

from samq_onnx import assets, bench, evaluate, quantize, segment, verify
from samq_onnx.errors import UserError
from samq_onnx.inventory import check_files


def test_an_output_is_not_the_folder_of_another(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder of another output"):
        check_files([], [tmp_path / "a" / "b", tmp_path / "a"])


def test_outputs_are_not_inputs_or_each_other(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    check_files([two, None], [one, None])
    for outputs, inputs in (([one], [one]), ([one, one], []), ([tmp_path / "x" / ".." / "two"], [two])):
        with pytest.raises(UserError, match="would replace"):
            check_files(inputs, outputs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pair of models with external data, and an annotated image."""
    for name in ("encoder", "decoder"):
        model = onnx.load(assets.nano_dir() / f"{name}.onnx")
        onnx.save(model, tmp_path / f"{name}.onnx", save_as_external_data=True, location=f"{name}.onnx.data")
    (tmp_path / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "images" / "a.png")
    annotations = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": []}
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(annotations))
    return tmp_path


def _state(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "quantize": (quantize.main, "encoder.onnx --calib data --method minmax -o"),
    "quantize report": (quantize.main, "decoder.onnx --encoder encoder.onnx --calib data -o out.onnx --json"),
    "quantize folder report": (quantize.main, ". --calib data -o out --json"),
    "segment": (segment.main, "data/images/a.png --encoder encoder.onnx --decoder decoder.onnx --point 1,1 -o"),
    "segment report": (
        segment.main,
        "data/images/a.png --encoder encoder.onnx --decoder decoder.onnx --point 1,1 -o out.png --json",
    ),
    "evaluate report": (
        evaluate.main,
        "--encoder encoder.onnx --decoder decoder.onnx --data data --prompt box --json",
    ),
    "verify report": (verify.main, "encoder.onnx --reference decoder.onnx --json"),
    "bench report": (bench.main, "encoder.onnx decoder.onnx --json"),
}
READ = ("encoder.onnx", "encoder.onnx.data", "data/images/a.png", "data/annotations.json")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("how", ["same", "link", "hard link"])
def test_no_command_replaces_what_it_reads(
    name: str, how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    command, words = COMMANDS[name]
    before = _state(folder)
    used = words.split()
    read = [path for path in READ if path in used or any(path.startswith(word) for word in used) or "." in used]
    assert read
    for path in read:
        output = path
        if name == "segment":
            output = "link.png"
            (folder / output).symlink_to(path)
        elif how == "link":
            output = "link"
            (folder / output).symlink_to(path)
        elif how == "hard link":
            output = "link"
            os.link(path, output)
        assert command([*used, output]) == 2, path
        if output != path:
            (folder / output).unlink()
        assert "would replace an input" in capsys.readouterr().err
        assert _state(folder) == before


def test_arrays_are_read_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "feeds").mkdir()
    arrays = folder / "feeds" / "a.npz"
    arrays.write_bytes(b"arrays")
    words = [str(folder / "encoder.onnx"), "--feeds", str(arrays.parent), "-o", str(folder / "made.onnx")]
    for option in ("--json", "--plan-out", "--stats"):
        assert quantize.main([*words, option, str(arrays)]) == 2
        assert "would replace an input" in capsys.readouterr().err
        assert arrays.read_bytes() == b"arrays"


def test_a_model_may_replace_an_older_one(folder: Path) -> None:
    shutil.copy(folder / "encoder.onnx", folder / "old.onnx")
    check_files([folder / "encoder.onnx"], [folder / "old.onnx"])


def test_images_behind_a_linked_folder_are_read_too(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    shutil.copy(folder / "data" / "images" / "a.png", folder / "elsewhere" / "b.png")
    (folder / "data" / "images" / "linked").symlink_to(folder / "elsewhere")
    (folder / "elsewhere" / "round").symlink_to(folder / "data" / "images")
    with pytest.raises(UserError, match="would replace"):
        check_files([folder / "data"], [folder / "elsewhere" / "b.png"])


def test_external_data_of_an_output_are_an_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would replace"):
        check_files([], [tmp_path / "out.onnx", tmp_path / "out.onnx.data"])


@pytest.mark.parametrize("name", ["pipe", "device"])
def test_a_model_that_is_no_file_is_not_opened(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    source = str(tmp_path / name)
    assert quantize.main([source, "-o", str(tmp_path / "out.onnx")]) == 2
    assert bench.main([source]) == 2
    assert verify.main([source, "--reference", source]) == 2
    assert capsys.readouterr().err.count(f"error: {source}: no such file") == 3
