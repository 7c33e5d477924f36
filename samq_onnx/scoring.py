# SPDX-License-Identifier: Apache-2.0
"""How well masks match: IoU, Dice, and the scores of a decoder's answer against the true mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from samq_onnx.predictor import Choices

__all__ = ["Score", "means", "overlap"]


class Score(NamedTuple):
    """Of one object: IoU and Dice of the mask that answers, and the IoU of the choice that is nearest to the truth."""

    iou: float
    dice: float
    oracle_iou: float

    @classmethod
    def of(cls, answer: Choices, truth: np.ndarray) -> Score:
        """Of an answer against the true mask, bool [H, W]."""
        return cls(*overlap(answer.best.mask, truth), max(overlap(mask, truth)[0] for mask in answer.masks))


def overlap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """IoU and Dice of two masks, bool [H, W]; two empty masks agree."""
    total = int(first.sum()) + int(second.sum())
    if not total:
        return 1.0, 1.0
    shared = int((first & second).sum())
    return shared / (total - shared), 2 * shared / total


def means(scores: Sequence[Score]) -> dict[str, float]:
    """mean_iou, mean_dice and oracle_mean_iou over objects."""
    iou, dice, oracle = np.mean(scores, axis=0).tolist()
    return {"mean_iou": iou, "mean_dice": dice, "oracle_mean_iou": oracle}
