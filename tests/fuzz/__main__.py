# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz``: cases of every target until the time is over; exit status 1 if one of them failed.

Case n of a seed is the same on every machine. Files of failed cases stay in the output folder, in a folder named by
target and number.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import os
import resource
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.target import FINE, REFUSED

__all__ = ["main"]

TARGETS = {
    "models": 4.0,
    "annotations": 1.0,
    "images": 1.0,
    "inputs": 1.0,
    "plans": 1.0,
    "statistics": 1.0,
    "operators": 2.0,
}  # shares of the time
SANITIZED = ("operators",)  # run by --sanitized-python where it is given
SLOWEST_START = 180.0  # seconds to import and prepare
MEMORY = 6 << 30  # bytes that a worker may have
SHOWN = 5  # failures of a kind


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


class _Worker:
    """A process that runs cases; started again behind a case that it did not survive."""

    def __init__(self, target: str, seed: int, folder: Path, python: Sequence[str]) -> None:
        self.folder = folder
        self._seconds = importlib.import_module(f"tests.fuzz.{target}").SECONDS
        self._command = [*python, "-m", "tests.fuzz.worker", target, str(seed), os.fspath(folder)]
        self._limit = None if target in SANITIZED else _limit_memory  # sanitizers reserve terabytes of addresses
        self._process: subprocess.Popen[str] | None = None

    def run(self, number: int) -> tuple[str, str]:
        """Kind and detail of a case."""
        if self._process is None:
            with (self.folder / "stderr").open("w") as errors:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                    start_new_session=True, preexec_fn=self._limit,
                )  # fmt: skip
            if self._answer(SLOWEST_START) != "ready\n":
                self.close()
                raise RuntimeError(f"a worker does not start: {self._said()}")
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        answer = self._answer(self._seconds)
        if answer:
            read = json.loads(answer)
            return read["kind"], read["detail"]
        process = self._process
        self.close()
        if answer is None:
            return "hang", f"no end after {self._seconds:g} s"
        return "crash", f"status {process.returncode}: {self._said()}"

    def _answer(self, seconds: float) -> str | None:
        """A line of the process, empty if it died, None if it takes longer. It says one only when asked for one."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return self._process.stdout.readline() if selector.select(seconds) else None

    def _said(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """End the process, however it is."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # one that died has its own status
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Campaign:
    """All cases of one target, on several workers."""

    def __init__(self, name: str, output: Path) -> None:
        self.name, self.output = name, output
        self.kinds: collections.Counter[str] = collections.Counter()
        self.failures: list[dict[str, object]] = []
        self._numbers = iter(range(1 << 62))
        self._lock = threading.Lock()

    def run(self, seed: int, jobs: int, python: Sequence[str], until: float, cases: int | None, first: int) -> None:
        """``cases`` cases from number ``first`` on, or as many as end before ``until`` (monotonic seconds)."""
        self._numbers = iter(range(first, first + cases if cases is not None else 1 << 62))

        def work(job: int) -> None:
            folder = self.output / f"{self.name}-worker{job}"
            folder.mkdir(parents=True, exist_ok=True)
            worker = _Worker(self.name, seed, folder, python)
            try:
                while (cases is not None or time.monotonic() < until) and (number := self._next()) is not None:
                    self._note(number, *worker.run(number))
            finally:
                worker.close()

        threads = [threading.Thread(target=work, args=(job,)) for job in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _next(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)

    def _note(self, number: int, kind: str, detail: str) -> None:
        with self._lock:
            self.kinds[kind] += 1
            if kind in (FINE, REFUSED):
                return
            self.failures.append({"target": self.name, "case": number, "kind": kind, "detail": detail})
            if sum(failure["kind"] == kind for failure in self.failures) <= SHOWN:
                print(f"{self.name} {number}: {kind}: {detail.strip().splitlines()[-1:]}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/fuzz"), help="folder for failed cases")
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together, starts not counted")
    parser.add_argument("--cases", type=int, help="so many of each target instead")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sanitized-python", help=f"runs {', '.join(SANITIZED)}, instead of this one")
    parser.add_argument("--json", type=Path, help="write counts and failures here")
    arguments = parser.parse_args(argv)
    share = 60 * arguments.minutes / sum(TARGETS[name] for name in arguments.targets)
    campaigns = []
    for name in arguments.targets:
        sanitized = arguments.sanitized_python if name in SANITIZED else None
        python = shlex.split(sanitized) if sanitized else [sys.executable]
        campaign = _Campaign(name, arguments.output)
        started = time.monotonic()
        until = started + share * TARGETS[name]
        campaign.run(arguments.seed, arguments.jobs, python, until, arguments.cases, arguments.first)
        campaigns.append(campaign)
        counts = ", ".join(f"{count} {kind}" for kind, count in campaign.kinds.most_common())
        print(f"{name}: {campaign.kinds.total()} cases in {time.monotonic() - started:.0f} s: {counts}", flush=True)
    failures = [failure for campaign in campaigns for failure in campaign.failures]
    if arguments.json:
        kinds = {campaign.name: dict(campaign.kinds) for campaign in campaigns}
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "kinds": kinds, "failures": failures}, indent=2))
    total = sum(campaign.kinds.total() for campaign in campaigns)
    print(f"{total} cases of seed {arguments.seed}, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
