# SPDX-License-Identifier: Apache-2.0
"""Images with what is annotated in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samq_onnx import images, masks
from samq_onnx.errors import UserError
from samq_onnx.intake import Intake, Unusable

__all__ = ["Instance", "Sample", "fitting", "interior_point"]

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Instance:
    """One annotated object.

    Attributes:
        where: file and annotation, for messages.
        width, height: of the image.
        box: x0, y0, x1, y1 in pixels, from COCO's x, y, width, height; the part inside of the image.
        area: pixels, as annotated; None if it is not.
        crowd: a group of objects under one mask (COCO's ``iscrowd``); not evaluated.
        segmentation: COCO's polygons or run lengths; nothing (an empty list or None) if only the box is annotated.
    """

    where: str
    width: int
    height: int
    box: Box
    area: float | None
    crowd: bool
    segmentation: Any = dataclasses.field(repr=False)

    def mask(self) -> np.ndarray:
        """The mask, bool [H, W].

        Raises:
            Unusable: the segmentation does not decode or has no pixel.
            UserError: it needs pycocotools, which is not installed.
        """
        try:
            decoded = masks.decode(self.segmentation, self.height, self.width)
        except ValueError as error:
            raise Unusable(f"{self.where}: the segmentation does not decode ({error}); mend the file") from error
        if not decoded.any():
            raise Unusable(f"{self.where}: the segmentation has no pixel in the image; mend the file")
        return decoded

    def point(self) -> tuple[float, float]:
        """A point (x, y) inside the mask; the centre of the box if there is none, or pycocotools is not installed.

        Raises:
            Unusable: as `mask`.
        """
        try:
            if self.segmentation:
                return interior_point(self.mask())
        except Unusable:
            raise
        except UserError:
            pass
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image file, its size in pixels, and what is annotated in it (nothing: no annotations).

    ``stored``: it was annotated in the frame that its pixels are stored in, so its EXIF rotation is not applied.
    """

    path: Path
    width: int
    height: int
    instances: tuple[Instance, ...] = ()
    stored: bool = False

    def load(self, intake: Intake | None = None) -> np.ndarray:
        """The image, RGB uint8; height and width are those of the sample, or less if it is large (see `images.load`).

        Raises:
            Unusable: it does not decode.
        """
        return images.load(self.path, intake, stored=self.stored, reduced=True)


def interior_point(mask: np.ndarray) -> tuple[float, float]:
    """The centre (x, y) of the pixel of a mask bool [H, W] nearest to its centroid; the first in reading order."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise UserError("an empty mask has no interior point")
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5


def fitting(candidates: Sequence[Sample], size: int, intake: Intake) -> list[Sample]:
    """Those that are not too narrow for a model that takes images of ``size`` x ``size`` pixels.

    Raises:
        UserError: none is left.
    """
    found = []
    for sample in candidates:
        with intake.leaving_out():
            if images.is_too_narrow(sample.height, sample.width, size):
                raise Unusable(
                    f"{sample.path}: {sample.width} x {sample.height} pixels are too narrow for SAM; crop it"
                )
            found.append(sample)
    if not found:
        raise intake.nothing_left("of the images none can be used")
    return found
