# SPDX-License-Identifier: Apache-2.0
"""What a target of the fuzzer is, and how its cases end."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["FINE", "REFUSED", "Outcome", "Target", "run_command"]

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
