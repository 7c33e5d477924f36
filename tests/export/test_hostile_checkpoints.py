# SPDX-License-Identifier: Apache-2.0
"""Hostile and damaged checkpoints: one line each, before anything of the size they claim is in memory."""

from __future__ import annotations

import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from samq_onnx.errors import UserError
from samq_onnx.export.checkpoint import map_state_dict, read_state_dict
from samq_onnx.export.families import build
from samq_onnx.export.sam import Sam

PLAIN = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(3)}


def refused(file: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_state_dict(file)
    line = str(raised.value)
    assert line.startswith(str(file)) and len(line) < 600
    return line


def saved(content: Any, file: Path, **options: Any) -> Path:
    torch.save(content, file, **options)
    return file


FOREIGN: dict[str, Callable[[], torch.Tensor]] = {
    "of the type complex64": lambda: torch.ones(2, dtype=torch.complex64),
    "of the type int32": lambda: torch.ones(2, dtype=torch.int32),
    "of the type bool": lambda: torch.ones(2, dtype=torch.bool),
    "of the type float8_e4m3fn": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "of the type qint8": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 3, torch.qint8),
    "sparse": lambda: torch.ones(2, 2).to_sparse(),
    "on the device meta, without values": lambda: torch.empty(1 << 40, device="meta"),
    "not finite": lambda: torch.tensor([1.0, float("nan")]),
    "not finite ": lambda: torch.tensor([1e300], dtype=torch.float64),
    "more than the file has": lambda: torch.ones(1).expand(1 << 38),
    "more than the file has ": lambda: torch.ones(1, dtype=torch.float16).expand(1 << 31, 1 << 30),
}


@pytest.mark.filterwarnings("ignore:.*Sparse|.*quantiz|.*TypedStorage")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("reason", FOREIGN)
def test_tensors_that_are_no_weights(reason: str, legacy: bool, tmp_path: Path) -> None:
    content = {**PLAIN, "odd": FOREIGN[reason]()}
    line = refused(saved(content, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy))
    assert reason.strip() in line or (legacy and "float8" in reason)  # which the older format never held
    assert "odd" in line or "more than" in reason or "float8" in reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_widths_of_floats_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    content = {name: tensor.to(dtype) for name, tensor in PLAIN.items()}
    save_file(content, tmp_path / "m.safetensors")
    for file in (saved(content, tmp_path / "m.pth"), tmp_path / "m.safetensors"):
        read = read_state_dict(file)
        assert all(torch.equal(read[name], tensor) for name, tensor in PLAIN.items())
        file.write_bytes(b"")  # nothing of it is still mapped
        assert all(torch.equal(read[name], tensor) for name, tensor in PLAIN.items())


def test_training_checkpoints(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]}
    for key in ("model", "state_dict"):
        read = read_state_dict(saved({key: PLAIN, "optimizer": optimizer, "epoch": 3}, tmp_path / "m.pth"))
        assert read.keys() == PLAIN.keys()
    line = refused(saved({"model": PLAIN, "ema": PLAIN}, tmp_path / "m.pth"))
    assert "a dict of model, ema with several state dicts" in line


def test_shapes_are_judged_before_values_are_read(tmp_path: Path, sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    state = dict(sam.state_dict())
    state["image_encoder.pos_embed"] = torch.zeros(1, 2, 2, 192)
    mapped = map_state_dict(saved(state, tmp_path / "m.pth"))
    monkeypatch.setattr(torch.Tensor, "to", None)
    with pytest.raises(UserError, match=r"pos_embed is \[1, 2, 2, 192\]"):
        build("nano", mapped, "file")


def test_names_cannot_fill_the_screen(tmp_path: Path) -> None:
    assert "nnn..." in refused(saved({"n" * 100_000: torch.ones(1, dtype=torch.int8)}, tmp_path / "m.pth"))


def test_a_compressed_archive_is_not_unfolded(tmp_path: Path) -> None:
    source = zipfile.ZipFile(saved(PLAIN, tmp_path / "plain.pth"))
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, bytes(1 << 26) if name.endswith("data/0") else source.read(name))
    assert (tmp_path / "m.pth").stat().st_size < 1 << 18
    assert "not a PyTorch checkpoint" in refused(tmp_path / "m.pth")


def _safetensors(edit: Callable[[dict[str, Any]], None], size: int | None = None) -> bytes:
    content = save(PLAIN)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    edit(header)
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made) if size is None else size) + made + content[8 + length :]


HEADERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "four bits": lambda h: h["a.bias"].update(dtype="F4", shape=[24]),
    "unknown type": lambda h: h["a.bias"].update(dtype="F9"),
    "type of a number": lambda h: h["a.bias"].update(dtype=3),
    "overlap": lambda h: h.update(copy=dict(h["a.bias"])),
    "beyond the end": lambda h: h["a.bias"].update(data_offsets=[0, 1 << 50]),
    "backwards": lambda h: h["a.bias"].update(data_offsets=[12, 0]),
    "below zero": lambda h: h["a.bias"].update(shape=[-3]),
    "overflow": lambda h: h["a.bias"].update(shape=[1 << 40, 1 << 40]),
    "other shape": lambda h: h["a.bias"].update(shape=[5]),
    "no shape": lambda h: h["a.bias"].pop("shape"),
}


@pytest.mark.parametrize("edit", HEADERS)
def test_headers_of_safetensors(edit: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(_safetensors(HEADERS[edit]))
    refused(tmp_path / "m.safetensors")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 1 << 62, 2**64 - 1])
def test_header_sizes_of_safetensors(size: int, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(_safetensors(lambda h: None, size))
    refused(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    """A pipe is not opened: nobody may ever write to it."""
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / f"one.{suffix}").symlink_to(tmp_path / f"other.{suffix}")
    (tmp_path / f"other.{suffix}").symlink_to(tmp_path / f"one.{suffix}")
    for name in ("pipe", "folder", "one", "none"):
        assert "no such file" in refused(tmp_path / f"{name}.{suffix}")
    (tmp_path / f"empty.{suffix}").write_bytes(b"")
    refused(tmp_path / f"empty.{suffix}")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_end_in_one_line_or_in_finite_weights(kind: str, tmp_path: Path) -> None:
    file = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pth")
    if kind == "safetensors":
        save_file(PLAIN, file)
    else:
        saved(PLAIN, file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    chance = random.Random(0)
    lines = 0
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(damaged))
            if chance.random() < 0.5:
                damaged[place] = chance.randrange(256)
            elif chance.random() < 0.5:
                del damaged[place : place + chance.randrange(1, 30)]
            else:
                damaged[place : place + 8] = struct.pack("<Q", chance.choice([0, 1 << 31, 1 << 45, 2**64 - 1]))
        file.write_bytes(damaged)
        try:
            read = read_state_dict(file)
        except UserError as error:
            lines += str(error).startswith(str(file))
        else:
            lines += all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in read.values())
    assert lines == 40
