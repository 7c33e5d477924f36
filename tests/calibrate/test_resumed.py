# SPDX-License-Identifier: Apache-2.0
"""A run that is killed after a pass over the inputs goes on from its statistics, and makes the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import samq_onnx
from samq_onnx import pipeline
from samq_onnx.calibrate.statistics import Statistic

KILLED = """
import os, signal, sys
import samq_onnx
from samq_onnx.calibrate.statistics_file import StatisticsFile

save, left = StatisticsFile.save, int(sys.argv[4])

def save_and_die(kept):
    global left
    left -= kept._changed
    save(kept)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

StatisticsFile.save = save_and_die
samq_onnx.quantize(sys.argv[1], sys.argv[2], method="os-plus", stats=sys.argv[3])
"""


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_killed_run_goes_on_where_it_was(
    passes: int, tiny_sam: Path, one_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Statistic] = []

    def counted(model: ir.Model, feeds: Any, statistics: Sequence[Statistic], **options: Any) -> None:
        seen.extend(statistics)
        original(model, feeds, statistics, **options)

    original = pipeline.run
    monkeypatch.setattr(pipeline, "run", counted)

    def made(stats: Path | None) -> list[bytes]:
        seen.clear()
        parts = samq_onnx.quantize(tiny_sam, one_image, method="os-plus", stats=stats).parts
        return [ir.to_proto(part.model).SerializeToString(deterministic=True) for part in parts.values()]

    whole = made(None)
    collected = len(seen)
    file = tmp_path / "stats.npz"
    arguments = [tiny_sam, one_image, file, passes]
    process = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    assert made(file) == whole
    assert len(seen) < collected
    assert made(file) == whole
    assert not seen
