# SPDX-License-Identifier: Apache-2.0
"""Every function of ONNX Runtime's interface that the library uses is called, by the oldest version that is supported
and by the one that is installed: call_slots.py in a process of its own."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from runtime_tests.native import ROOT, built, need
from runtime_tests.test_runtime import child
from samq_onnx.runtime import library_path

OLDEST = ROOT / "build" / "ort-1.20"
CALL = "from runtime_tests.call_slots import main; main(*sys.argv[1:])"


@pytest.fixture(scope="module")
def counter() -> str:
    """Path of the library that counts."""
    need("cmake")
    return str(built("here", ["count_slots"]) / "libcount_slots.so")


@pytest.mark.skipif(platform.system() != "Linux", reason="Linux libraries")
@pytest.mark.parametrize("folder", [OLDEST, None], ids=["oldest", "installed"])
def test_every_slot_is_called(folder: Path | None, counter: str) -> None:
    if folder is not None and not (folder / "onnxruntime").is_dir():
        pytest.skip(f"needs ONNX Runtime 1.20 in {folder.relative_to(ROOT)}; `make oldest` puts it there")
    said = json.loads(child(CALL, counter, library_path(), **({"PYTHONPATH": str(folder)} if folder else {})))
    assert said["version"].startswith("1.20.") or folder is None
    assert said["operators"] == said["calls"]["CustomOpDomain_Add"]
    assert not [name for name, calls in said["calls"].items() if calls == 0]
