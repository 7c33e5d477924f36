# SPDX-License-Identifier: Apache-2.0
"""Folders for unfinished files. They go with their owner, and what a killed process left is removed by the next one.

A scratch folder is locked for as long as its process lives, and its name is one that nothing else has: so one that can
be locked was left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

__all__ = ["Scratch", "remove_leftovers"]

PREFIX = ".samq-scratch-"


class Scratch:
    """A new folder, which is removed when it is closed, or when nobody has the object any more.

    Args:
        parent: folder that it is made in; the system's folder for temporary files if none is given.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, parent: Path | None = None) -> None:
        where = Path(tempfile.gettempdir()) if parent is None else parent
        remove_leftovers(where)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))
            lock = _locked(self.path, fcntl.LOCK_EX)
            if lock is not None:
                break  # else another process took it for a leftover, before it was locked
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        self._end()


def _locked(folder: Path, how: int) -> int | None:
    """A descriptor that holds the lock of a folder; None if the folder went away meanwhile.

    Raises:
        OSError: it is locked and ``how`` says not to wait, or cannot be opened, or the file system has no locks and
            ``how`` says not to wait.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, how)
    except OSError:  # without locks nobody removes leftovers, so none is needed
        if how & fcntl.LOCK_NB:
            os.close(descriptor)
            raise
    try:
        if os.path.samestat(os.fstat(descriptor), folder.lstat()):
            return descriptor
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None


def remove_leftovers(parent: Path) -> None:
    """Remove the scratch folders of processes that are gone."""
    with contextlib.suppress(OSError):
        for path in list(parent.glob(f"{PREFIX}*")):
            with contextlib.suppress(OSError):
                lock = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock is not None:
                    _remove(path, lock)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
