# SPDX-License-Identifier: Apache-2.0
"""Progress of long work on stderr: a live bar for a person, a line a minute for a log."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar", "silent", "write_line"]

LIVE, LOGGED = 0.1, 60.0  # seconds between two looks; in a log, short work says nothing
LONGEST = 10.0  # seconds more, where steps are slower than they were

_silent = contextvars.ContextVar("silent", default=False)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Let nothing within write on stderr what this module writes: for callers that are no command."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


def progress_bar(items: Iterable[Any] | int, label: str, unit: str, shown: bool = True) -> tqdm:
    """A bar over ``items``, or one of so many steps that the caller updates."""
    interval = LIVE if sys.stderr.isatty() else LOGGED
    steps = {"total": items} if isinstance(items, int) else {"iterable": items}
    return tqdm(
        **steps,
        desc=label,
        unit=unit,
        disable=_silent.get() or not shown,
        leave=False,
        mininterval=interval,
        maxinterval=interval + LONGEST,
        delay=interval,
    )


def write_line(line: str) -> None:
    """A line on stderr, above the bar if one is live."""
    if _silent.get():
        return
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)
