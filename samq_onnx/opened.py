# SPDX-License-Identifier: Apache-2.0
"""A model of a user, a file or an open session, with what it is."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple, TypeAlias

import onnx
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.door import admit
from samq_onnx.families import NOTHING, Hints, Part, Role, identify_session
from samq_onnx.runtime import open_session

__all__ = ["Model", "Opened"]

Model: TypeAlias = str | os.PathLike[str] | ort.InferenceSession


class Opened(NamedTuple):
    """What runs a model, and what it is."""

    session: ort.InferenceSession
    part: Part

    @classmethod
    def of(cls, model: Model, role: Role, hints: Hints = NOTHING) -> Opened:
        """Open a file, or take an open session.

        Args:
            role: what it is meant to be, which messages call it where it has no name. hints: of its image.

        Raises:
            UserError: a file that does not open.
        """
        if isinstance(model, ort.InferenceSession):
            session, where = model, f"the {role.value}"
        else:
            admit(Path(model))  # before it is opened here, where a hostile model could crash the process
            session, where = open_session(model), os.fspath(model)
        return cls(session, identify_session(session, where, functools.partial(_graph, model), hints))


def _graph(model: Model) -> ir.Model | None:
    """The graph behind a model; None where it is in none of onnx's own files."""
    if isinstance(model, ort.InferenceSession):
        source = getattr(model, "_model_path", None) or getattr(model, "_model_bytes", None)
    else:
        source = model
    try:
        if isinstance(source, bytes):
            return ir.from_proto(onnx.ModelProto.FromString(source))
        return ir.load(source) if source is not None else None
    except Exception:  # protobuf raises its own kinds; ONNX Runtime opens files that are no ONNX
        return None
