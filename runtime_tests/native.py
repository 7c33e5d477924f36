# SPDX-License-Identifier: Apache-2.0
"""Native programs and libraries of these tests, built by CMake."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["ROOT", "built", "need"]

ROOT = Path(__file__).parents[1]


def need(*programs: str) -> None:
    """Skip the test where one of the programs lacks."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def built(name: str, targets: list[str], *options: str) -> Path:
    """The folder build/tiles_NAME with these targets, configured with ``options``; one process builds at a time."""
    folder = ROOT / "build" / f"tiles_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = ["-S", ROOT, "-B", folder, *options]
        for step in (configure, ["--build", folder, "--target", *targets, "-j", "2"]):
            done = subprocess.run(["cmake", *step], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder
