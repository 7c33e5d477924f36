# SPDX-License-Identifier: Apache-2.0
"""SAM's image encoder: an image in, its embedding out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.door import admit
from samq_onnx.errors import UserError
from samq_onnx.interface import ImageInput, Port, described, session_inputs, session_outputs
from samq_onnx.runtime import open_session, run_session

__all__ = ["Encoder", "Model", "as_session", "file_name"]

Model: TypeAlias = str | os.PathLike[str] | ort.InferenceSession


def as_session(model: Model) -> ort.InferenceSession:
    """An open session, or that of a file.

    Raises:
        UserError: a file that does not open.
    """
    if isinstance(model, ort.InferenceSession):
        return model
    admit(Path(model))  # before it is opened here, where a hostile model could crash the process
    return open_session(model)


def file_name(model: Model, role: str) -> str:
    """What messages call a model."""
    return f"the {role}" if isinstance(model, ort.InferenceSession) else os.fspath(model)


class Encoder:
    """An encoder, float or quantized.

    Args:
        model: file or open session; [N, 3, S, S] -> image embeddings [N, C, S/16, S/16]. The graph tells whether it
            normalises the image itself.

    Attributes:
        session: what runs it. image: what it takes.

    Raises:
        UserError: a file that does not open, or a model that is no SAM encoder.
    """

    def __init__(self, model: Model) -> None:
        self.session = as_session(model)
        self._where = file_name(model, "encoder")
        self.image = ImageInput.of(session_inputs(self.session), _graph(model), self._where)
        self._outputs = session_outputs(self.session)
        self._embeddings = self._outputs[0].name

    def pair(self, wanted: Port) -> None:
        """Take the output that a decoder wants as its embeddings.

        Raises:
            UserError: no output has their shape, or several have.
        """
        fitting = [port for port in self._outputs if _fits(port, wanted)]
        if len(fitting) != 1:
            problem = "several of them fit" if fitting else "use two of one model"
            raise UserError(f"{self._where}: makes {described(self._outputs)}, the decoder takes {wanted}; {problem}")
        self._embeddings = fitting[0].name

    def embed(self, rgb: np.ndarray, shape: tuple[int, int] | None = None) -> np.ndarray:
        """The embedding [1, C, G, G] of an image, RGB uint8 [H, W, 3]; ``shape`` as in `samq_onnx.images.preprocess`.

        Raises:
            UserError: not such an image, or the embedding has values that are not finite.
        """
        (made,) = run_session(self.session, self.image.feed(rgb, shape), self._where, [self._embeddings])
        if made.ndim != 4 or not made.size:
            raise UserError(f"{self._where}: its output {self._embeddings} is {list(made.shape)}; wanted [1, C, G, G]")
        if not np.isfinite(made).all():
            raise UserError(
                f"{self._where}: its output {self._embeddings} is not finite on this image; check the model"
            )
        return made[:1]


def _fits(made: Port, wanted: Port) -> bool:
    """Whether shapes agree, batches aside, where both are known."""
    if made.shape is None or wanted.shape is None:
        return True
    if len(made.shape) != len(wanted.shape):
        return False
    pairs = zip(made.shape[1:], wanted.shape[1:], strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


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
