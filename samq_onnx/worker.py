# SPDX-License-Identifier: Apache-2.0
"""A model served by a process of its own, so that its time and memory are its own.

The process is any command that calls `serve` with a way to open models; this module is the one for ONNX Runtime. It
answers every line of its input with one line of JSON. It imports little, because what it imports counts as memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samq_onnx.errors import UserError

__all__ = ["ORT_WORKER", "Memory", "Opener", "Worker", "serve"]

Opener = Callable[[str, int | None], Callable[[Mapping[str, np.ndarray]], object]]
"""Path of a model and number of threads (None: the engine's choice) -> a function that runs it on a feed."""

ORT_WORKER = (sys.executable, "-m", "samq_onnx.worker")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a worker in bytes, Python and the engine included.

    Attributes:
        peak: the largest resident set ever.
        loaded: resident set before the first run.
        inference: what the runs added to ``loaded`` at their peak; None where the system does not tell it apart.
    """

    peak: int
    loaded: int
    inference: int | None


class Worker:
    """Starts the process and opens the model there; a context manager that ends it.

    Args:
        name: what messages call the model.
        model: its path, for the opener. feed: an ``.npz`` file, one array for each graph input.
        threads: threads within an operator; None leaves the choice to the engine.
        command: the process, before its arguments.

    Raises:
        UserError: the model does not open or does not run, or the process died.
    """

    def __init__(
        self, name: str, model: Path, feed: Path, threads: int | None = None, command: Sequence[str] = ORT_WORKER
    ) -> None:
        self.name = name
        arguments = [*command, os.fspath(model), os.fspath(feed), *([str(threads)] if threads else [])]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # in a session of its own, where Ctrl-C reaches the caller only
        self._process = subprocess.Popen(arguments, **pipes, start_new_session=True)

    def __enter__(self) -> Worker:
        try:
            self._ask()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> float:
        """Seconds of one run, taken in the process."""
        return float(self._ask("run")["seconds"])

    def memory(self) -> Memory:
        """Memory so far."""
        return Memory(**self._ask("memory"))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()

    def _ask(self, request: str = "") -> dict[str, Any]:
        """The answer to a request, or to the start of the process."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            if request:
                self._process.stdin.write(f"{request}\n")
                self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"{self.name}: {_obituary(self._process.wait())}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer


def _obituary(status: int) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed, most likely for lack of memory; free some, or measure fewer models at once"
    if status < 0:
        return f"its process died of {signal.Signals(-status).name}; the engine or an operator library is at fault"
    return f"its process ended with status {status} and without an answer"


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _reset_peak() -> bool:
    """Make the resident set the new peak; whether the system lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def serve(open_model: Opener, argv: Sequence[str] | None = None) -> int:
    """The process of a `Worker`: opens the model and answers until its input ends.

    Args:
        open_model: raises `UserError` for a model it cannot open.
        argv: model, feed and, where they are chosen, threads; default: the process's arguments.
    """
    model, feed_file, *threads = sys.argv[1:] if argv is None else argv
    with contextlib.suppress(OSError):  # where memory runs out, this process goes before any other
        Path("/proc/self/oom_score_adj").write_text("1000")
    # whatever an engine prints goes to stderr
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**content: object) -> None:
        answers.write(json.dumps(content) + "\n")

    try:
        with np.load(feed_file, allow_pickle=False) as arrays:
            feed = dict(arrays)
        run = open_model(model, int(threads[0]) if threads else None)
        loaded, peak = _status("VmRSS"), _status("VmHWM")
        alone = _reset_peak()
        answer()
        for request in sys.stdin:
            if request == "run\n":
                started = time.perf_counter()
                run(feed)
                answer(seconds=time.perf_counter() - started)
            else:
                highest = _status("VmHWM")
                inference = max(0, highest - loaded) if alone else None
                answer(peak=max(peak, highest), loaded=loaded, inference=inference)
    except UserError as error:
        answer(error=str(error))
        return 2
    except Exception as error:  # an engine raises errors of any kind
        answer(error=f"{model}: does not run ({' '.join(str(error).split())[:400]})")
        return 2
    return 0


def _open_session(model: str, threads: int | None) -> Callable[[Mapping[str, np.ndarray]], object]:
    import onnxruntime as ort

    from samq_onnx.runtime import open_session

    ort.set_default_logger_severity(3)
    session = open_session(model, threads=threads)
    return lambda feed: session.run(None, dict(feed))


if __name__ == "__main__":
    sys.exit(serve(_open_session))
