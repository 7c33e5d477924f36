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

OPERATIONS = ("open", "os.", "shutil.", "ctypes.dlsym")  # audit events; the last is the call that exchanges two folders


def _watch(place: Path, act: Callable[[], None]) -> None:
    """Call ``act`` before each file operation in a folder, for the rest of this process."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(OPERATIONS):
            names = [os.fspath(one) for one in arguments if isinstance(one, (str, os.PathLike))]
            if "renameat2" in names or any(name.startswith(str(place)) for name in names):
                act()

    sys.addaudithook(hook)


def _quantize(source: Path, calibration: Path, folder: Path, last: int | None) -> int:
    """Quantize to a folder in a process of its own, which dies in front of operation ``last``; how many it did."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        done = 0

        def count() -> None:
            nonlocal done
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

        _watch(folder.parent, count)
        status = quantize.main([str(source), "-o", str(folder), "--calib", str(calibration), "--method", "minmax"])
        os.write(writer, str(done).encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if last is None and status != 0:
        raise RuntimeError(f"quantizing fails with status {status}")
    return int(said or last or 0)


def main(source: Path, calibration: Path, output: Path, folder: Path, points: int) -> None:
    """The process."""
    place = folder / "place"

    def run(last: int | None) -> int:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if output.exists():
            shutil.copytree(output, place / "out")
        return _quantize(source, calibration, place / "out", last)

    total = run(None)
    place.rename(folder / "whole")
    commit = range(max(0, total - points * 3 // 4), total)  # most of what can go wrong does at the end
    spread = range(0, commit.start, max(1, commit.start // (points - len(commit))))
    for last in sorted({*spread, *commit}):
        run(last)
        shutil.copytree(place, folder / str(last))
    _quantize(source, calibration, place / "out", None)
    place.rename(folder / "again")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:5]), points=int(sys.argv[5]))
