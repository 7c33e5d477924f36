# SPDX-License-Identifier: Apache-2.0
"""A module of a command that is a function of the API too: `samq_onnx.quantize` is both."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

__all__ = ["make_callable"]


class _Callable(types.ModuleType):
    """Calls the function of the API."""

    __wrapped__: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__wrapped__(*arguments, **named)


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Let the module of this name be called as ``function`` is."""
    module = sys.modules[name]
    module.__class__ = _Callable
    module.__dict__.update(__wrapped__=function, __signature__=inspect.signature(function))
