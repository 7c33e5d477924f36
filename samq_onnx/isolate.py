# SPDX-License-Identifier: Apache-2.0
"""A function call in a process of its own: it may run out of memory, and the caller goes on."""

from __future__ import annotations

import multiprocessing
import re
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from samq_onnx.errors import UserError
from samq_onnx.memory import free_memory

__all__ = ["isolated"]

Result = TypeVar("Result")

ALLOCATION_FAILED = re.compile("bad_alloc|[Aa]llocate memory|[Ff]ailed to allocate")  # as native engines put it


def _limit_memory() -> None:
    """Fail for lack of memory here, before the system kills a process of its choice."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = free_memory() if hard == resource.RLIM_INFINITY else min(free_memory(), hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def isolated(what: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)``, all of which can be pickled, with no more memory than is free now.

    Raises:
        UserError: it ran out of memory or its process died; the message begins with ``what``. What ``function``
            raises comes through.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_limit_memory) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except Exception as error:
            if not isinstance(error, (BrokenProcessPool, MemoryError)) and ALLOCATION_FAILED.search(str(error)) is None:
                raise
            free = free_memory() / 1e9
            raise UserError(f"{what}: needs more memory than there is ({free:.1f} GB free)") from error
