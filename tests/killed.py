# SPDX-License-Identifier: Apache-2.0
"""Kills a quantizing process at planned points: ``python -m tests.killed FLOAT CALIBRATION OUTPUT FOLDER POINTS``.

A point is a file operation at the output that the process is about to do: it dies before it. OUTPUT is what stands
there before each run, if there is such a folder. What is left goes to FOLDER, one folder a point; ``whole`` is that of
a run that nobody killed, ``again`` that of one after the last that somebody did.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samq_onnx import quantize

__all__ = ["main"]

EXCHANGE = "ctypes.dlsym"  # audit event of the call that exchanges two folders
OPERATIONS = ("open", "os.", "shutil.", EXCHANGE)  # audit events
AFTER = 3  # operations behind the one that makes the last output visible, which are points as well


def _watch(place: Path, act: Callable[[str], None]) -> None:
    """Call ``act`` with the kind of each file operation in a folder before it is done, in the rest of this process."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(OPERATIONS):
            names = [os.fspath(one) for one in arguments if isinstance(one, (str, os.PathLike))]
            if "renameat2" in names or any(name.startswith(str(place)) for name in names):
                act(event)

    sys.addaudithook(hook)


def _quantize(source: Path, calibration: Path, folder: Path, last: int | None) -> list[str]:
    """Quantize to a folder in a process of its own, which dies in front of operation ``last``; what it did else."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        done: list[str] = []

        def act(operation: str) -> None:
            if len(done) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(operation)

        _watch(folder.parent, act)
        status = quantize.main([str(source), "-o", str(folder), "--calib", str(calibration), "--method", "minmax"])
        os.write(writer, " ".join(done).encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if last is None and status != 0:
        raise RuntimeError(f"quantizing fails with status {status}")
    return said.split()


def main(source: Path, calibration: Path, output: Path, folder: Path, points: int) -> None:
    """The process."""
    place = folder / "place"

    def run(last: int | None) -> list[str]:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if output.exists():
            shutil.copytree(output, place / "out")
        return _quantize(source, calibration, place / "out", last)

    done = run(None)
    place.rename(folder / "whole")
    visible = max(index for index, operation in enumerate(done) if operation in ("os.rename", EXCHANGE))
    end = min(len(done), visible + 1 + AFTER)
    commit = range(max(0, end - points * 3 // 4), end)  # most of what can go wrong does there
    spread = range(0, commit.start, max(1, commit.start // (points - len(commit))))
    for last in sorted({*spread, *commit}):
        run(last)
        shutil.copytree(place, folder / str(last))
    _quantize(source, calibration, place / "out", None)
    place.rename(folder / "again")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:5]), points=int(sys.argv[5]))
