# SPDX-License-Identifier: Apache-2.0
"""Progress: a bar on a terminal, lines in a log only for long work."""

from __future__ import annotations

import pytest

from samq_onnx import progress


def test_short_work_leaves_a_log_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress_bar([1, 2, 3], "work", "item")) == [1, 2, 3]
    assert capfd.readouterr().err == ""


def test_long_work_reports_to_a_log(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOGGED", 1e-9)
    with progress.progress_bar(2, "work", "item") as bar:
        bar.update()
    assert "work:  50%" in capfd.readouterr().err


def test_it_can_be_turned_off(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOGGED", 1e-9)
    assert list(progress.progress_bar([1, 2], "work", "item", shown=False)) == [1, 2]
    assert capfd.readouterr().err == ""
