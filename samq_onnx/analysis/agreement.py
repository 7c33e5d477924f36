# SPDX-License-Identifier: Apache-2.0
"""How far the masks of a quantized SAM are from those of the float one, on images without annotations too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samq_onnx.feeds import prompts_of
from samq_onnx.intake import Intake
from samq_onnx.opened import Model
from samq_onnx.predictor import SamPredictor
from samq_onnx.progress import progress_bar
from samq_onnx.prompts import PADDING_LABEL
from samq_onnx.samples import Sample
from samq_onnx.scoring import overlap

__all__ = ["Masks"]

Pair = tuple[Model, Model]


class Masks:
    """Masks of the float model on some images, each prompted as for calibration.

    Args:
        models: encoder and decoder, float.
    """

    def __init__(self, models: Pair, samples: Sequence[Sample], intake: Intake) -> None:
        self._samples, self._intake = samples, intake
        self._float = self._answers(models, "float masks")

    def points_lost(self, models: Pair) -> float:
        """100 (1 - mean IoU) of a quantized encoder and decoder with the float masks."""
        pairs = zip(self._float, self._answers(models, "quantized masks"), strict=True)
        return 100.0 * (1.0 - float(np.mean([overlap(one, two)[0] for one, two in pairs])))

    def _answers(self, models: Pair, label: str) -> list[np.ndarray]:
        predictor = SamPredictor(*models)
        masks = []
        for sample in progress_bar(self._samples, label, "image"):
            predictor.set_image(sample.load(self._intake), (sample.height, sample.width))
            for coords, labels in prompts_of(sample, self._intake):
                real = labels != PADDING_LABEL
                prompt = {"point_coords": coords[real], "point_labels": labels[real]}
                masks.append(predictor.best(**(prompt if real.sum() == 1 else {"box": coords.ravel()})).mask)
        return masks
