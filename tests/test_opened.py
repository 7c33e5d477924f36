# SPDX-License-Identifier: Apache-2.0
"""Files and sessions of a user, with what they are."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from samq_onnx.errors import UserError
from samq_onnx.families import Role
from samq_onnx.opened import Opened
from samq_onnx.runtime import open_session


def test_files_and_sessions(tiny_sam: Path) -> None:
    file = Opened.of(tiny_sam / "decoder.onnx", Role.DECODER)
    session = open_session(tiny_sam / "decoder.onnx")
    held = Opened.of(session, Role.DECODER)
    assert held.session is session
    assert (file.part.where, held.part.where) == (str(tiny_sam / "decoder.onnx"), "the decoder")
    assert file.part.role is held.part.role is Role.DECODER
    assert file.part.outputs == held.part.outputs
    with pytest.raises(UserError, match="no such file"):
        Opened.of(tiny_sam / "none.onnx", Role.DECODER)


def test_a_session_without_a_graph_is_told_by_its_inputs_and_outputs(tiny_sam: Path, tmp_path: Path) -> None:
    """As a model in ONNX Runtime's own format."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "encoder.ort")
    ort.InferenceSession(str(tiny_sam / "encoder.onnx"), options, providers=["CPUExecutionProvider"])
    session = ort.InferenceSession(str(tmp_path / "encoder.ort"), providers=["CPUExecutionProvider"])
    part = Opened.of(session, Role.ENCODER).part
    assert part.role is Role.ENCODER and part.signature.graph() is None
    assert part.image is not None and part.notes == ()
