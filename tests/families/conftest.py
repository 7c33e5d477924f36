# SPDX-License-Identifier: Apache-2.0
"""A tiny SAM in a folder of its own, which tests change."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.fuzz import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny SAM, encoder.onnx and decoder.onnx."""
    onnx.save(tiny.encoder(), tmp_path / "encoder.onnx")
    onnx.save(tiny.decoder(), tmp_path / "decoder.onnx")
    return tmp_path
