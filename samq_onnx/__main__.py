# SPDX-License-Identifier: Apache-2.0
"""``samq COMMAND`` and ``python -m samq_onnx COMMAND``: all commands behind one name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from samq_onnx.command import Main, main_guard
from samq_onnx.errors import UserError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "quantize": "samq_onnx.quantize",
    "lower": "samq_onnx.lower",
    "analyze": "samq_onnx.analyze",
    "verify": "samq_onnx.verify",
    "evaluate": "samq_onnx.evaluate",
    "segment": "samq_onnx.segment",
    "bench": "samq_onnx.bench",
    "export": "samq_onnx.export.__main__",
    "methods": "samq_onnx.methods.__main__",
    "demo": "samq_onnx.demo",
}


@main_guard
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names with the words behind it."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: samq COMMAND ...\ncommands: {', '.join(COMMANDS)}\nsamq COMMAND --help says more")
        return 0
    if words[0] not in COMMANDS:
        raise UserError(f"no command {words[0]!r}; choose one of {', '.join(COMMANDS)}")
    command: Main = importlib.import_module(COMMANDS[words[0]]).main
    return command(words[1:])


if __name__ == "__main__":
    sys.exit(main())
