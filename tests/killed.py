# SPDX-License-Identifier: Apache-2.0
"""What a quantizing process leaves when it is killed: ``python -m tests.killed FLOAT CALIBRATION OUTPUT FOLDER``.

A point is a file operation at the output that the process is about to do. Before every one of them, what lies there is
copied to ``FOLDER/points``: all that a kill would leave. At `KILLS` of them and more, which the copies are compared
with, the process is killed; what is left goes to ``FOLDER/killed``. Both hold one folder a point, named by its number.
OUTPUT is what stands there before each run. ``whole`` is what a run leaves that nobody killed, ``again`` one after the
last that somebody did.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samq_onnx import isolate, quantize

__all__ = ["KILLS", "main"]

EXCHANGE = "ctypes.dlsym"  # audit event of the call that exchanges two folders
OPERATIONS = ("open", "os.", "shutil.", EXCHANGE)  # audit events
KILLS = 20


def _watch(place: Path, act: Callable[[str], None]) -> None:
    """Call ``act`` with the kind of each file operation in a folder before it is done, in the rest of this process."""
    busy = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or not event.startswith(OPERATIONS):
            return
        names = [os.fspath(one) for one in arguments if isinstance(one, (str, os.PathLike))]
        if "renameat2" in names or any(name.startswith(str(place)) for name in names):
            busy = True
            act(event)
            busy = False

    sys.addaudithook(hook)


def _quantize(source: Path, calibration: Path, folder: Path, act: Callable[[int], None]) -> list[str]:
    """Quantize to a folder in a process of its own, which calls ``act`` with the number of each operation before it.

    Returns:
        What it did, nothing if it was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        # one process reads models for all of these: none of them dies while it waits for an answer
        isolate._server.owner = os.getpid()  # type: ignore[union-attr]
        done: list[str] = []

        def count(operation: str) -> None:
            act(len(done))
            done.append(operation)

        _watch(folder.parent, count)
        status = quantize.main([str(source), "-o", str(folder), "--calib", str(calibration), "--method", "minmax"])
        os.write(writer, " ".join(done).encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if said and status != 0:
        raise RuntimeError(f"quantizing fails with status {status}")
    return said.split()


def main(source: Path, calibration: Path, output: Path, folder: Path) -> None:
    """The process."""
    place = folder / "place"
    isolate.isolated("nothing", os.getpid)

    def run(act: Callable[[int], None]) -> list[str]:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copytree(output, place / "out")
        return _quantize(source, calibration, place / "out", act)

    done = run(lambda number: shutil.copytree(place, folder / "points" / str(number)))
    place.rename(folder / "whole")
    visible = max(index for index, operation in enumerate(done) if operation in ("os.rename", EXCHANGE))
    for last in sorted({*range(0, visible, max(1, visible // KILLS)), visible, visible + 1}):
        assert not run(lambda number, last=last: os.kill(os.getpid(), signal.SIGKILL) if number == last else None)
        shutil.copytree(place, folder / "killed" / str(last))
    _quantize(source, calibration, place / "out", lambda number: None)
    place.rename(folder / "again")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
