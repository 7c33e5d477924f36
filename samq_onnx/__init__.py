# SPDX-License-Identifier: Apache-2.0
"""Quantizes the Segment Anything Model to ONNX models that run in integers."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from samq_onnx.errors import UserError
from samq_onnx.runtime import library_path, open_session

if TYPE_CHECKING:
    from samq_onnx.api import lower, quantize
    from samq_onnx.plan_file import read_plans, write_plans
    from samq_onnx.predictor import SamPredictor

__all__ = [
    "SamPredictor",
    "UserError",
    "__version__",
    "library_path",
    "lower",
    "open_session",
    "quantize",
    "read_plans",
    "write_plans",
]

__version__ = version("samq_onnx")


def __getattr__(name: str) -> Any:
    if name == "SamPredictor":
        return importlib.import_module("samq_onnx.predictor").SamPredictor
    if name in ("quantize", "lower"):  # the module of the command, which is the function of the API too
        return importlib.import_module(f"samq_onnx.{name}")
    if name in ("read_plans", "write_plans"):
        return getattr(importlib.import_module("samq_onnx.plan_file"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
