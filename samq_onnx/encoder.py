# SPDX-License-Identifier: Apache-2.0
"""SAM's image encoder: an image in, its embedding out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from samq_onnx.errors import UserError
from samq_onnx.families import NOTHING, Hints, Part, Role
from samq_onnx.families.layout import refuse_free_sides
from samq_onnx.families.ports import described
from samq_onnx.opened import Model, Opened
from samq_onnx.runtime import run_session

if TYPE_CHECKING:
    from samq_onnx.families.decoder import DecoderPart

__all__ = ["Embedding", "Encoder", "Model", "hinted"]

Embedding: TypeAlias = tuple[np.ndarray, ...]
"""Of one image: all that a decoder wants of its encoder, in the order in which it names them; often one array."""


class Encoder:
    """An encoder, float or quantized.

    Args:
        model: file or open session; an image -> its embedding. The graph tells whether it normalises the image itself.
        hints: of that image, where the graph does not tell.

    Attributes:
        session: what runs it. image: what it takes.
        notes: lines for people, such as what pixels it is fed.

    Raises:
        UserError: a file that does not open, or a model that is no SAM encoder.
    """

    def __init__(self, model: Model, hints: Hints = NOTHING) -> None:
        self.session, part = Opened.of(model, Role.ENCODER, hints)
        if part.image is None:
            refuse_free_sides(part.signature.inputs, part.where)
            inputs = described(part.signature.inputs)
            raise UserError(f"{part.where}: not a SAM encoder (takes {inputs}); wanted one image [1, 3, S, S]")
        self.image, self.notes = part.image, part.notes
        self._outputs, self._where = part.signature.outputs, part.where
        self._embeddings: tuple[str, ...] = (self._outputs[0].name,)

    def pair(self, decoder: DecoderPart) -> None:
        """Take the outputs that a decoder wants.

        Raises:
            UserError: no output has their shape, or several have.
        """
        self._embeddings = decoder.source(self._outputs, self._where)

    def embed(self, rgb: np.ndarray, shape: tuple[int, int] | None = None) -> Embedding:
        """The embedding, arrays [1, C, G, G], of an image, RGB uint8 [H, W, 3]; the first output, or what `pair` took.
        What comes beside it may be of several layers, [layers, 1, G, G, C].

        ``shape`` is as for `samq_onnx.images.preprocess`.

        Raises:
            UserError: not such an image, or the embedding has values that are not finite.
        """
        arrays = run_session(self.session, self.image.feed(rgb, shape), self._where, self._embeddings)
        for name, made in zip(self._embeddings, arrays, strict=True):
            if made.ndim not in (4, 5) or not made.size or (name == self._embeddings[0] and made.ndim != 4):
                raise UserError(f"{self._where}: its output {name} is {list(made.shape)}; wanted [1, C, G, G]")
            if not np.isfinite(made).all():
                raise UserError(f"{self._where}: its output {name} is not finite on this image; check the model")
        return tuple(made[:1] if made.ndim == 4 else made for made in arrays)


def hinted(encoder: Path | None, part: Part, hints: Hints) -> Encoder | Path | None:
    """An encoder that a decoder is fed by, opened with hints; any other part refuses it as it is.

    Raises:
        UserError: as `Encoder`.
    """
    return Encoder(encoder, hints) if encoder is not None and part.role is Role.DECODER else encoder
