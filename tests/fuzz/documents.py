# SPDX-License-Identifier: Apache-2.0
"""JSON documents that are not what they were: other values, other keys, other text."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

__all__ = ["changed_document", "damaged_text"]

VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "8", "\ud800", "\0", "é\n\x1b[2J", "y" * 5000, "../../x", [], {}, [[]], [None]),
    *(-1, 0, 1, 2, 3, 4, 5, 8, 9, 16, 128, 255, 256, 1 << 31, 1 << 63, 10**400, 0.5, 1.0, 2.5, -0.0, float("nan")),
    *(float("inf"), -float("inf"), 5e-324, 1e-46, 1e-40, 1e-30, 1e-9, 1e9, 1e30, 3e38, 1e39, 1e308, -1e-3),
    *("samq", "qdq", "log", "row", "uniform", "{}", "[]", "{" * 3000, "0" * 64),
)
FACTORS = (-1.0, 0.0, 1e-6, 0.5, 2.0, 100.0, 1e20)
STOPS = 0.12  # of going one level deeper


def _place(document: Any, random: np.random.Generator) -> tuple[Any, Any]:
    """A container of the document, and a key or an index there."""
    at, path = document, None
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = keys[int(random.integers(len(keys)))]
        path = (at, key)
        if not isinstance(at[key], (dict, list)) or not at[key] or random.random() < STOPS:
            return path
        at = at[key]


def changed_document(document: dict[str, Any], random: np.random.Generator) -> tuple[Any, list[str]]:
    """A copy with one to three changes, and what they are."""
    made: Any = copy.deepcopy(document)
    changes = []
    for _ in range(int(random.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))):
        if not isinstance(made, dict) or not made:
            break
        parent, key = _place(made, random)
        value = parent[key]
        kind = random.choice(["value", "number", "gone", "more", "name", "swap"], p=[0.25, 0.4, 0.09, 0.1, 0.08, 0.08])
        if kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
            step = int(random.choice([-8, -1, 1, 8]))
            parent[key] = value + step if isinstance(value, int) else value * float(random.choice(FACTORS))
        elif kind == "number" and isinstance(value, list) and value:
            parent[key] = [value[:-1], value + value[:1], value[:1], value * 2, value[::-1]][int(random.integers(5))]
        elif kind == "gone":
            del parent[key]
        elif kind == "more":
            into = value if isinstance(value, (dict, list)) else parent
            if isinstance(into, dict):
                into[str(random.choice(["extra", "", "scale", "bits", "output", "é"]))] = copy.deepcopy(value)
            else:
                into.append(copy.deepcopy(into[0]) if into else 1)
        elif kind == "name" and isinstance(parent, dict):
            others = [*parent, "", "x", f"{key} ", key.upper(), "\ud800", "z" * 3000]
            parent[others[int(random.integers(len(others)))]] = parent.pop(key)
        elif kind == "swap":
            other, name = _place(made, random)
            parent[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(parent[key])
        else:
            parent[key] = copy.deepcopy(VALUES[int(random.integers(len(VALUES)))])
        changes.append(f"{kind} {str(key)[:60]!r}: {str(value)[:60]!r} -> {_shown(parent, key)}")
    return made, changes


def _shown(parent: Any, key: Any) -> str:
    try:
        return repr(parent[key])[:60]
    except LookupError:
        return "gone"


def damaged_text(document: Any, random: np.random.Generator) -> tuple[bytes, str]:
    """Its JSON with other bytes, and how they are other."""
    text = json.dumps(document)
    content = text.encode()
    kind = int(random.integers(10))
    at = int(random.integers(len(content)))
    if kind == 0:
        return content[:at], "truncated"
    if kind == 1:
        changed = bytearray(content)
        changed[at] ^= 1 << int(random.integers(8))
        return bytes(changed), f"bit at {at}"
    if kind == 2:
        return b"\xef\xbb\xbf" + content, "byte order mark"
    if kind == 3:
        return text.encode("utf-16"), "utf-16"
    if kind == 4:
        return content + [b"x", b"{}", b"\0", content][int(random.integers(4))], "more behind"
    if kind == 5:
        return content.replace(b"0.", b"9" * 5000 + b".", 1), "digits"
    if kind == 6:
        return content.replace(b"[", b"[" * 100_000, 1), "nested"
    if kind == 7:
        return content.replace(b": 8", b": NaN", int(random.integers(1, 4))), "NaN"
    if kind == 8:  # the same key again, with other things in it
        keys = [b'"bits": ', b'"scale": ', b'"input": ', b'"parts": ', b'"constants": ', b'"weight": ', b'"linears": ']
        key = keys[int(random.integers(len(keys)))]
        return content.replace(key, key + b"7, " + key, 1), f"{key!r} twice"
    return [b"", b"null", b"[]", b"0", b'"samq_onnx.plan/1"', b"\xff\xfe"][int(random.integers(6))], "another file"
