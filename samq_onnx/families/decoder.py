# SPDX-License-Identifier: Apache-2.0
"""A decoder: what an encoder embedded and a prompt in, masks out. Families say what its inputs and outputs are."""

from __future__ import annotations

import abc
import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from samq_onnx.data import Calibration
from samq_onnx.encoder import Embedding, Encoder
from samq_onnx.errors import UserError
from samq_onnx.families import IOU, LOW_RES_MASKS, MASKS, Part, Role, families
from samq_onnx.families.image import sample_image
from samq_onnx.families.layout import PATCH
from samq_onnx.families.ports import Port, described, random_input
from samq_onnx.feeds import DecoderFeeds
from samq_onnx.prompts import FOREGROUND, PADDING_LABEL
from samq_onnx.runtime import run_session

__all__ = ["MASK_SCALE", "Answer", "DecoderPart", "decoder_of", "random_embedding"]

MASK_SCALE = 4  # mask inputs and low-resolution masks are four times the embedding's side

Answer = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Mask logits [B, M, H, W] at the size of the original image, predicted IoUs [B, M], mask logits [B, M, L, L]."""


class DecoderPart(Part):
    """A file that takes an embedding and prompts.

    Attributes:
        unknown: inputs that no role is known for; with such a one it cannot be prompted.
        takes_boxes: whether a box is a prompt.
    """

    role = Role.DECODER
    unknown: tuple[Port, ...] = ()
    takes_boxes: bool = True

    @property
    @abc.abstractmethod
    def embeddings(self) -> tuple[Port, ...]:
        """The inputs that an encoder fills; the first is [N, C, G, G]."""

    @property
    def frame(self) -> int:
        """Side of a square image whose embedding has the size that it wants."""
        return PATCH * (self.embeddings[0].side(-1) or 1)

    def mask_side(self, embedding: Embedding) -> int:
        """Side L of the low-resolution masks, those given with a prompt and those it answers."""
        return MASK_SCALE * int(embedding[0].shape[-1])

    @abc.abstractmethod
    def prompt(
        self,
        embedding: Embedding,
        coords: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None,
        size: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        """The feed for prompts.

        Args:
            embedding: in the order of ``embeddings``. coords: [B, n, 2] in the encoder's frame. labels: [B, n].
            mask: [1, 1, L, L] or None. size: height and width of the original image.

        Raises:
            UserError: more points than the model takes, or numbers that its types do not hold.
        """

    @abc.abstractmethod
    def answers(self, image_size: int) -> Mapping[str, str]:
        """The outputs by role, all that `answer` reads.

        Args:
            image_size: side of the encoder's image.

        Raises:
            UserError: one is missing, or cannot be told from others.
        """

    def answer(
        self,
        session: ort.InferenceSession,
        feed: Mapping[str, np.ndarray],
        outputs: Mapping[str, str],
        size: tuple[int, int],
    ) -> Answer:
        """Run a feed.

        Args:
            session: of the file. feed: of `prompt`. outputs: of `answers`.
            size: height and width of the original image, for files that leave it to others to bring masks to it.

        Raises:
            UserError: it does not run.
        """
        masks, iou, low_res = run_session(
            session, feed, self.where, [outputs[role] for role in (MASKS, IOU, LOW_RES_MASKS)]
        )
        return masks, iou, low_res

    def source(self, made: Sequence[Port], where: str) -> tuple[str, ...]:
        """Which outputs of an encoder fill ``embeddings``, their names in that order.

        Args:
            made: the encoder's outputs. where: what messages call it.

        Raises:
            UserError: no output has the shape of one, or several have.
        """
        names = []
        for wanted in self.embeddings:
            fitting = [port for port in made if _fits(port, wanted)]
            if len(fitting) > 1:
                fitting = [port for port in fitting if port.name == wanted.name] or fitting
            if len(fitting) != 1:
                problem = "several of them fit" if fitting else "use two of one model"
                raise UserError(f"{where}: makes {described(made)}, the decoder takes {wanted}; {problem}")
            names.append(fitting[0].name)
        return tuple(names)

    def check(self) -> None:
        """Refuse what cannot be prompted.

        Raises:
            UserError: it has inputs that are not known.
        """
        if self.unknown:
            raise UserError(
                f"{self.where}: also takes {described(self.unknown)}, which SAM's decoder does not; export it without"
            )

    def feeds(
        self, calibration: Calibration, encoder: Encoder | str | os.PathLike[str] | None, label: str
    ) -> DecoderFeeds:
        self.check()
        if encoder is None:
            raise UserError(
                f"{self.where}: a decoder is calibrated on an encoder's embeddings; give --encoder ENCODER.onnx"
            )
        chosen = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
        return DecoderFeeds(calibration, chosen, self, f"{label}: embeddings")

    def sample_feed(
        self, prompts: int = 1, encoder: Encoder | str | os.PathLike[str] | None = None
    ) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        points = random.uniform(0, self.frame, (prompts, 1, 2))
        if encoder is not None:
            chosen = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
            chosen.pair(self)
            embedding = chosen.embed(sample_image())
        else:
            embedding = tuple(random_embedding(port, random) for port in self.embeddings)
        coords = np.concatenate([points, np.zeros_like(points)], axis=1)
        labels = np.tile(np.array([FOREGROUND, PADDING_LABEL], np.float32), (prompts, 1))
        feed = self.prompt(embedding, coords, labels, None, (self.frame, self.frame))
        return feed | {port.name: random_input(port, random) for port in self.unknown}


def random_embedding(port: Port, random: np.random.Generator) -> np.ndarray:
    """Numbers about as large as an embedding's, of the shape of an input; its free sides become 1."""
    shape = [side if isinstance(side, int) else 1 for side in port.shape or ()]
    return (0.2 * random.standard_normal(shape)).astype(np.float32)


def _fits(made: Port, wanted: Port) -> bool:
    """Whether shapes agree, batches aside, where both are known."""
    if made.shape is None or wanted.shape is None:
        return True
    if len(made.shape) != len(wanted.shape):
        return False
    pairs = zip(made.shape[1:], wanted.shape[1:], strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def decoder_of(part: Part) -> DecoderPart:
    """A part as a decoder that can be prompted.

    Raises:
        UserError: it is no decoder, or takes more than is known.
    """
    if not isinstance(part, DecoderPart):
        reasons = (family.why_no_decoder(part.signature) for family in families())
        reason = next(filter(None, reasons), f"takes {described(part.signature.inputs)}")
        raise UserError(f"{part.where}: not a SAM decoder ({reason}); see samq_onnx.export")
    part.check()
    return part
