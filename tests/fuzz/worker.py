# SPDX-License-Identifier: Apache-2.0
"""Runs cases of one target, in a process that may die: ``python -m tests.fuzz.worker TARGET SEED FOLDER``.

It says ``ready``, and answers every number on its input by one line of JSON: how that case of the seed ended.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import sys
import traceback
import zlib
from pathlib import Path

import numpy as np

from tests.fuzz.target import FINE, REFUSED, Target

__all__ = ["main"]

LONGEST = 2000  # characters of what is said of a case


def main(name: str, seed: int, folder: Path) -> None:
    """The process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is printed from here on goes nowhere
    target: Target = importlib.import_module(f"tests.fuzz.{name}")  # type: ignore[assignment]
    shared = folder / "shared"
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir(parents=True)
    state = target.prepare(shared)
    gc.collect()
    gc.freeze()  # cases collect what they leave; what all share stays, and need not be looked at
    print("ready", file=answers)
    for line in sys.stdin:
        place = folder / f"{name}{int(line)}"
        place.mkdir()
        random = np.random.default_rng([seed, zlib.crc32(name.encode()), int(line)])
        try:
            kind, detail = target.case(state, random, place)
        except Exception:
            kind, detail = "traceback", traceback.format_exc()
        if kind in (FINE, REFUSED):
            shutil.rmtree(place, ignore_errors=True)
        print(json.dumps({"kind": kind, "detail": detail[-LONGEST:]}), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
