# SPDX-License-Identifier: Apache-2.0
"""Kernels of every instruction set (compare_tiles.cc) and whole operators (run_operators.cc) against the scalar
specification; for 64-bit Arm in an emulator."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from runtime_tests.native import built, need

TILES = 300  # of each kind and instruction set
NODES, EMULATED_NODES = 40, 8  # of each operator and instruction set
PROGRAMS = ["compare_tiles", "run_operators"]
ARM = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")


def said(command: list[str], **variables: str) -> list[str]:
    """The instruction sets that begin the lines of a program that must end well."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split(":")[0] for line in done.stdout.splitlines()]


def compare(folder: Path, *emulator: str) -> list[str]:
    """The instruction sets by which tiles and operators were compared, and none differed."""
    sets = said([*emulator, str(folder / "compare_tiles"), str(TILES)])
    for name in sets:
        nodes = EMULATED_NODES if emulator else NODES
        assert said([*emulator, str(folder / "run_operators"), str(nodes)], SAMQ_ISA=name) == [name]
    return sets


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="built static")
def test_this_cpu() -> None:
    need("cmake")
    compared = compare(built("here", PROGRAMS))
    assert compared[-1] == "baseline"
    if platform.machine() == "x86_64" and "avx2" in Path("/proc/cpuinfo").read_text().split():
        assert "avx2" in compared


@pytest.mark.slow
def test_arm() -> None:
    need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
    folder = built("aarch64", PROGRAMS, *ARM)
    assert compare(folder, "qemu-aarch64", "-cpu", "max") == ["neondot", "baseline"]
    assert compare(folder, "qemu-aarch64", "-cpu", "cortex-a53") == ["baseline"]  # has no dot product
