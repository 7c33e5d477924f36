# SPDX-License-Identifier: Apache-2.0
"""Workers for many models, as many alive at a time as memory holds.

A worker that has to make room is ended, and started again when its turn comes. How much a model will need is known
after its first run; before that it is taken to need what the largest so far did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from samq_onnx.memory import free_memory
from samq_onnx.worker import Memory, Worker

__all__ = ["WorkerArguments", "WorkerPool"]

WorkerArguments = tuple[str, Path, Path, int | None, Sequence[str]]
"""Those of `Worker`."""

SPARE = 1.1  # memory that is free when a worker starts, over what it needs


class WorkerPool:
    """A context manager that ends all workers.

    Args:
        workers: the arguments of each.
    """

    def __init__(self, workers: Sequence[WorkerArguments]) -> None:
        self._arguments = workers
        self._alive: dict[int, tuple[Worker, contextlib.ExitStack]] = {}  # the last used last
        self._memory: dict[int, Memory] = {}

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        while self._alive:
            self._end_oldest()

    def run(self, number: int) -> float:
        """Seconds of a run of a model. The first is that of a cold process, others never are.

        Raises:
            UserError: as `Worker`.
        """
        worker, stack = self._alive.pop(number) if number in self._alive else self._start(number)
        with stack:
            seconds = worker.run()
            now = worker.memory()
            self._alive[number] = worker, stack.pop_all()
        self._memory[number] = _larger(self._memory.get(number, now), now)
        return seconds

    def memory(self, number: int) -> Memory:
        """The most that a model that ran has taken."""
        return self._memory[number]

    def _start(self, number: int) -> tuple[Worker, contextlib.ExitStack]:
        peaks = {other: memory.peak for other, memory in self._memory.items()}
        needed = peaks.get(number, max(peaks.values(), default=0))
        while self._alive and free_memory() < SPARE * needed:
            self._end_oldest()
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(Worker(*self._arguments[number]))
            if number in self._memory:
                worker.run()
            return worker, stack.pop_all()

    def _end_oldest(self) -> None:
        _, stack = self._alive.pop(next(iter(self._alive)))
        stack.close()


def _larger(a: Memory, b: Memory) -> Memory:
    inference = None if a.inference is None or b.inference is None else max(a.inference, b.inference)
    return Memory(max(a.peak, b.peak), max(a.loaded, b.loaded), inference)
