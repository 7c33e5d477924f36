# SPDX-License-Identifier: Apache-2.0
"""A picture of one object: what is annotated, and the masks of two models for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from samq_onnx.overlay import PANEL_SIDE, draw_box, draw_masks, draw_outline, draw_points, side_by_side

__all__ = ["closeup"]

MARGIN = 0.2  # around the object, of its longer side
SMALLEST = 16  # pixels that are shown around it at least


def closeup(
    rgb: np.ndarray, truth: np.ndarray, reference: np.ndarray, mask: np.ndarray, prompt: Sequence[float], title: str
) -> np.ndarray:
    """Draw an object: the annotation with the prompt, and beside it a mask with the outline of another.

    Args:
        rgb: the image, uint8 [h, w, 3], of the masks' size or reduced.
        truth, reference, mask: annotated, of the float and of the quantized model, bool [H, W].
        prompt: x0, y0, x1, y1 of a box or x, y of a point, in pixels of the masks.
        title: what it shows.

    Returns:
        uint8 [., ., 3].
    """
    corners = np.reshape(prompt, (-1, 2))
    rows, columns = np.nonzero(truth | reference | mask)
    spots = np.concatenate([corners, np.stack([columns, rows], 1), np.stack([columns, rows], 1) + 1])
    low, high = spots.min(axis=0), spots.max(axis=0)
    margin = max(SMALLEST, MARGIN * float((high - low).max()))
    size = np.array(truth.shape[::-1])
    low, high = np.floor(np.maximum(low - margin, 0)), np.ceil(np.minimum(high + margin, size))
    scale = PANEL_SIDE / float((high - low).max())

    def cut(picture: np.ndarray, filter: Image.Resampling) -> np.ndarray:
        reduced = np.array(picture.shape[1::-1]) / size
        region = (*(low * reduced).tolist(), *(high * reduced).tolist())
        width, height = np.maximum(1, np.round((high - low) * scale)).astype(int).tolist()
        return np.array(Image.fromarray(picture).resize((width, height), filter, region))

    shown = cut(rgb, Image.Resampling.BICUBIC)
    annotated, outlined, filled = (cut(one, Image.Resampling.NEAREST) for one in (truth, reference, mask))
    spots = (corners - low) * scale
    left = draw_masks(shown, [annotated])
    left = draw_points(left, spots, np.ones(1)) if len(spots) == 1 else draw_box(left, spots.reshape(-1).tolist())
    right = draw_outline(draw_masks(shown, [filled]), outlined)
    return side_by_side([("annotation, prompt", left), (title, right)])
