# SPDX-License-Identifier: Apache-2.0
"""Output files that are either complete or absent: written elsewhere, forced to the disk, then renamed.

Files that belong together come in a folder of their own (`atomic_folder`), which takes the place of the old one in a
single step, where the system has it: at any moment all are old or all are new. It has it on Linux, unless the folder
is a mount point or holds other folders, which may be in use. There, files are replaced one after the other, all of
them back if one fails; what a kill between two of them leaves is told by `samq_onnx.pair`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from samq_onnx.errors import UserError
from samq_onnx.external import keep_others
from samq_onnx.scratch import Scratch, remove_leftovers

__all__ = ["atomic_folder", "atomic_path", "check_writable", "resolved", "write_json", "write_report"]

AT_FDCWD, RENAME_EXCHANGE = -100, 2
STREAMS = ("/dev/fd/", "/dev/std", "/proc/")  # links to what may be a file, which is open
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
MOST_ENTRIES = 1000  # of a folder that is exchanged; each gets a second link


def resolved(path: str | os.PathLike[str]) -> Path:
    """An absolute path without links.

    Raises:
        UserError: its links go round in a circle.
    """
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError before Python 3.13
        raise UserError(f"{os.fspath(path)}: its links go round in a circle; choose another path") from error


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if a file can be created there, before long work starts.

    Raises:
        UserError: the nearest folder that is there cannot be written to, or something else has that name.
    """
    target = Path(path)
    where = resolved(target)
    try:
        str(where).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"cannot write {os.fsencode(path)!r}: the name is not in UTF-8; choose another one") from error
    if os.path.abspath(target).startswith(STREAMS):
        raise UserError(f"cannot write {target}: it is a stream of this process; choose another output path")
    if where.is_dir():
        raise UserError(f"cannot write {target}: it is a folder; give the path of a file")
    if where.exists() and not where.is_file():
        raise UserError(f"cannot write {target}: it is no regular file; choose another output path")
    try:
        with tempfile.NamedTemporaryFile(dir=next(folder for folder in where.parents if folder.exists())):
            pass
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror}; choose another output path")


@contextlib.contextmanager
def _told_where(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say which output there is no room for; the system says only that there is none."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"cannot write {os.fspath(path)}: {error.strerror}, there or in {tempfile.gettempdir()}; make room"
        ) from error


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make a folder, and take away again what is empty of what had to be made for it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one that holds something stays
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in a scratch folder beside ``path``; what is written there replaces ``path`` on success.

    External data of a model come along before it, and replace nothing that is read (`samq_onnx.external`). So a
    failure leaves what stood there before, and no folder that was not there.

    Raises:
        UserError: as `check_writable`.
    """
    target = resolved(check_writable(path))  # what a link points to, not the link, is replaced
    with _told_where(path), _parents(target.parent):
        try:
            scratch = Scratch(target.parent)
        except OSError as error:
            raise _unwritable(Path(path), error) from error
        with scratch as folder:
            yield folder / target.name
            keep_others(folder / target.name, target.parent)
            _to_disk(folder)
            for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):
                os.replace(file, target.parent / file.name)
            _sync(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder; on success all files that were written there are in ``path``, else none.

    What else ``path`` holds stays. Of two processes that write the same files one wins whole.

    Raises:
        UserError: it is no folder, or cannot be written to.
    """
    target = resolved(path)
    if target.exists() and not target.is_dir():
        raise UserError(f"cannot write to {os.fspath(path)}: it is no folder; choose another one")
    with _told_where(path), _parents(target.parent):
        try:
            scratch = Scratch(target.parent)
        except OSError as error:
            try:
                scratch = Scratch(target)
            except OSError:
                raise _unwritable(Path(path), error) from error
        with scratch as folder:
            made = folder / target.name
            made.mkdir()
            yield made
            _publish(made, target)


def _publish(made: Path, target: Path) -> None:
    """Put the files of a folder into ``target``, all at once if that can be done."""
    with _alone_in(target.parent):
        for file in list(made.iterdir()):
            keep_others(file, target)
        _to_disk(made)
        names = {file.name for file in made.iterdir()}
        if not target.exists():
            os.rename(made, target)
        elif _can_be_exchanged(target):
            try:
                _link_others(target, made)
                os.chown(made, target.stat().st_uid, target.stat().st_gid)
                shutil.copystat(target, made)
                _sync(made)
                _exchange(made, target)
            except OSError:
                _replace_each(made, target, names)
            else:
                _link_others(made, target)  # what came while the others were linked
        else:
            _replace_each(made, target, names)
        _sync(target.parent)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that publish in a folder waiting."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # no locks on this file system
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _can_be_exchanged(folder: Path) -> bool:
    """Whether nobody loses the ground they stand on."""
    remove_leftovers(folder)
    entries = list(folder.iterdir())
    return (
        len(entries) <= MOST_ENTRIES
        and not any(stat.S_ISDIR(entry.lstat().st_mode) for entry in entries)
        and not os.path.ismount(folder)
        and not os.path.samestat(folder.stat(), os.stat("."))
    )


def _link_others(source: Path, to: Path) -> None:
    """Give every file of ``source`` whose name ``to`` does not have a second name there."""
    for entry in source.iterdir():
        if not os.path.lexists(to / entry.name):
            os.link(entry, to / entry.name, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names, in one step.

    Raises:
        OSError: the system or the file system cannot.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None, use_errno=True), "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if library.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _replace_each(made: Path, target: Path, names: Iterable[str]) -> None:
    """Move files one after the other into a folder that may lie on another file system; if one fails, all go back."""
    with Scratch(target) as scratch, contextlib.ExitStack() as undo:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        old.mkdir()
        for name in names:
            shutil.move(made / name, new / name)
        _to_disk(new)
        for name in sorted(names):
            if os.path.lexists(target / name):
                _copy(target / name, old / name)
                undo.callback(os.replace, old / name, target / name)
            else:
                undo.callback((target / name).unlink, missing_ok=True)
            os.replace(new / name, target / name)
        _sync(target)
        undo.pop_all()


def _copy(path: Path, to: Path) -> None:
    try:
        os.link(path, to, follow_symlinks=False)
    except OSError:  # no links on this file system
        shutil.copy2(path, to, follow_symlinks=False)


def _to_disk(folder: Path) -> None:
    """Force all files of a folder, and their names, to the disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; numbers that are not finite become null."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_report(path: str | os.PathLike[str] | None, value: Any, done: str) -> None:
    """Write the report of a command, if one is wanted, when all else is done.

    Args:
        path: of the report. value: what JSON can hold. done: what stands although the report does not.

    Raises:
        UserError: the report cannot be written; the message says what was done.
    """
    if path is None:
        return
    try:
        write_json(path, value)
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{os.fspath(path)}: the report could not be written ({reason}); {done}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
