# SPDX-License-Identifier: Apache-2.0
"""Prompts as users give them, checked number by number."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from samq_onnx.errors import UserError

__all__ = ["BOX_LABELS", "FOREGROUND", "PADDING_LABEL", "Prompt"]

FOREGROUND = 1.0
BOX_LABELS = (2.0, 3.0)
PADDING_LABEL = -1.0
LABELS = (PADDING_LABEL, 0.0, FOREGROUND, *BOX_LABELS)
FARTHEST = 2.0**24  # pixels; beyond it float32 does not tell neighbours apart


class Prompt(NamedTuple):
    """What is asked about an image.

    Attributes:
        coords: float64 [n, 2], (x, y) in pixels of the original image; a box is its two corners, and without a box the
            last point is padding.
        labels: float32 [n].
        mask: float64 [1, h, w] or None.
        ambiguous: a single point and no box.
    """

    coords: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None
    ambiguous: bool

    @classmethod
    def of(cls, point_coords: Any, point_labels: Any, box: Any, mask_input: Any = None) -> Prompt:
        """Check the arguments of `samq_onnx.SamPredictor.predict`.

        Raises:
            UserError: what is no number, not finite, of the wrong shape, too far away, or an unknown label; an empty
                box; nothing that is asked.
        """
        if (point_coords is None) != (point_labels is None):
            raise UserError("point_coords and point_labels belong together; give both or none")
        coords = np.zeros((0, 2)) if point_coords is None else _numbers("point_coords", point_coords)
        labels = np.zeros(0) if point_labels is None else _numbers("point_labels", point_labels)
        if coords.ndim != 2 or coords.shape[1] != 2 or labels.shape != coords.shape[:1]:
            raise UserError(f"points must be [n, 2] with labels [n], got {list(coords.shape)} and {list(labels.shape)}")
        if not np.isin(labels, LABELS).all():
            strange = labels[~np.isin(labels, LABELS)][0]
            raise UserError(
                f"unknown label {strange:g}; 1 is foreground, 0 background, -1 no point, 2 and 3 a box's corners"
            )
        mask = None if mask_input is None else _numbers("mask_input", mask_input)
        if box is None:
            if not len(coords) and mask is None:
                raise UserError("no prompt; give points, a box or a mask")
            corners, kinds = np.zeros((1, 2)), [PADDING_LABEL]
        else:
            corners, kinds = _corners(box), list(BOX_LABELS)
        if np.abs(coords).max(initial=0) > FARTHEST or np.abs(corners).max() > FARTHEST:
            raise UserError(f"coordinates beyond {FARTHEST:.0f} pixels lie outside of any image; check the prompt")
        ambiguous = box is None and len(coords) == 1
        points = np.concatenate([coords, corners])
        return cls(points, np.concatenate([labels, kinds]).astype(np.float32), mask, ambiguous)


def _corners(box: Any) -> np.ndarray:
    """float64 [2, 2]."""
    corners = _numbers("box", box)
    if corners.shape != (4,):
        raise UserError(f"a box must be x0, y0, x1, y1, got an array of shape {list(corners.shape)}")
    if not (corners[:2] < corners[2:]).all():
        shown = ",".join(f"{number:g}" for number in corners)
        raise UserError(f"the box {shown} is empty; give x0 < x1 and y0 < y1")
    return corners.reshape(2, 2)


def _numbers(what: str, values: Any) -> np.ndarray:
    """float64, finite."""
    try:
        array = np.asarray(values)
    except Exception as error:  # whatever the object raises
        raise UserError(f"{what} is no array of numbers ({error})") from error
    if array.dtype.kind not in "iuf":
        raise UserError(f"{what} must be numbers, got an array of {array.dtype}")
    with np.errstate(over="ignore"):
        wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise UserError(f"{what} has values that are not finite numbers; check the prompt")
    return wide
