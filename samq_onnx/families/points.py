# SPDX-License-Identifier: Apache-2.0
"""Points in the number that a decoder takes."""

from __future__ import annotations

import numpy as np

from samq_onnx.errors import UserError
from samq_onnx.prompts import PADDING_LABEL

__all__ = ["in_number"]


def in_number(
    coords: np.ndarray, labels: np.ndarray, wanted: int | None, padding: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points as many as the model takes; the last ones go if they count as none and there are too many.

    Args:
        coords: [B, n, 2]. labels: [B, n].
        wanted: how many, None where any number will do. padding: label of a point that counts as none.

    Raises:
        UserError: there are too many.
    """
    if wanted is None:
        return coords, labels
    while labels.shape[1] > wanted and (labels[:, -1] == PADDING_LABEL).all():
        coords, labels = coords[:, :-1], labels[:, :-1]
    missing = wanted - labels.shape[1]
    if missing < 0:
        raise UserError(
            f"the decoder takes {wanted} points, the prompt has {labels.shape[1]}, where a box counts as two; give "
            "fewer, or a decoder whose number of points is free"
        )
    return (
        np.pad(coords, ((0, 0), (0, missing), (0, 0))),
        np.pad(labels, ((0, 0), (0, missing)), constant_values=padding),
    )
