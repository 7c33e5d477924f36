# SPDX-License-Identifier: Apache-2.0
"""Whether the packages that only the export needs are installed."""

from __future__ import annotations

import importlib.util

from samq_onnx.errors import UserError

__all__ = ["check_requirements"]

PACKAGES = ("torch", "torchvision", "segment_anything", "onnx_graphsurgeon", "safetensors")


def check_requirements() -> None:
    """Do nothing if all packages of the ``[export]`` extra can be found.

    Raises:
        UserError: one is missing; the message names it and the command that installs it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the export needs {', '.join(missing)}; run: pip install samq_onnx[export]")
