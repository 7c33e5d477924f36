# SPDX-License-Identifier: Apache-2.0
"""Agreement of a quantized model with its float model, object by object.

The loss of IoU to annotations is a mean of differences that are small beside the spread of IoU over objects. Both
models answer the same prompts, so its standard error is that of the paired differences, over objects as if each was
drawn alone. Agreement itself needs no annotation: it is the IoU of the two models' masks for one prompt.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samq_onnx.scoring import Score, means

__all__ = ["LEVELS", "WORST", "Agreement", "Bad", "paired"]

LEVELS = (0.90, 0.96, 0.99)  # of agreement, whose shares of objects are told
WORST = 10  # objects told one by one


class Bad(NamedTuple):
    """An object whose masks disagree.

    Attributes:
        image: its file. number: of the object among those listed of its image, from 0. iou: of the two masks.
        picture: uint8 [H, W, 3], or None where nobody wants it.
    """

    image: Path
    number: int
    iou: float
    picture: np.ndarray | None


class Agreement:
    """Numbers of all objects, and what there is to see of the worst ones."""

    def __init__(self) -> None:
        self._ious: list[float] = []
        self._scores: list[Score] = []
        self._float: list[Score] = []
        self._heap: list[tuple[float, int, Bad]] = []  # the best of the worst first, of equal ones the last

    def add(
        self,
        image: Path,
        number: int,
        iou: float,
        score: Score,
        reference: Score,
        draw: Callable[[], np.ndarray] | None,
    ) -> None:
        """One object.

        Args:
            iou: of the two models' masks. score, reference: of the quantized and of the float model.
            draw: makes its picture; called where it is among the worst so far.
        """
        self._ious.append(iou)
        self._scores.append(score)
        self._float.append(reference)
        order = (-iou, -len(self._ious))
        if len(self._heap) < WORST or order > self._heap[0][:2]:
            heapq.heappush(self._heap, (*order, Bad(image, number, iou, draw() if draw is not None else None)))
            if len(self._heap) > WORST:
                heapq.heappop(self._heap)

    @property
    def worst(self) -> list[Bad]:
        """The objects that agree least, the worst first."""
        return [bad for _, _, bad in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]

    def report(self) -> dict[str, Any]:
        """mean_iou of the masks of both models; shares, of the objects at each of `LEVELS` or more; worst; float, its
        own means; difference, quantized minus float, each a mean and its standard error."""
        ious = np.array(self._ious)
        return {
            "mean_iou": float(ious.mean()),
            "shares": {f"{level:.2f}": float((ious >= level).mean()) for level in LEVELS},
            "float": means(self._float),
            "difference": {
                name: paired([getattr(one, name) for one in self._scores], [getattr(one, name) for one in self._float])
                for name in Score._fields
            },
            "worst": [{"image": str(bad.image), "object": bad.number, "iou": bad.iou} for bad in self.worst],
        }


def paired(values: list[float], references: list[float]) -> dict[str, float]:
    """Mean of the differences, and its standard error; NaN of a single one."""
    differences = np.array(values) - np.array(references)
    error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return {"mean": float(differences.mean()), "standard_error": float(error)}
