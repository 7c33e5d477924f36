# SPDX-License-Identifier: Apache-2.0
"""How a mistake in the input reaches the user: one line on stderr and exit status 2.

A command that is told to stop, by Ctrl-C or SIGTERM, unwinds, so that no scratch files stay behind.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

__all__ = ["UserError", "main_guard"]


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, what to do."""


class Main(Protocol):
    """A command: takes its arguments, or those of the process, and returns an exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does; signals belong to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main_guard(main: Callable[[Sequence[str] | None], int]) -> Main:
    """Wrap a command's ``main``: a `UserError` or a failing file operation becomes one line and exit status 2."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        try:
            with _termination_as_interrupt():
                return main(argv)
        except UserError as error:
            message = str(error)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}"
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2

    return guarded
