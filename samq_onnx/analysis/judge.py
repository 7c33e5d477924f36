# SPDX-License-Identifier: Apache-2.0
"""How far the outputs of a model are from those of its float self: errors, and pixels of masks that change sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from samq_onnx.families import Part
from samq_onnx.families.part import EMBEDDING, LOW_RES_MASKS, MASKS, OUTPUT

__all__ = ["Judge", "Loss", "OutputJudge", "relative_error"]

ROLES = (EMBEDDING, LOW_RES_MASKS, MASKS, OUTPUT)  # the first that a model has is judged


@dataclasses.dataclass(frozen=True)
class Loss:
    """What an output lost.

    Attributes:
        error: squared error over the squared float output.
        flips: share of mask pixels on the other side of the threshold; None where there is no mask.
    """

    error: float
    flips: float | None = None

    @classmethod
    def mean(cls, losses: Sequence[Loss]) -> Loss:
        """Of several inputs."""
        flips = [loss.flips for loss in losses if loss.flips is not None]
        return cls(float(np.mean([loss.error for loss in losses])), float(np.mean(flips)) if flips else None)


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
        self.outputs = (part.outputs[role] if role is not None else part.signature.outputs[0].name,)
        self._masks = role in (LOW_RES_MASKS, MASKS)

    def __call__(self, index: int, reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Loss:
        one, two = reference[self.outputs[0]], found[self.outputs[0]]
        return Loss(relative_error(one, two), float(((one > 0) != (two > 0)).mean()) if self._masks else None)
