# SPDX-License-Identifier: Apache-2.0
"""A function call in a process of its own: it may crash, hang or run out of memory, and the caller goes on.

The first call starts a process that imports what calls need and then forks once for each call, so that further calls
cost milliseconds. What a call prints goes nowhere.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any, NoReturn, TypeVar

from samq_onnx.errors import UserError
from samq_onnx.memory import free_memory

__all__ = ["isolated"]

Result = TypeVar("Result")

ALLOCATION_FAILED = re.compile("bad_alloc|[Aa]llocate memory|[Ff]ailed to allocate")  # as native engines put it
IMPORTED = ("onnx", "onnxruntime", "samq_onnx.probe")
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)  # another death is for lack of memory
SIZE = struct.Struct("<Q")  # in front of every message


def isolated(what: str, function: Callable[..., Result], *arguments: Any, seconds: int = 0) -> Result:
    """``function(*arguments)``, with no more memory than is free now.

    Args:
        what: the message of an error begins with it.
        function: of a module, found by its name. arguments: can be pickled, as what it returns.
        seconds: it may take, 0 for any time.

    Raises:
        UserError: it ran out of memory or of time, or its process died. What ``function`` raises comes through.
    """
    status, answer = _exchange(pickle.dumps((_name(function), arguments, seconds)))
    error: BaseException | None = None
    if answer:
        succeeded, result = pickle.loads(answer)
        if succeeded:
            return result
        error = result
        if not isinstance(error, MemoryError) and ALLOCATION_FAILED.search(str(error)) is None:
            raise error
    ended_by = -os.waitstatus_to_exitcode(status)
    if ended_by == signal.SIGALRM:
        raise UserError(f"{what}: takes longer than {seconds} s")
    if error is None and ended_by in CRASHES:
        raise UserError(f"{what}: crashes what works on it ({signal.Signals(ended_by).name})")
    raise UserError(f"{what}: needs more memory than there is ({free_memory() / 1e9:.1f} GB free)") from error


def _name(function: Callable[..., Any]) -> tuple[str, str]:
    """Module and name of a function, also of the module that runs as a command."""
    module = function.__module__
    spec = sys.modules[module].__spec__ if module == "__main__" else None
    return (spec.name if spec is not None else module), function.__qualname__


class _Server:
    """The process that forks."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "samq_onnx.isolate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C ends the caller, and the end of its input ends this
        )

    def ask(self, request: bytes) -> tuple[int, bytes]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(SIZE.pack(len(request)) + request)
        self._process.stdin.flush()
        answer = _read(self._process.stdout)
        if answer is None:
            raise EOFError
        return int.from_bytes(answer[:4], "little"), answer[4:]

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


_server: _Server | None = None
_lock = threading.Lock()


def _exchange(request: bytes) -> tuple[int, bytes]:
    """Wait status of the call's process and what it answered, nothing if it died."""
    global _server
    with _lock:
        if _server is None or _server.owner != os.getpid():
            _server = _Server()
        try:
            return _server.ask(request)
        except BaseException as error:  # whatever it answers later belongs to nobody
            _server.end()
            _server = None
            if isinstance(error, (EOFError, BrokenPipeError)):
                return signal.SIGKILL, b""
            raise


def _read(stream: IO[bytes]) -> bytes | None:
    """A message, None at the end of the stream."""
    size = stream.read(SIZE.size)
    message = stream.read(SIZE.unpack(size)[0]) if len(size) == SIZE.size else None
    return message if message is not None and len(message) == SIZE.unpack(size)[0] else None


def _limit_memory() -> None:
    """Fail for lack of memory here, before the system kills a process of its choice."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = free_memory() if hard == resource.RLIM_INFINITY else min(free_memory(), hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _call(request: bytes, answer: int) -> NoReturn:
    """In the process of a call."""
    try:
        _limit_memory()
        (module, name), arguments, seconds = pickle.loads(request)
        signal.alarm(seconds)
        try:
            function = getattr(importlib.import_module(module), name)
            result = pickle.dumps((True, function(*arguments)))
        except Exception as error:
            try:
                result = pickle.dumps((False, error))
                pickle.loads(result)
            except Exception:
                result = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        with os.fdopen(answer, "wb") as stream:
            stream.write(result)
        os._exit(0)
    finally:
        os._exit(1)


def _serve() -> None:
    """Answer calls until there are no more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    for module in IMPORTED:
        importlib.import_module(module)
    while (request := _read(requests)) is not None:
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            _call(request, writable)
        os.close(writable)
        with os.fdopen(readable, "rb") as stream:
            answer = stream.read()
        _, status = os.waitpid(child, 0)
        whole = answer if status == 0 else b""
        answers.write(SIZE.pack(4 + len(whole)) + status.to_bytes(4, "little") + whole)
        answers.flush()


if __name__ == "__main__":
    _serve()
