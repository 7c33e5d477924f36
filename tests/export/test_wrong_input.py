# SPDX-License-Identifier: Apache-2.0
"""A wrong checkpoint gets one clear line and leaves no file."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from samq_onnx.errors import UserError
from samq_onnx.export import export_sam, requirements
from samq_onnx.export.__main__ import main
from samq_onnx.export.checkpoint import read_state_dict
from samq_onnx.export.families import BUILDERS, build
from samq_onnx.export.sam import Sam


class Harmful:
    """Unpickling it would make the folder it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


def refuse(checkpoint: Path, model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command prints; asserts that nothing was written."""
    output = tmp_path / "output"
    assert main(["--checkpoint", str(checkpoint), "--model-type", model_type, "-o", str(output)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert not output.exists()
    return lines[0]


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refuse(tmp_path / "none.pth", "vit_b", tmp_path, capsys)


@pytest.mark.parametrize("content", [b"", b"a text", b"PK\x03\x04 not a zip", b"\x80\x02"], ids=repr)
def test_not_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    assert "model.pth" in refuse(file, "vit_b", tmp_path, capsys)


def test_text_named_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("a text")
    assert "not a safetensors file" in refuse(file, "nano", tmp_path, capsys)


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": {}, "epoch": 3}, {}, torch.ones(2)], ids=["list", "dict", "empty", "tensor"]
)
def test_not_a_state_dict(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    assert "not a state dict" in refuse(tmp_path / "model.pth", "vit_b", tmp_path, capsys)


def test_pickled_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pth").write_bytes(pickle.dumps([1, 2]))
    refuse(tmp_path / "model.pth", "vit_b", tmp_path, capsys)


def test_pickle_that_would_run_code_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Harmful(tmp_path / "harm")}, tmp_path / "model.pth")
    assert "could run code" in refuse(tmp_path / "model.pth", "vit_b", tmp_path, capsys)
    assert not (tmp_path / "harm").exists()


def test_other_model_type_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], sam: Sam) -> None:
    torch.save(sam.state_dict(), tmp_path / "model.pth")
    line = refuse(tmp_path / "model.pth", "vit_b", tmp_path, capsys)
    assert "use --model-type nano" in line


@pytest.mark.parametrize("model_type", ["vit_b", "vit_l", "vit_h"])
def test_shapes_tell_the_model_type(model_type: str) -> None:
    with torch.device("meta"):
        state = BUILDERS[model_type]().state_dict()
    with pytest.raises(UserError, match=f"its shapes are those of {model_type}"):
        build("nano", state, "file")


def test_no_model_type_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str], sam: Sam) -> None:
    state = dict(sam.state_dict())
    key = "image_encoder.pos_embed"
    torch.save(state | {key: torch.zeros(1, 2, 2, 192)}, tmp_path / "model.pth")
    line = refuse(tmp_path / "model.pth", "nano", tmp_path, capsys)
    assert key in line
    assert "[1, 2, 2, 192], not [1, 32, 32, 192]" in line
    state.pop(key)
    torch.save(state, tmp_path / "model.pth")
    line = refuse(tmp_path / "model.pth", "nano", tmp_path, capsys)
    assert "it lacks 1 of" in line and f"the first is {key}" in line


def test_output_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("kept")
    assert main(["--model-type", "nano", "-o", str(tmp_path / "taken")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "kept"


def test_only_nano_comes_with_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-type", "vit_b", "-o", str(tmp_path)]) == 2
    assert "needs --checkpoint" in capsys.readouterr().err


def test_without_torch_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match=r"pip install samq_onnx\[export\]"):
        export_sam(tmp_path / "any.pth", "nano", tmp_path)


def test_half_precision_becomes_single(tmp_path: Path, sam: Sam) -> None:
    state = {name: tensor.half() for name, tensor in sam.state_dict().items()}
    torch.save(state, tmp_path / "model.pth")
    read = read_state_dict(tmp_path / "model.pth")
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}
    assert build("nano", read, "file").image_encoder.img_size == 512


def test_without_the_packages_the_command_says_what_to_install(tmp_path: Path) -> None:
    """As after an installation without the extra: they cannot be imported."""
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'torchvision' else find(name, *more)\n"
        "sys.modules['torchvision'] = sys.modules['segment_anything'] = None\n"
        "from samq_onnx.export.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "--checkpoint", str(tmp_path / "none.pth"), "-o", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert "torchvision" in line and line.endswith("run: pip install samq_onnx[export]")
    assert not list(tmp_path.iterdir())
