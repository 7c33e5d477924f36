# SPDX-License-Identifier: Apache-2.0
"""``python -m samq_onnx.methods``: the methods, where they come from, and their parameters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from samq_onnx.command import command_parser, main_guard
from samq_onnx.files import check_writable, write_report
from samq_onnx.methods import METHODS, Method, parameters

__all__ = ["main", "markdown"]


def _json(method: type[Method]) -> dict[str, Any]:
    found = [
        {
            "name": one.name,
            "type": one.type.__name__,
            "default": one.default,
            "help": one.help,
            **({"choices": sorted(one.choices())} if one.choices is not None else {}),
        }
        for one in parameters(method)
    ]
    return {"summary": method.summary, "paper": method.paper, "parameters": found}


def markdown() -> str:
    """The table of the README."""
    rows = ["| method | what it does | from | parameters |", "|---|---|---|---|"]
    for name in sorted(METHODS):
        method = METHODS[name]
        found = ", ".join(f"`{one.name}`" for one in parameters(method))
        cells = (cell.replace("|", r"\|") for cell in (f"`{name}`", method.summary, method.paper, found))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = command_parser("methods", __doc__)
    parser.add_argument("--markdown", action="store_true", help="as a table")
    parser.add_argument("--json", type=check_writable, help="write them to this file")
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        print(markdown())
    else:
        for name in sorted(METHODS):
            method = METHODS[name]
            print(f"{name}: {method.summary}\n  from {method.paper}")
            for one in parameters(method):
                choices = f" ({', '.join(sorted(one.choices()))})" if one.choices is not None else ""
                print(f"  --set {one.name}={one.default}: {one.help}{choices}")
    write_report(arguments.json, {name: _json(METHODS[name]) for name in sorted(METHODS)}, "they are above")
    return 0


if __name__ == "__main__":
    sys.exit(main())
