# SPDX-License-Identifier: Apache-2.0
"""Whenever a quantizing process is killed, the output folder holds the old pair or the new one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from samq_onnx import quantize
from samq_onnx.digest import sha256_of
from samq_onnx.errors import UserError
from samq_onnx.predictor import SamPredictor
from tests.killed import KILLS

pytestmark = pytest.mark.slow

PAIR = ("encoder.onnx", "decoder.onnx")


@pytest.fixture(scope="module")
def old(tiny_sam: Path, one_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair of an earlier run, and a file of the user's."""
    folder = tmp_path_factory.mktemp("old") / "out"
    arguments = [str(tiny_sam), "-o", str(folder), "--calib", str(one_image), "--method", "minmax", "--bits", "w4a4"]
    assert quantize.main(arguments) == 0
    (folder / "notes").write_text("mine")
    return folder


def _pair(folder: Path) -> list[str]:
    return [sha256_of(folder / name) if (folder / name).exists() else "" for name in PAIR]


def _files(folder: Path) -> list[tuple[int, str]]:
    """Depth and contents of all files, whatever their temporary names."""
    return sorted(
        (len(path.relative_to(folder).parts), sha256_of(path)) for path in folder.rglob("*") if path.is_file()
    )


def _left(tiny_sam: Path, one_image: Path, old: Path, folder: Path) -> list[Path]:
    """Output folders as kills leave them, at each point."""
    words = [str(tiny_sam), str(one_image), str(old), str(folder)]
    subprocess.run([sys.executable, "-m", "tests.killed", *words], check=True, capture_output=True)
    killed = list((folder / "killed").iterdir())
    assert len(killed) >= KILLS
    for point in killed:
        assert _files(point) == _files(folder / "points" / point.name)
    for name in ("whole", "again"):
        assert [path.name for path in (folder / name).iterdir()] == ["out"]
    assert _pair(folder / "whole" / "out") == _pair(folder / "again" / "out")
    points = [point / "out" for point in (folder / "points").iterdir()]
    assert len(points) >= 20
    return points


def test_all_is_old_or_all_is_new(tiny_sam: Path, one_image: Path, old: Path, tmp_path: Path) -> None:
    left = _left(tiny_sam, one_image, old, tmp_path)
    new = _pair(tmp_path / "whole" / "out")
    seen = [_pair(folder) for folder in left]
    assert _pair(old) in seen and new in seen and _pair(old) != new
    assert all(pair in (_pair(old), new) for pair in seen)
    assert all((folder / "notes").read_text() == "mine" for folder in left)


def test_where_folders_cannot_be_exchanged_a_mixture_is_refused(
    tiny_sam: Path, one_image: Path, old: Path, tmp_path: Path
) -> None:
    with_folder = tmp_path / "old"
    shutil.copytree(old, with_folder)
    (with_folder / "inner").mkdir()
    (tmp_path / "points").mkdir()
    left = _left(tiny_sam, one_image, with_folder, tmp_path / "points")
    whole = [_pair(old), _pair(tmp_path / "points" / "whole" / "out")]
    mixed = {tuple(_pair(folder)): folder for folder in left if _pair(folder) not in whole}
    assert mixed
    for folder in mixed.values():
        with pytest.raises(UserError, match="different runs"):
            SamPredictor(*(folder / name for name in PAIR))
