# SPDX-License-Identifier: Apache-2.0
"""What all commands have in common: options, and how they end when something goes wrong.

A mistake in the input, or a file operation that fails, is one line on stderr and exit status 2. Anything unexpected is
one line too, that says where it happened and asks to be reported, and exit status 70; ``--debug`` shows the traceback.
A command that is told to stop, by Ctrl-C or SIGTERM, unwinds, so that no scratch files stay behind.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from samq_onnx.errors import UserError

__all__ = ["EXIT_DEFECT", "EXIT_INTERRUPTED", "EXIT_USER_ERROR", "Main", "command_parser", "main_guard", "output_path"]

EXIT_USER_ERROR = 2
EXIT_DEFECT = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130
DEBUG = "--debug"


class Main(Protocol):
    """A command: takes its arguments, or those of the process, and returns an exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of ``python -m samq_onnx.NAME`` with the options that every command has.

    Its `parse_args` raises `UserError` where arguments are wrong. Options are not shortened: a command without
    ``--strict`` would take it for ``--strict-data``.
    """
    parser = _Parser(prog=f"python -m samq_onnx.{name}", description=description, allow_abbrev=False)
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of whatever ends the command")
    return parser


def output_path(text: str) -> Path:
    """A path of the command line that something is written to.

    Raises:
        UserError: it is empty, as that of a shell variable that is not set.
    """
    if not text:
        raise UserError("the output path is empty; give one, or a dot for the current folder")
    return Path(text)


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


def _defect(error: BaseException) -> str:
    """What an unexpected error says, and the innermost place of our own code that it came through."""
    places = [(frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    module, line = next(place for place in reversed(places) if place[0].split(".")[0] in ("samq_onnx", "__main__"))
    return (
        f"unexpected {type(error).__name__} in {module}, line {line} ({error}); this is a defect of samq_onnx: please "
        f"report it, with what {DEBUG} prints, where you got samq_onnx from"
    )


def main_guard(main: Callable[[Sequence[str] | None], int]) -> Main:
    """Wrap a command's ``main``, so that it ends as the module says."""

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the caller
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
        cause: Exception
        try:
            with _termination_as_interrupt():
                return main(argv)
        except UserError as error:
            message, status, cause = str(error), EXIT_USER_ERROR, error
        except BrokenPipeError as error:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - or Python flushes the closed one at its end
            message, status, cause = "who read the output closed it; the command ended there", EXIT_USER_ERROR, error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            message, status, cause = f"{where}{error.strerror or error}", EXIT_USER_ERROR, error
        except MemoryError as error:
            message, status, cause = f"out of memory ({error}); free some or use smaller inputs", EXIT_USER_ERROR, error
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except Exception as error:
            message, status, cause = _defect(error), EXIT_DEFECT, error
        if DEBUG in (sys.argv[1:] if argv is None else argv):
            traceback.print_exception(cause)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return status

    return guarded
