# SPDX-License-Identifier: Apache-2.0
"""A command that is told to stop cleans up."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from samq_onnx.errors import main_guard
from samq_onnx.files import atomic_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_scratch_files(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    @main_guard
    def command(argv: Sequence[str] | None = None) -> int:
        with atomic_path(tmp_path / "model.onnx") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
        return 0

    assert command() == 130
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before
