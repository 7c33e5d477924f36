# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime sessions with the native samq kernels."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from samq_onnx.errors import UserError, shortened
from samq_onnx.external import linked_weights

__all__ = ["has_vnni", "library_path", "open_session", "run_session"]

LIBRARY = "libsamq_ops.so"
# Makes ONNX Runtime turn constant s8 weights into u8, whose integer kernels are exact without VNNI. Without it its
# u8 x s8 kernels add pairs of products in 16 bits with saturation: silently wrong for large values. A product of
# two activations is not changed by it, which is why the function bodies multiply u8 by u8.
EXACT_U8S8 = "session.x64quantprecision"


@functools.cache
def library_path() -> str:
    """Absolute path of the library with the native kernels, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        UserError: the package was installed without it.
    """
    import samq_onnx

    for folder in [*samq_onnx.__path__, *__path__]:
        for path in (Path(folder) / "runtime" / LIBRARY, Path(folder) / LIBRARY):
            if path.is_file():
                return str(path.resolve())
    raise UserError(f"{LIBRARY} was not found beside {__file__}; install samq_onnx again")


@functools.cache
def has_vnni() -> bool:
    """Whether this CPU is x86 with VNNI (AVX512-VNNI or AVX-VNNI), where u8 x s8 products do not saturate."""
    return bool(ctypes.CDLL(library_path()).samq_has_vnni())


def open_session(
    model: str | os.PathLike[str] | bytes,
    *,
    native: bool = True,
    threads: int | None = None,
    options: ort.SessionOptions | None = None,
) -> ort.InferenceSession:
    """A CPU session of a model file or of serialized bytes.

    Args:
        model: path, or the bytes of a ModelProto.
        native: use the native kernels; otherwise the function bodies in the model, whose calls are checked first.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.
        options: further session options, changed in place; not yet used for another session.

    Raises:
        UserError: no such file, ONNX Runtime cannot load it, or a node without its kernel lacks an input.
    """
    where = "the model" if isinstance(model, bytes) else os.fspath(model)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise UserError(f"{where}: no such file; give the path of an .onnx model")
    chosen = options if options is not None else ort.SessionOptions()
    if threads is not None:
        chosen.intra_op_num_threads = threads
    if platform.machine().lower() in ("x86_64", "amd64") and not has_vnni():
        chosen.add_session_config_entry(EXACT_U8S8, "1")
    if native:
        chosen.register_custom_ops_library(library_path())  # ONNX Runtime checks what has a kernel
    else:
        from samq_onnx.runtime.calls import check_calls

        check_calls(model, where)
    try:
        return _session(model if isinstance(model, bytes) else where, chosen)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen kinds without a common base
        raise UserError(f"{where}: ONNX Runtime cannot load it ({shortened(error)}); export it again") from error


def _session(source: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception:
        if isinstance(source, bytes):
            raise
        weights = linked_weights(Path(source))  # which ONNX Runtime does not follow out of the model's folder
        if not weights:
            raise
        sizes = [len(held) for held in weights.values()]
        options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_session(
    session: ort.InferenceSession, feed: Mapping[str, np.ndarray], where: str, names: Sequence[str] | None = None
) -> list[np.ndarray]:
    """Outputs of a run, those of ``names`` or all.

    Raises:
        UserError: the model does not run; the message begins with ``where``.
    """
    try:
        return session.run(names, dict(feed))
    except Exception as error:  # ONNX Runtime raises a dozen kinds without a common base
        raise UserError(f"{where}: does not run ({shortened(error)}); export it again") from error
