# SPDX-License-Identifier: Apache-2.0
"""What a target of the fuzzer is, and how its cases end."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

__all__ = ["FINE", "REFUSED", "Outcome", "Target", "clean_run", "declared", "run_command"]

Outcome = tuple[str, str]
"""Kind and detail. `FINE` and `REFUSED` are no failures; every other kind is: ``traceback``, ``defect`` (exit status
70), ``silent`` (a wrong result that nothing tells), ``dirty`` (files that should not be there, or input that changed),
``words`` (a refusal that is not one line). The runner adds ``crash`` and ``hang``."""

FINE, REFUSED = "fine", "refused"


class Target(Protocol):
    """A module of this package."""

    SECONDS: float  # a case may take; longer is a hang

    def prepare(self, folder: Path) -> Any:
        """Seed inputs, sessions and what else all cases share; once for each process, in a folder of its own."""

    def case(self, state: Any, random: np.random.Generator, folder: Path) -> Outcome:
        """Change one seed input, use it, and judge. ``folder`` is empty, and stays behind if the case fails.

        What is drawn from ``random`` alone decides the input. An exception that comes out counts as ``traceback``.
        """


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> Outcome:
    """What a command that is guarded makes of its arguments: fine, or refused by one line on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            status = main(argv)
        except SystemExit as end:
            status = int(end.code or 0)
    lines = [line for line in said.getvalue().splitlines() if not line.startswith("warning: ")]
    if status == 0:
        return FINE, ""
    if status == 70:
        return "defect", lines[-1] if lines else ""
    if status != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return "words", f"status {status}: {said.getvalue()[-500:]}"
    return REFUSED, lines[0]


class _Scratch:
    """Temporary files of a command, which have to be gone behind it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "scratch"

    def __enter__(self) -> None:
        self._folder.mkdir()
        self._before, tempfile.tempdir = tempfile.tempdir, str(self._folder)

    def __exit__(self, *_: object) -> None:
        tempfile.tempdir = self._before

    def left(self) -> list[str]:
        return sorted(name for name in os.listdir(self._folder) if name.startswith("samq-"))


def clean_run(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str], folder: Path, made: Sequence[str] = ()
) -> Outcome:
    """As `run_command`, and whether the command left what it should in the folder of the case: ``made``, if it is fine.

    What lies there may change only if it is one of these.
    """
    before = {path: path.stat(follow_symlinks=False).st_mtime_ns for path in folder.iterdir()}
    scratch = _Scratch(folder)
    with scratch:
        kind, detail = run_command(main, list(arguments))
    gc.collect()
    if scratch.left():
        return "dirty", f"scratch: {scratch.left()}"
    shutil.rmtree(folder / "scratch")  # with what libraries keep
    after = {path: path.stat(follow_symlinks=False).st_mtime_ns for path in folder.iterdir()}
    wanted = {folder / name for name in made} if kind == FINE else set()
    if {p: t for p, t in after.items() if p not in wanted} != {p: t for p, t in before.items() if p not in wanted}:
        return "dirty", f"left {sorted(path.name for path in after)} ({kind} {detail})"
    if kind == FINE and not wanted <= after.keys():
        return "dirty", f"did not write {sorted(path.name for path in wanted - after.keys())}"
    return kind, detail


def declared(graph: onnx.GraphProto) -> tuple[list[str], dict[str, onnx.ValueInfoProto]]:
    """Names of inputs and outputs, and the last declaration of each: one that is given out twice may have two."""
    values = [*graph.input, *graph.output]
    return [value.name for value in values], {value.name: value for value in values}
