# SPDX-License-Identifier: Apache-2.0
"""`Part`: one ONNX file, with what it is to SAM and which of its tensors is what; and `Family`, which recognises some.

Nobody but a family reads the names of tensors. Everybody else asks a part for feeds, and for outputs by role.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from samq_onnx.errors import UserError
from samq_onnx.families.hints import Hints
from samq_onnx.families.ports import Port, graph_inputs, graph_outputs, session_inputs, session_outputs
from samq_onnx.runtime import open_session

if TYPE_CHECKING:
    from samq_onnx.data import Calibration
    from samq_onnx.encoder import Encoder
    from samq_onnx.families.image import ImageInput
    from samq_onnx.feeds import Feeds

__all__ = [
    "EMBEDDING",
    "IOU",
    "LOW_RES_MASKS",
    "MASKS",
    "NOTHING",
    "OUTPUT",
    "Family",
    "Part",
    "Role",
    "Signature",
    "Turn",
]

NOTHING = Hints()

# Roles of outputs.
EMBEDDING = "embedding"  # of an encoder: [N, C, G, G]
MASKS = "masks"  # of a decoder: logits [B, M, H, W] at the size of the original image
IOU = "iou"  # of a decoder: predicted IoUs [B, M]
LOW_RES_MASKS = "low_res_masks"  # of a decoder: logits [B, M, L, L] at a size that does not depend on the image
OUTPUT = "output"  # of any other network that has one


class Role(enum.Enum):
    """What a file is to SAM, by what it is called in messages."""

    ENCODER = "encoder"  # an image in, its embedding out
    DECODER = "decoder"  # embedding and prompts in, masks out
    WHOLE = "whole"  # image and prompts in, masks out
    GENERIC = "generic"  # anything else


class Turn(enum.IntEnum):
    """When a family is asked whether a file is one of its own; within a turn, by name."""

    FIRST = 0  # it knows more than names and shapes of inputs and outputs
    USUAL = 1
    LAST = 2  # it takes everything


@dataclasses.dataclass(frozen=True)
class Signature:
    """What there is to tell a file by.

    Attributes:
        inputs: those without a value of their own. outputs: all.
        where: what messages call the file.
        graph: reads its graph; None where there is none to read, as of a session of a file that is no ONNX.
        session: opens it, or gives it where it is open.
        hints: what people say of its image.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    where: str
    graph: Callable[[], ir.Model | None]
    session: Callable[[], ort.InferenceSession]
    hints: Hints = NOTHING

    @classmethod
    def of_model(cls, model: ir.Model, where: str, hints: Hints = NOTHING) -> Signature:
        """That of a graph, which is not changed."""

        def opened() -> ort.InferenceSession:
            try:
                content = ir.to_proto(model).SerializeToString()
            except Exception as error:  # protobuf raises its own kinds; a model may be too large for it
                raise UserError(f"{where}: cannot be written into memory ({type(error).__name__})") from error
            return open_session(content)

        told = hints.or_else(Hints.read(model.metadata_props))
        return cls(graph_inputs(model), graph_outputs(model), where, lambda: model, opened, told)

    @classmethod
    def of_session(
        cls,
        session: ort.InferenceSession,
        where: str,
        graph: Callable[[], ir.Model | None],
        hints: Hints = NOTHING,
    ) -> Signature:
        """That of an open session; ``graph`` reads what it was opened from."""
        told = hints.or_else(Hints.read(session.get_modelmeta().custom_metadata_map))
        return cls(session_inputs(session), session_outputs(session), where, graph, lambda: session, told)


class Part(abc.ABC):
    """One ONNX file.

    Attributes:
        family: name of the family that recognised it.
        role: what it is.
        signature: its inputs and outputs as they are.
        image: what makes its input from an image, if an image is all that it takes.
        notes: lines for people, such as what pixels it is fed.
    """

    role: Role
    image: ImageInput | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, family: str, signature: Signature) -> None:
        self.family, self.signature = family, signature

    @property
    def where(self) -> str:
        """What messages call the file."""
        return self.signature.where

    @property
    @abc.abstractmethod
    def outputs(self) -> Mapping[str, str]:
        """Role of an output -> its name; an output without a role is not there, nor one that cannot be told."""

    @abc.abstractmethod
    def feeds(self, calibration: Calibration, encoder: Encoder | str | os.PathLike[str] | None, label: str) -> Feeds:
        """Inputs made from images, one at a time.

        Args:
            calibration: the images. encoder: whose embeddings a decoder is fed; nothing for any other part.
            label: what progress bars call the model.

        Raises:
            UserError: a decoder without an encoder, an encoder for what is no decoder, inputs that cannot be made from
                images, or no image that can be used.
        """

    @abc.abstractmethod
    def sample_feed(
        self, prompts: int = 1, encoder: Encoder | str | os.PathLike[str] | None = None
    ) -> dict[str, np.ndarray]:
        """One input, always the same, of the shapes that the file wants; its free sides become 1.

        It is a bundled image for what takes one, one foreground point a prompt for a decoder, and random numbers for
        any other network.

        Args:
            prompts: for a decoder that takes many at once.
            encoder: embeds the bundled image for a decoder, whose embedding is random otherwise.

        Raises:
            UserError: an encoder for what is no decoder, an input without a shape or of a type that has no numbers.
        """

    def refuse_encoder(self, encoder: object) -> None:
        """For parts that need none.

        Raises:
            UserError: one is given.
        """
        if encoder is not None:
            raise UserError(f"{self.where}: is no SAM decoder; leave out --encoder")


class Family(abc.ABC):
    """Files of one kind of exporter, or of one kind of network.

    Attributes:
        turn: when it is asked.
    """

    turn: ClassVar[Turn] = Turn.USUAL

    @abc.abstractmethod
    def part(self, signature: Signature) -> Part | None:
        """The part that a file is, or None if it is none of this family."""

    def why_no_decoder(self, signature: Signature) -> str:
        """What a file lacks that a decoder of this family has, as a part of a sentence; empty if that is not known."""
        return ""
