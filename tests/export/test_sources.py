# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is, is told by its tensors or its folder; what cannot be read gets one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from samq_onnx import assets
from samq_onnx.errors import UserError
from samq_onnx.export import family
from samq_onnx.export.__main__ import MODEL_TYPES, main
from samq_onnx.export.checkpoint import StateDict, map_state_dict
from samq_onnx.export.families import BUILDERS, build, found_type
from samq_onnx.export.mobile_sam import TINY_VIT
from samq_onnx.export.parity import check
from samq_onnx.export.parts import encoder_of
from samq_onnx.export.sam import Sam
from samq_onnx.export.sam_hq import TOKEN
from samq_onnx.export.trace import trace

ONE = torch.ones(1)
PATCH = "image_encoder.trunk.patch_embed.proj.weight"
QKV = "image_encoder.blocks.0.attn.qkv.weight"


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the command; nothing is written."""
    assert main([*arguments, "-o", str(folder / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and not (folder / "out").exists()
    return lines[0]


def test_the_command_names_all_model_types() -> None:
    assert set(MODEL_TYPES) == set(BUILDERS)


def test_tensors_tell_what_they_are_of() -> None:
    assert found_type(map_state_dict(assets.nano_checkpoint()), "file") == "nano"


def test_without_a_type_there_is_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --checkpoint" in refused([], tmp_path, capsys)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ((TOKEN, QKV), "segment-anything-hq"),
        ((TINY_VIT,), "mobilesam-mirror"),
        ((TINY_VIT, TOKEN), "segment-anything-hq"),
        ((PATCH,), "sam2"),
    ],
    ids=["SAM-HQ", "MobileSAM", "SAM-HQ tiny", "SAM 2"],
)
def test_a_missing_package_is_named(
    names: tuple[str, ...],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(family.importlib.util, "find_spec", lambda name: None if name in PACKAGES else name)
    torch.save(dict.fromkeys(names, ONE), tmp_path / "model.pth")
    line = refused(["--checkpoint", str(tmp_path / "model.pth")], tmp_path, capsys)
    assert line.endswith(f"needs the package {wanted}; run: pip install {wanted}")


def test_a_package_that_lacks_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_package")
    (tmp_path / "broken.py").write_text("raise OSError('no library')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"the package half needs no_such_package; run: pip install no_such_package"):
        family.package("half_installed", "half")
    with pytest.raises(UserError, match=r"the package broken does not load \(OSError: no library\)"):
        family.package("broken", "broken")


PACKAGES = ("segment_anything_hq", "mobile_sam", "sam2", "transformers")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"vision_encoder.pos_embed": ONE}, "is no checkpoint of segment_anything"),
        ({QKV: ONE, "more": ONE}, "fits none of vit_b, vit_l, vit_h, nano: it lacks"),
    ],
    ids=["of something else", "of no size"],
)
def test_what_fits_nothing(state: StateDict, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state, tmp_path / "model.pth")
    assert reason in refused(["--checkpoint", str(tmp_path / "model.pth")], tmp_path, capsys)


def test_integers_are_no_weights(sam: Sam) -> None:
    name = "mask_decoder.iou_token.weight"
    state = dict(sam.state_dict())
    state[name] = state[name].to(torch.int64)
    with pytest.raises(UserError, match=rf"its {name} is \[1, 128\] of integers, not \[1, 128\]"):
        build("nano", state, "file")


def folder_of(path: Path, config: object, weights: str | None = "model.safetensors") -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if weights is not None:
        (path / weights).write_bytes(b"none")
    return path


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        ({"model_type": "bert"}, "model.safetensors", "its model_type is bert; wanted is sam, sam_hq, sam2"),
        ([], "model.safetensors", "its model_type is None"),
        ({"model_type": ["sam"]}, "model.safetensors", "its model_type is ['sam']; wanted is sam"),
        ({"model_type": "sam"}, "pytorch_model.bin", "no model.safetensors; save the model"),
        ({"model_type": "sam"}, None, "no model.safetensors"),
    ],
    ids=["another model", "no object", "no name", "a pickle", "no weights"],
)
def test_folders_that_are_refused(
    config: object, weights: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "model", config, weights)
    assert reason in refused(["--checkpoint", str(folder)], tmp_path, capsys)


def test_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    assert "config.json: no such file" in refused(["--checkpoint", str(tmp_path / "model")], tmp_path, capsys)


@pytest.mark.parametrize("more", [["--model-type", "vit_b"], ["--batched"]], ids=["type", "batched"])
def test_what_a_folder_leaves_nobody_to_say(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "model", {"model_type": "sam"})
    assert f"leave out {more[0]}" in refused(["--checkpoint", str(folder), *more], tmp_path, capsys)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_report_replaces_nothing_of_a_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "model", {"model_type": "sam"})
    before = (folder / name).read_bytes()
    line = refused(["--checkpoint", str(folder), "--json", str(folder / name)], tmp_path, capsys)
    assert "would replace an input" in line and (folder / name).read_bytes() == before


def test_a_folder_needs_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(family.importlib.util, "find_spec", lambda name: None if name in PACKAGES else name)
    folder = folder_of(tmp_path / "model", {"model_type": "sam2"})
    assert refused(["--checkpoint", str(folder)], tmp_path, capsys).endswith("run: pip install transformers")


def test_weights_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    folder = folder_of(tmp_path / "model", {"model_type": "sam"})
    assert "transformers does not load it" in refused(["--checkpoint", str(folder)], tmp_path, capsys)


class Wrapped(torch.nn.Module):
    """A model as wrappers make them: in training mode outside."""

    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.inside(image),)


def test_what_is_compared_is_in_evaluation_mode(tmp_path: Path) -> None:
    """A norm of batches computes something else while it trains, and the exporter restores the mode that it finds."""
    norm = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16, 16), torch.nn.BatchNorm2d(4)).eval().requires_grad_(False)
    wrapped = Wrapped(norm)
    part = encoder_of(wrapped, 32, ["image_embeddings"], wrapped)
    trace(part, tmp_path / "encoder.onnx")
    assert not norm.training
    check(tmp_path / "encoder.onnx", part).check("encoder")
