# SPDX-License-Identifier: Apache-2.0
"""A run that is killed in the middle of a unit goes on at that unit, and makes the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

import samq_onnx
from samq_onnx.reconstruct import engine

SETTINGS = {"iterations": "4"}
KILLED = """
import os, signal, sys
import samq_onnx
from samq_onnx.reconstruct import engine

SETTINGS = {"iterations": "4"}
backward, left = engine._Learner._backward, int(sys.argv[4])

def backward_or_die(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(*arguments)

engine._Learner._backward = backward_or_die
samq_onnx.quantize(sys.argv[1], sys.argv[2], method="qdrop", bits="w4a4", settings=SETTINGS, stats=sys.argv[3])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_at_the_unit_where_it_was(
    tiny_sam: Path, one_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def counted(*arguments: object) -> float:
        steps.append(1)
        return backward(*arguments)  # type: ignore[arg-type]

    backward = engine._Learner._backward
    monkeypatch.setattr(engine._Learner, "_backward", counted)

    def made(stats: Path | None) -> list[bytes]:
        steps.clear()
        result = samq_onnx.quantize(tiny_sam, one_image, method="qdrop", bits="w4a4", settings=SETTINGS, stats=stats)
        return [ir.to_proto(part.model).SerializeToString(deterministic=True) for part in result.parts.values()]

    whole = made(None)
    assert len(steps) == 4 * 8  # three units of the encoder, five of the decoder
    file = tmp_path / "stats.npz"
    arguments = [tiny_sam, one_image, file, 4 * 4 + 2]
    process = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], timeout=300, check=False)
    assert process.returncode == -signal.SIGKILL
    assert made(file) == whole
    assert len(steps) == 4 * 4
    assert made(file) == whole
    assert not steps
