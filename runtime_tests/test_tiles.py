# SPDX-License-Identifier: Apache-2.0
"""Random tiles by the kernels of every instruction set against the baseline's (compare_tiles.cc); for 64-bit Arm in
an emulator."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TILES = 300  # of each kind and instruction set
ARM = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def built(name: str, *options: str) -> str:
    folder = ROOT / "build" / f"tiles_{name}"
    for step in (["-S", ROOT, "-B", folder, *options], ["--build", folder, "--target", "compare_tiles", "-j", "2"]):
        done = subprocess.run(["cmake", *step], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return str(folder / "compare_tiles")


def compare(*command: str) -> list[str]:
    """The instruction sets whose tiles were compared, and none differed."""
    done = subprocess.run([*command, str(TILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split(":")[0] for line in done.stdout.splitlines()]


@pytest.mark.skipif(platform.system() != "Linux", reason="built static")
def test_this_cpu() -> None:
    need("cmake")
    compared = compare(built("here"))
    assert compared[-1] == "baseline"
    if platform.machine() == "x86_64" and "avx2" in Path("/proc/cpuinfo").read_text().split():
        assert "avx2" in compared


def test_arm() -> None:
    need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
    program = built("aarch64", *ARM)
    assert compare("qemu-aarch64", "-cpu", "max", program) == ["neondot", "baseline"]
    assert compare("qemu-aarch64", "-cpu", "cortex-a53", program) == ["baseline"]  # has no dot product
