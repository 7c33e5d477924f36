# SPDX-License-Identifier: Apache-2.0
"""JSON that others may have written: what JSON leaves open is an error here, so that nothing is taken by half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from samq_onnx.errors import UserError

__all__ = ["brief", "parsed", "read_document"]

LARGEST = 1 << 30  # bytes of a file
LONGEST = 80  # characters of a name in a message


def brief(text: object) -> str:
    """A name out of a file, as messages show it: printable, and not longer than they can hold."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(text)[: LONGEST + 1])
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{brief(twice)!r} is there twice")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def parsed(text: str) -> Any:
    """A JSON text.

    Raises:
        ValueError: it is not JSON, has a key twice, NaN or infinity, characters that are none, or is too deep.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
        json.dumps(found, ensure_ascii=False).encode()  # halves of characters
    except RecursionError as error:
        raise ValueError("too deep") from error
    return found


def read_document(path: Path, wanted: str) -> Any:
    """A JSON file, UTF-8.

    Args:
        wanted: what to give, for messages.

    Raises:
        UserError: there is no such file, it is too large, or as `parsed` says.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {wanted}")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: too large; {wanted}")
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {wanted}") from error
