# SPDX-License-Identifier: Apache-2.0
"""How much memory there is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_memory"]


def free_memory() -> int:
    """Bytes that the system can hand out without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
