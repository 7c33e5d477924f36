# SPDX-License-Identifier: Apache-2.0
"""Output files that are either complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from samq_onnx.errors import UserError

__all__ = ["atomic_path", "check_distinct", "check_writable", "write_json"]


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if a file can be created there, before long work starts.

    Raises:
        UserError: the nearest folder that is there cannot be written to, or something else has that name.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"cannot write {target}: it is a folder; give the path of a file")
    if target.exists() and not target.is_file():
        raise UserError(f"cannot write {target}: it is no regular file; choose another output path")
    try:
        with tempfile.NamedTemporaryFile(dir=next(folder for folder in _folders(target) if folder.exists())):
            pass
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another output path") from error
    return target


def _folders(path: Path) -> list[Path]:
    """Those that hold it, innermost first."""
    return list(path.absolute().parents)


def check_distinct(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Refuse outputs that would replace an input or each other, or be the folder of one another.

    Raises:
        UserError: two of them are one file, or one lies in the other.
    """
    made = [path for path in outputs if path is not None]
    for path in made:
        if any(path.resolve() in other.resolve().parents for other in made):
            raise UserError(f"{path}: is also the folder of another output; choose another path")
    taken = {_identity(path) for path in inputs if path is not None}
    for path in made:
        if _identity(path) in taken:
            raise UserError(f"{path}: would replace an input or another output; choose another path")
        taken.add(_identity(path))


def _identity(path: Path) -> tuple[int, int] | Path:
    """Equal for two names of one file, links included."""
    if not path.exists():
        return path.resolve()
    status = path.stat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path in a scratch folder beside ``path``; what is written there replaces ``path`` on success.

    The scratch folder holds every file that the writer makes (such as external data); all of them move
    together, so a failure leaves what stood there before, and no folder that was not there.
    """
    target = check_writable(path).resolve()  # what a link points to, not the link, is replaced
    missing = [folder for folder in _folders(target) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".samq-", dir=target.parent))
    try:
        yield scratch / target.name
        for made in sorted(scratch.iterdir(), key=lambda file: file.name == target.name):
            os.replace(made, target.parent / made.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # one that holds something stays
            for folder in missing:
                folder.rmdir()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; numbers that are not finite become null."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
