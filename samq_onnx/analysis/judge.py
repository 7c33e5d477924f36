# SPDX-License-Identifier: Apache-2.0
"""How far the outputs of a model are from those of its float self: errors, and pixels of masks that change sides."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from samq_onnx.families import Part, Role
from samq_onnx.families.decoder import decoder_of
from samq_onnx.families.image import ImageInput
from samq_onnx.families.part import EMBEDDING, LOW_RES_MASKS, MASKS, OUTPUT
from samq_onnx.feeds import Feed, prompts_of
from samq_onnx.intake import Intake
from samq_onnx.opened import Opened
from samq_onnx.runtime import run_session
from samq_onnx.samples import Sample

__all__ = ["Judge", "Loss", "MaskJudge", "OutputJudge", "relative_error"]

ROLES = (EMBEDDING, LOW_RES_MASKS, MASKS, OUTPUT)  # the first that a model has is judged
PROMPTS = 4  # for each image
SMALLEST_MASK = 1e-9  # pixels


@dataclasses.dataclass(frozen=True)
class Loss:
    """What an output lost.

    Attributes:
        error: squared error over the squared float output.
        flips: share of mask pixels on the other side of the threshold; None where there is no mask.
        masks: 1 - IoU of the masks, of probabilities, mean over masks; None where there is no mask.
    """

    error: float
    flips: float | None = None
    masks: float | None = None

    @property
    def cost(self) -> float:
        """What counts: of masks how little they overlap, which a squared error hardly knows; else the error."""
        return self.error if self.masks is None else self.masks

    @classmethod
    def mean(cls, losses: Sequence[Loss]) -> Loss:
        """Of several inputs."""
        flips = [loss.flips for loss in losses if loss.flips is not None]
        masks = [loss.masks for loss in losses if loss.masks is not None]
        return cls(
            float(np.mean([loss.error for loss in losses])),
            float(np.mean(flips)) if flips else None,
            float(np.mean(masks)) if masks else None,
        )

    @classmethod
    def of_masks(cls, reference: np.ndarray, value: np.ndarray) -> Loss:
        """Of logits [..., H, W]."""
        one, two = (_probabilities(logits) for logits in (reference, value))
        shared, either = np.minimum(one, two).sum(axis=(-2, -1)), np.maximum(one, two).sum(axis=(-2, -1))
        return cls(
            relative_error(reference, value),
            float(((reference > 0) != (value > 0)).mean()),
            float(1 - (shared / np.maximum(either, SMALLEST_MASK)).mean()),
        )


def _probabilities(logits: np.ndarray) -> np.ndarray:
    clipped = np.clip(logits.astype(np.float64), -60, 60)
    made: np.ndarray = 1 / (1 + np.exp(-clipped))
    return made


def relative_error(reference: np.ndarray, value: np.ndarray) -> float:
    """Squared error over the squared reference."""
    difference = float(np.square(reference.astype(np.float64) - value).sum())
    return difference / max(float(np.square(reference, dtype=np.float64).sum()), 1e-300)


class Judge(Protocol):
    """Compares outputs.

    Attributes:
        outputs: names of those that it looks at.
    """

    outputs: tuple[str, ...]

    def __call__(self, index: int, reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Loss:
        """What ``found`` lost of ``reference``, the float outputs, on input number ``index``."""
        ...


class OutputJudge:
    """Looks at the one output that says most: an encoder's embedding, a decoder's low-resolution masks."""

    def __init__(self, part: Part) -> None:
        role = next((role for role in ROLES if role in part.outputs), None)
        self.outputs: tuple[str, ...] = (part.outputs[role] if role is not None else part.signature.outputs[0].name,)
        self._masks = role in (LOW_RES_MASKS, MASKS)

    def __call__(self, index: int, reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Loss:
        one, two = reference[self.outputs[0]], found[self.outputs[0]]
        return Loss.of_masks(one, two) if self._masks else Loss(relative_error(one, two))


class MaskJudge:
    """Looks at the masks that a float decoder makes of an encoder's embedding.

    Args:
        encoder: its part. decoder: file. samples: of the inputs, in their order. intake: of them.

    Raises:
        UserError: the two do not fit together.
    """

    def __init__(
        self, encoder: Part, decoder: str | os.PathLike[str], samples: Sequence[Sample], intake: Intake
    ) -> None:
        assert isinstance(encoder.image, ImageInput)
        self._image, self._samples, self._intake = encoder.image, samples, intake
        self._session, part = Opened.of(decoder, Role.DECODER)
        self._decoder = decoder_of(part)
        self.outputs = self._decoder.source(encoder.signature.outputs, encoder.where)
        self._masks = OutputJudge(self._decoder).outputs[0]
        self._reference: dict[int, list[np.ndarray]] = {}

    def __call__(self, index: int, reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Loss:
        if index not in self._reference:
            self._reference[index] = self._answers(index, reference)
        pairs = list(zip(self._reference[index], self._answers(index, found), strict=True))
        return Loss.mean([Loss(relative_error(one, two), float(((one > 0) != (two > 0)).mean())) for one, two in pairs])

    def _answers(self, index: int, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        embedding = tuple(outputs[name] for name in self.outputs)
        return [
            run_session(self._session, feed, self._decoder.where, [self._masks])[0]
            for feed in self._feeds(self._samples[index], embedding)
        ]

    def _feeds(self, sample: Sample, embedding: tuple[np.ndarray, ...]) -> list[Feed]:
        shape = (sample.height, sample.width)
        return [
            self._decoder.prompt(embedding, self._image.coords(coords, *shape)[None], labels[None], None, shape)
            for coords, labels in islice(prompts_of(sample, self._intake), PROMPTS)
        ]
