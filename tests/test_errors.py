# SPDX-License-Identifier: Apache-2.0
"""A command that is told to stop cleans up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from samq_onnx.errors import main_guard
from samq_onnx.files import atomic_path


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background and a shell has turned it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
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
